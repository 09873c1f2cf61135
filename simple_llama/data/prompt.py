"""Conversations → token ids and loss masks: one rendering for training and for inference."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from simple_llama.data.assembly import Assembler, Encoded, EncodedBatch
from simple_llama.data.format_choice import FormatChoice, check_ids, choose_format
from simple_llama.data.prompt_formats import Message, PromptFormat, Refusal
from simple_llama.data.template_format import TemplateFormat
from simple_llama.data.tokenizer import TextEncoder, adapt, special_ids
from simple_llama.data.tokenizer_folder import CONFIG
from simple_llama.data.tokenizer_source import TEMPLATE, TOKENIZER, TokenizerSource
from simple_llama.errors import InputError
from simple_llama.files import atomic_write, write_json
from simple_llama.generation_config import GENERATION, as_written, read_end_ids

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
        self._ids = {token: encoder.id_of(token) for token in self._format.controls}
        self._assemble = Assembler(encoder, self._ids)
        self.stop_id = self._ids[self._format.stop]
        self.stop_ids = [self.stop_id]
        """All ids that end a reply in generation, the one that is trained first."""
        self.pad_id = encoder.id_of(encoder.pad)
        self.unk_id = None if encoder.unk is None else encoder.id_of(encoder.unk)
        self._unspoken = {self.pad_id, self.stop_id, *special_ids(encoder.public)} - {self.unk_id}

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
            form = choice.format
            encoder = adapt(
                source,
                form.controls,
                stop=form.stop,
                bos=form.begin[0] if form.begin else None,
                keep=isinstance(form, TemplateFormat),
            )
            return cls(encoder, choice, system_prompt, length)

        made: dict[str, ChatTokenizer] = {}

        def prompts(known: PromptFormat, messages: Sequence[Message]) -> list[int]:
            if known.name not in made:
                made[known.name] = of(FormatChoice(format=known, reason=""))
            return made[known.name].prompt(messages)

        chat = of(choose_format(prompt_format, source, system_prompt, prompts))
        if isinstance(chat._format, TemplateFormat):
            check_ids(source, chat._format, chat.prompt)
        return chat

    def save(self, folder: str | Path) -> None:
        """tokenizer.json, tokenizer_config.json and a template of its own, which `transformers`
        loads as they are; further stop ids in a generation_config.json."""
        folder = Path(folder)
        with atomic_write(folder / TOKENIZER) as file:
            file.write(f"{self._encoder.to_json()}\n".encode())
        form, encoder = self._format, self._encoder
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": encoder.bos,
            "pad_token": encoder.pad,
            "eos_token": form.stop,
            "unk_token": encoder.unk,
            "add_bos_token": encoder.bos is not None,
            "clean_up_tokenization_spaces": False,
            "prompt_format": form.name,
            "default_system_prompt": self.system_prompt,
            "base_vocab_size": self.base_vocab_size,
            "chat_template": self.chat_template,
            "model_max_length": self.model_max_length,
        }
        if isinstance(form, TemplateFormat):  # it stands in a file, as it was
            with atomic_write(folder / TEMPLATE) as file:
                file.write(self.chat_template.encode())
            config |= {**form.named, "add_bos_token": form.adds_bos, "chat_template": None}
        known = {key: value for key, value in config.items() if value is not None}
        write_json(folder / CONFIG, known)
        if self.stop_ids != [encoder.id_of(known["eos_token"])]:
            write_json(folder / GENERATION, {"eos_token_id": as_written(self.stop_ids)})

    @property
    def added_tokens(self) -> int:
        """How many of its highest ids the base model has not seen."""
        return self.vocab_size - self.base_vocab_size

    @property
    def control_ids(self) -> dict[str, int]:
        """The control tokens that the format writes."""
        return {token: self._ids[token] for token in self._format.tokens}

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
        """Training examples of conversations that end with a reply, one for each but where a chat
        template makes several. Raises InputError where the format refuses one."""
        batch = self.encode_batch(conversations, supervise)
        for reason in batch.refused.values():
            raise InputError(f"prompt format {self._format.name}: {reason}")
        return batch.examples()

    def encode_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        supervise: Literal["last_reply", "all_replies"],
    ) -> EncodedBatch:
        """The same, end to end. What follows the last reply that is trained is cut off: no loss
        depends on it. A conversation that trains nothing is empty."""
        return self._assemble(self._format.render_all(conversations, self.system_prompt, supervise))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Inference prompt of a conversation that ends with a user turn or a tool's result.
        Raises InputError where the format refuses it."""
        assert messages[-1]["role"] in ("user", "tool"), messages[-1]["role"]
        pieces = self._format.prompt(messages, self.system_prompt)
        batch = self._assemble([pieces if isinstance(pieces, Refusal) else [pieces]])
        for reason in batch.refused.values():
            raise InputError(f"prompt format {self._format.name}: {reason}")
        return batch.ids.tolist()  # type: ignore[no-any-return]

    def hidden(self, messages: Sequence[Message]) -> set[str]:
        """What they say and the format does not show."""
        return {key for message in messages for key in self._format.hides if key in message}

    @property
    def calls(self) -> bool:
        """Whether the format shows calls of tools."""
        return self._format.calls

    def has_control(self, ids: Sequence[int]) -> bool:
        """Whether a control token is among the ids."""
        return not self._unspoken.isdisjoint(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._encoder.decode([int(token) for token in ids])
