"""Turns conversations into token ids and loss masks. Training and inference use the same code."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from simple_llama.data.assembly import Assembler, Encoded, EncodedBatch
from simple_llama.data.format_choice import FormatChoice, check_template_ids, choose_format
from simple_llama.data.generation_config import (
    GENERATION_CONFIG_FILE,
    as_eos_token_id,
    read_eos_token_ids,
)
from simple_llama.data.prompt_formats import Message, PromptFormat, Refusal
from simple_llama.data.template_format import TemplateFormat
from simple_llama.data.tokenizer import TextEncoder, make_text_encoder, special_ids
from simple_llama.data.tokenizer_folder import CONFIG_FILE
from simple_llama.data.tokenizer_source import TEMPLATE_FILE, TOKENIZER_FILE, TokenizerSource
from simple_llama.errors import InputError
from simple_llama.files import atomic_write, write_json

TRIAL_CONVERSATION: list[Message] = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hello"},
]


class ChatTokenizer:
    """A Hugging Face tokenizer and a prompt format.

    Ids go from 0 to vocab_size - 1. A conversation is a list of messages: an optional system
    message (the default system prompt replaces a missing one), then user and assistant in turns.
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
        """Vocabulary size of the base model; ids from here on are of added tokens."""
        self.file_vocab_size = encoder.vocab_size - len(encoder.added)
        """Vocabulary size of the tokenizer's files, including tokens that an earlier run added."""
        self._ids = {token: encoder.id_of(token) for token in self._format.controls}
        self._assemble = Assembler(encoder, self._ids)
        self.stop_id = self._ids[self._format.stop]
        self.stop_ids = [self.stop_id]
        """All ids that end a reply in generation; the first is the one that is trained."""
        self.pad_id = encoder.id_of(encoder.pad)
        self.unk_id = None if encoder.unk is None else encoder.id_of(encoder.unk)
        self._unspoken = {self.pad_id, self.stop_id, *special_ids(encoder.published)} - {
            self.unk_id
        }

    @classmethod
    def from_path(
        cls,
        path: str | Path,
        *,
        prompt_format: str,
        system_prompt: str,
        model_max_length: int | None = None,
    ) -> "ChatTokenizer":
        """Load any tokenizer.json, or a folder that holds one.

        Raises InputError where it is not a tokenizer, nothing points to a prompt format, or
        tokenizer and format do not fit.
        """
        chat = cls._of(TokenizerSource.read(path), prompt_format, system_prompt, model_max_length)
        chat.encode([TRIAL_CONVERSATION], "last_reply")
        return chat.for_model(path)

    @classmethod
    def from_folder(cls, folder: str | Path, prompt_format: str = "auto") -> "ChatTokenizer":
        """Load what `save` wrote, or another tokenizer's folder, which has no default system
        prompt. Raises InputError.
        """
        source = TokenizerSource.read(folder)
        prompt = source.config.get("default_system_prompt", "")
        if not isinstance(prompt, str):
            raise InputError(f"{Path(folder) / CONFIG_FILE}: no text under 'default_system_prompt'")
        length, size = (source.config.get(key) for key in ("model_max_length", "base_vocab_size"))
        chat = cls._of(source, prompt_format, prompt, length if isinstance(length, int) else None)
        if isinstance(size, int) and 0 < size <= chat.vocab_size:
            chat.base_vocab_size = size
        return chat.for_model(folder)

    def for_model(self, folder: str | Path) -> "ChatTokenizer":
        """A copy in which replies also end at the eos ids of the model in a folder."""
        other = copy.copy(self)
        other.stop_ids = list(dict.fromkeys([*self.stop_ids, *read_eos_token_ids(folder)]))
        return other

    @classmethod
    def _of(
        cls, source: TokenizerSource, prompt_format: str, system_prompt: str, length: int | None
    ) -> "ChatTokenizer":
        def of(choice: FormatChoice) -> ChatTokenizer:
            form = choice.format
            encoder = make_text_encoder(
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
            check_template_ids(source, chat._format, chat.prompt)
        return chat

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, if it is the tokenizer's own, the chat
        template, as `transformers` loads them. Several stop ids go into generation_config.json."""
        folder = Path(folder)
        with atomic_write(folder / TOKENIZER_FILE) as file:
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
        if isinstance(form, TemplateFormat):  # its own template goes into a file, unchanged
            with atomic_write(folder / TEMPLATE_FILE) as file:
                file.write(self.chat_template.encode())
            config |= {**form.named, "add_bos_token": form.adds_bos, "chat_template": None}
        known = {key: value for key, value in config.items() if value is not None}
        write_json(folder / CONFIG_FILE, known)
        if self.stop_ids != [encoder.id_of(known["eos_token"])]:
            write_json(
                folder / GENERATION_CONFIG_FILE, {"eos_token_id": as_eos_token_id(self.stop_ids)}
            )

    @property
    def added_tokens(self) -> int:
        """Number of tokens that were added to the base model's vocabulary; they have the highest
        ids."""
        return self.vocab_size - self.base_vocab_size

    @property
    def control_ids(self) -> dict[str, int]:
        """Name → id of the control tokens that the format writes."""
        return {token: self._ids[token] for token in self._format.tokens}

    @property
    def chat_template(self) -> str:
        """The prompt format as a Jinja template, for `transformers` and servers."""
        return self._format.chat_template(self.system_prompt)

    @property
    def description(self) -> str:
        """For the user: the format, why it was chosen, and which tokens were added for it."""
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
        """Training examples of conversations that end with a reply: one each, or several where a
        chat template rewrites earlier turns. Raises InputError where the format refuses one."""
        batch = self.encode_batch(conversations, supervise)
        for reason in batch.refused.values():
            raise InputError(f"prompt format {self._format.name}: {reason}")
        return batch.examples()

    def encode_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        supervise: Literal["last_reply", "all_replies"],
    ) -> EncodedBatch:
        """The same examples as `encode`, concatenated. Each is cut off after its last target,
        because no loss depends on the rest. A conversation without targets becomes an empty
        example."""
        return self._assemble(self._format.render_all(conversations, self.system_prompt, supervise))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the inference prompt of a conversation that ends with a user turn or a
        tool's result. Raises InputError where the format refuses it."""
        assert messages[-1]["role"] in ("user", "tool"), messages[-1]["role"]
        pieces = self._format.prompt(messages, self.system_prompt)
        batch = self._assemble([pieces if isinstance(pieces, Refusal) else [pieces]])
        for reason in batch.refused.values():
            raise InputError(f"prompt format {self._format.name}: {reason}")
        return batch.ids.tolist()  # type: ignore[no-any-return]

    def hidden_keys(self, messages: Sequence[Message]) -> set[str]:
        """The keys of these messages that the format does not write."""
        return {key for message in messages for key in self._format.hidden_keys if key in message}

    @property
    def shows_calls(self) -> bool:
        """Whether the format writes tool calls."""
        return self._format.shows_calls

    def has_control(self, ids: Sequence[int]) -> bool:
        """Whether a control token is among the ids."""
        return not self._unspoken.isdisjoint(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without control tokens; invalid UTF-8 becomes U+FFFD."""
        return self._encoder.decode([int(token) for token in ids])
