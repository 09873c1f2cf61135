"""Conversations → token ids and loss masks: one rendering for training and for inference.

Control tokens come from ids, never from text. Each run of text between two of them is encoded on
its own, as `transformers` does with a rendered prompt; a control token that stands in the data
stays text here.

    <|im_start|>  user\\nquestion  <|im_end|>  \\n   <|im_start|>  assistant\\n  reply  <|im_end|>
       an id         a text         an id   a text    an id           a text          an id
                                                         the prompt ends ^  supervised from here
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.format_choice import FormatChoice, choose_format
from simple_llama.data.prompt_formats import Control, Message, PromptFormat
from simple_llama.data.tokenizer import TextEncoder, adapt, special_ids
from simple_llama.data.tokenizer_folder import CONFIG
from simple_llama.data.tokenizer_source import TOKENIZER, TokenizerSource
from simple_llama.errors import InputError
from simple_llama.files import atomic_write, write_json
from simple_llama.generation_config import GENERATION, as_written, read_end_ids

Encoded = tuple[NDArray[np.uint32], NDArray[np.bool_]]
"""Token ids (T,) and, for each, whether it is a target of the loss (T,)."""


@dataclass(frozen=True)
class EncodedBatch:
    """B examples end to end."""

    ids: NDArray[np.uint32]
    """(N,) token ids."""
    mask: NDArray[np.bool_]
    """(N,): whether each is a target of the loss."""
    lengths: NDArray[np.int64]
    """(B,) tokens of each example."""


Text = tuple[str, bool]
"""A run of text, and whether it stands at the start of the conversation."""

Run = tuple[int | Text, int]
"""A control id and whether it is a target, 0 or 1; or a text and how many of its characters come
before its target."""

TextIds = dict[Text, NDArray[np.uint32]]

TRIAL: list[Message] = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hello"},
]


class ChatTokenizer:
    """A Hugging Face tokenizer and a prompt format.

    Ids go from 0 to vocab_size - 1. A conversation is a list of messages: an optional system
    prompt (without one, the default stands in), then user and assistant in turns.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        choice: FormatChoice,
        system_prompt: str,
        model_max_length: int | None = None,
    ) -> None:
        self._encoder, self._format, self._reason = encoder, choice.format, choice.reason
        self.system_prompt = system_prompt
        self.model_max_length = model_max_length
        self.vocab_size = encoder.vocab_size
        self.base_vocab_size = encoder.base_vocab_size
        """Ids that the base model was trained with; those above are of tokens that were added."""
        self.file_vocab_size = encoder.vocab_size - len(encoder.added)
        """Ids that its own files have, those that an earlier run added to them included."""
        self._ids = {token: encoder.id_of(token) for token in self._format.tokens}
        self._control_ids = {one: np.array([one], np.uint32) for one in self._ids.values()}
        self.stop_id = self._ids[self._format.stop]
        self.stop_ids = [self.stop_id]
        """All ids that end a reply in generation, the one that is trained first."""
        self.pad_id = encoder.id_of(encoder.pad)
        self.unk_id = None if encoder.unk is None else encoder.id_of(encoder.unk)
        self._is_control = np.zeros(self.vocab_size, bool)
        self._is_control[[*self._ids.values(), self.pad_id, *special_ids(encoder.tokenizer)]] = True
        if self.unk_id is not None:
            self._is_control[self.unk_id] = False

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        prompt_format: str,
        system_prompt: str,
        model_max_length: int | None = None,
    ) -> "ChatTokenizer":
        """From a tokenizer.json, or a folder that holds one, of any origin.

        Raises InputError where it is none, nothing points to a format, or the two do not fit.
        """
        chat = cls._of(TokenizerSource.read(path), prompt_format, system_prompt, model_max_length)
        chat.encode([TRIAL], "last_reply")
        return chat.for_model(path)

    @classmethod
    def from_folder(cls, folder: str | Path, prompt_format: str = "auto") -> "ChatTokenizer":
        """From what `save` wrote; from a folder of others, without a default system prompt.

        Raises InputError.
        """
        source = TokenizerSource.read(folder)
        prompt = source.config.get("default_system_prompt", "")
        if not isinstance(prompt, str):
            raise InputError(f"{Path(folder) / CONFIG}: no text under 'default_system_prompt'")
        length, size = (source.config.get(key) for key in ("model_max_length", "base_vocab_size"))
        chat = cls._of(source, prompt_format, prompt, length if isinstance(length, int) else None)
        if isinstance(size, int) and 0 < size <= chat.vocab_size:
            chat.base_vocab_size = size
        return chat.for_model(folder)

    def for_model(self, folder: str | Path) -> "ChatTokenizer":
        """The same, with replies that also end where the model of a folder ends its texts."""
        other = copy.copy(self)
        other.stop_ids = list(dict.fromkeys([*self.stop_ids, *read_end_ids(folder)]))
        return other

    @classmethod
    def _of(
        cls, source: TokenizerSource, prompt_format: str, system_prompt: str, length: int | None
    ) -> "ChatTokenizer":
        def of(choice: FormatChoice) -> ChatTokenizer:
            tokens, stop = choice.format.tokens, choice.format.stop
            begin = choice.format.begin
            encoder = adapt(source, tokens, stop=stop, bos=begin[0] if begin else None)
            return cls(encoder, choice, system_prompt, length)

        made: dict[str, ChatTokenizer] = {}

        def prompts(known: PromptFormat, messages: Sequence[Message]) -> list[int]:
            if known.name not in made:
                made[known.name] = of(FormatChoice(format=known, reason=""))
            return made[known.name].prompt(messages)

        return of(choose_format(prompt_format, source, system_prompt, prompts))

    def save(self, folder: str | Path) -> None:
        """tokenizer.json and tokenizer_config.json, which `transformers` loads as they are; further
        stop ids in a generation_config.json."""
        folder = Path(folder)
        with atomic_write(folder / TOKENIZER) as file:
            file.write(f"{self._encoder.to_json()}\n".encode())
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self._encoder.bos,
            "pad_token": self._encoder.pad,
            "eos_token": self._format.stop,
            "unk_token": self._encoder.unk,
            "add_bos_token": self._encoder.bos is not None,
            "clean_up_tokenization_spaces": False,
            "prompt_format": self._format.name,
            "default_system_prompt": self.system_prompt,
            "base_vocab_size": self.base_vocab_size,
            "chat_template": self.chat_template,
            "model_max_length": self.model_max_length,
        }
        known = {key: value for key, value in config.items() if value is not None}
        write_json(folder / CONFIG, known)
        if len(self.stop_ids) > 1:
            write_json(folder / GENERATION, {"eos_token_id": as_written(self.stop_ids)})

    @property
    def added_tokens(self) -> int:
        """How many of its highest ids the base model has not seen."""
        return self.vocab_size - self.base_vocab_size

    @property
    def control_ids(self) -> dict[str, int]:
        """The format's control tokens."""
        return dict(self._ids)

    @property
    def chat_template(self) -> str:
        """The prompt format as Jinja, for `transformers` and servers."""
        return self._format.chat_template(self.system_prompt)

    @property
    def description(self) -> str:
        """The format, why it is that one, and what was added to the tokenizer for it."""
        added = self._encoder.added
        said = f"prompt format {self._format.name}: {self._reason}"
        if added:
            said += (
                f"; the tokenizer lacks {', '.join(added)}: added, with embeddings to be learned"
            )
        return said

    def encode(
        self,
        conversations: Sequence[Sequence[Message]],
        supervise: Literal["last_reply", "all_replies"],
    ) -> list[Encoded]:
        """Training examples of conversations that end with a reply, each encoded whole."""
        batch = self.encode_batch(conversations, supervise)
        ends = np.cumsum(batch.lengths).tolist()
        spans = [slice(start, end) for start, end in zip([0, *ends], ends)]
        return [(batch.ids[span], batch.mask[span]) for span in spans]

    def encode_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        supervise: Literal["last_reply", "all_replies"],
    ) -> EncodedBatch:
        """The same, end to end. What follows the last reply that is trained is cut off: no loss
        depends on it. A conversation that trains nothing is empty."""
        return self._assemble([self._runs(self._trained(one, supervise)) for one in conversations])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Inference prompt of a conversation that ends with a user turn."""
        assert messages[-1]["role"] == "user", messages[-1]["role"]
        pieces = self._format.render(messages, self.system_prompt, "last_reply")
        return self._assemble([self._runs(pieces)]).ids.tolist()  # type: ignore[no-any-return]

    def has_control(self, ids: Sequence[int]) -> bool:
        """Whether a control token is among the ids."""
        return bool(self._is_control[np.asarray(ids, np.int64)].any())

    def decode(self, ids: Iterable[int]) -> str:
        """Text without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._encoder.decode([int(token) for token in ids])

    def _trained(
        self, messages: Sequence[Message], supervise: Literal["last_reply", "all_replies"]
    ) -> list[tuple[str, bool]]:
        """The rendered pieces up to the last target."""
        pieces = self._format.render(messages, self.system_prompt, supervise)
        while pieces and not pieces[-1][1]:
            pieces.pop()
        return pieces

    def _runs(self, pieces: Sequence[tuple[str, bool]]) -> list[Run]:
        """The pieces, neighbouring texts joined."""
        runs: list[Run] = []
        text, before = "", 0
        for piece, target in pieces:
            if isinstance(piece, Control):
                if text:
                    runs.append(((text, not runs), before))
                    text, before = "", 0
                runs.append((self._ids[piece], target))
            else:
                text += piece
                if not target:
                    before = len(text)
        if text:
            runs.append(((text, not runs), before))
        return runs

    def _assemble(self, conversations: list[list[Run]]) -> EncodedBatch:
        text_ids = self._encode_texts(conversations)
        pieces = [np.zeros(0, np.uint32)]
        sizes: list[int] = []
        targets: list[bool] = []
        lengths: list[int] = []
        controls = 0
        for runs in conversations:
            length = 0
            for run, before in runs:
                if isinstance(run, int):
                    pieces.append(self._control_ids[run])
                    sizes.append(1)
                    targets.append(before == 1)
                    controls += 1
                    length += 1
                else:
                    segment = text_ids[run]
                    prompt = _prompt_length(run, before, text_ids)
                    pieces.append(segment)
                    sizes += (prompt, len(segment) - prompt)
                    targets += (False, True)
                    length += len(segment)
            lengths.append(length)
        flat_ids = np.concatenate(pieces)
        flat_mask = np.repeat(np.array(targets, bool), np.array(sizes, np.int64))
        if np.count_nonzero(self._is_control[flat_ids]) != controls:
            self._refuse_control_from_text(text_ids)
        return EncodedBatch(flat_ids, flat_mask, np.array(lengths, np.int64))

    def _encode_texts(self, conversations: list[list[Run]]) -> TextIds:
        """The ids of each distinct text, and of what in it comes before a target."""
        texts: dict[Text, None] = {}
        for runs in conversations:
            for run, before in runs:
                if not isinstance(run, int):
                    texts[run] = None
                    if 0 < before < len(run[0]):
                        texts[run[0][:before], run[1]] = None
        found: TextIds = {}
        for at_start in (True, False):
            part = [text for text in texts if text[1] == at_start]
            ids = self._encoder.encode([text for text, _ in part], at_start=at_start)
            found.update(zip(part, ids))
        return found

    def _refuse_control_from_text(self, text_ids: TextIds) -> None:
        for (text, _), ids in text_ids.items():
            for token in ids[self._is_control[ids]]:
                name = self._encoder.tokenizer.id_to_token(int(token))
                raise InputError(
                    f"the tokenizer makes the control token {name} from the text "
                    f"{_shown(text)}: its model must not hold {name} as a word"
                )
        raise AssertionError("control ids were counted wrongly")


def _prompt_length(run: Text, before: int, text_ids: TextIds) -> int:
    """How many ids of a text come before its target.

    Generation starts after the ids of the prompt alone, so training must see the same. Raises
    InputError where the tokenizer makes other ids of the prompt when a reply follows.
    """
    text, at_start = run
    if before == 0:
        return 0
    if before == len(text):
        return len(text_ids[run])
    prompt = text_ids[text[:before], at_start]
    if not np.array_equal(text_ids[run][: len(prompt)], prompt):
        raise InputError(
            f"the tokenizer makes other ids of {_shown(text[max(0, before - 20) : before])} when "
            f"{_shown(text[before:])} follows: wanted another prompt_format; the prompt of "
            "simple_llama ends in a control token and goes with every tokenizer"
        )
    return len(prompt)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
