"""Conversations → token ids and loss masks: one rendering for training and for inference.

    <SOT>system<EOT>\\n\\n<SOU>user<EOU>\\n<SOA>reply<EOA>\\n\\n<SOU>user<EOU>\\n<SOA>reply<EOA>
                                                                           ^^^^^^^^^^ last_reply
    |-------------------- the inference prompt ends after <SOA> ----------|

Control tokens come from ids, never from text: each segment between two of them is encoded on its
own, so an `<EOA>` that stands in the data stays text.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.tokenizer import (
    CONTROL_TOKENS,
    decode_ids,
    encode_texts,
    load_tokenizer,
    special_ids,
    unknown_id,
)
from simple_llama.errors import InputError
from simple_llama.files import atomic_write, read_json, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

Encoded = tuple[NDArray[np.uint32], NDArray[np.bool_]]
"""Token ids (T,) and, for each, whether it is a target of the loss (T,)."""

BEFORE_USER = "\n\n"
BEFORE_REPLY = "\n"

MAX_REPEATED = 1024
"""System prompts and separators whose ids are kept."""

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = 'SYSTEM_PROMPT' -%}{%- set turns = messages -%}
{%- endif -%}
{{- '<SOT>' + system + '<EOT>' -}}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- '\\n\\n<SOU>' + message['content'] + '<EOU>' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '\\n<SOA>' -}}{%- generation -%}{{- message['content'] + '<EOA>' -}}{%- endgeneration -%}
{%- else -%}
{{- raise_exception('roles are: one system at the start, then user and assistant') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n<SOA>' -}}{%- endif -%}
"""


class ChatTokenizer:
    """A Hugging Face tokenizer and the SimpleLLaMA prompt format.

    Ids go from 0 to vocab_size - 1. A conversation is a list of messages: an optional system
    prompt (without one, the default stands in), then user and assistant in turns.
    """

    def __init__(
        self, tokenizer: "Tokenizer", system_prompt: str, model_max_length: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.model_max_length = model_max_length
        ids: list[int] = [_id(tokenizer, token) for token in CONTROL_TOKENS]
        self.pad_id, unk_id, self._sot, self._eot, self._sou, self._eou, self._soa, self.stop_id = (
            ids
        )
        self.unk_id = unknown_id(tokenizer, unk_id)
        self.vocab_size: int = max(tokenizer.get_vocab().values()) + 1
        self._is_control = np.zeros(self.vocab_size, bool)
        self._is_control[[*ids, *special_ids(tokenizer)]] = True
        self._is_control[self.unk_id] = False
        self._repeated: dict[str, list[int]] = {}

    @classmethod
    def from_file(
        cls, path: str | Path, *, system_prompt: str, model_max_length: int | None = None
    ) -> "ChatTokenizer":
        """From a tokenizer.json. Raises InputError where it is none, or lacks a control token."""
        return cls(load_tokenizer(Path(path)), system_prompt, model_max_length)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ChatTokenizer":
        """From what `save` wrote. Raises InputError."""
        config_path = Path(folder) / "tokenizer_config.json"
        config = read_json(config_path)
        prompt = config.get("default_system_prompt") if isinstance(config, dict) else None
        if not isinstance(prompt, str):
            raise InputError(f"{config_path}: no text under 'default_system_prompt'")
        length = config.get("model_max_length")
        return cls(
            load_tokenizer(Path(folder) / "tokenizer.json"),
            prompt,
            length if isinstance(length, int) else None,
        )

    def save(self, folder: str | Path) -> None:
        """tokenizer.json and tokenizer_config.json, which `transformers` loads as they are."""
        folder = Path(folder)
        with atomic_write(folder / "tokenizer.json") as file:
            file.write(f"{self._tokenizer.to_str(pretty=True)}\n".encode())
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<PAD>",
            "eos_token": "<EOA>",
            "unk_token": self._tokenizer.id_to_token(self.unk_id),
            "clean_up_tokenization_spaces": False,
            "default_system_prompt": self.system_prompt,
            "chat_template": self.chat_template,
        }
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        write_json(folder / "tokenizer_config.json", config)

    @property
    def chat_template(self) -> str:
        """The prompt format as Jinja, for `transformers` and servers."""
        escaped = self.system_prompt.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return CHAT_TEMPLATE.replace("SYSTEM_PROMPT", escaped)

    def encode(
        self,
        conversations: Sequence[Sequence[Message]],
        supervise: Literal["last_reply", "all_replies"],
    ) -> list[Encoded]:
        """Training examples of conversations that end with a reply, each encoded whole."""
        rendered = [self._render(messages, supervise) for messages in conversations]
        return self._assemble(rendered)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Inference prompt of a conversation that ends with a user turn."""
        assert messages[-1]["role"] == "user", messages[-1]["role"]
        [(ids, _)] = self._assemble([self._render(messages, "last_reply")])
        return [int(token) for token in ids]

    def has_control(self, ids: Sequence[int]) -> bool:
        """Whether a control token is among the ids."""
        return bool(self._is_control[np.asarray(ids, np.int64)].any())

    def decode(self, ids: Iterable[int]) -> str:
        """Text without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return decode_ids(self._tokenizer, [int(token) for token in ids])

    def _render(self, messages: Sequence[Message], supervise: str) -> list[tuple[int | str, bool]]:
        """Control ids and text segments, each with whether its tokens are targets of the loss."""
        system, turns = self.system_prompt, list(messages)
        if turns[0]["role"] == "system":
            system = turns.pop(0)["content"]
        pieces: list[tuple[int | str, bool]] = [
            (self._sot, False),
            (system, False),
            (self._eot, False),
        ]
        last = len(turns) - 1
        for index, message in enumerate(turns):
            assert message["role"] == ("assistant" if index % 2 else "user"), message["role"]
            if message["role"] == "user":
                pieces += (
                    (BEFORE_USER, False),
                    (self._sou, False),
                    (message["content"], False),
                    (self._eou, False),
                    (BEFORE_REPLY, False),
                    (self._soa, False),
                )
            else:
                target = supervise == "all_replies" or index == last
                pieces += ((message["content"], target), (self.stop_id, target))
        return pieces

    def _assemble(self, rendered: list[list[tuple[int | str, bool]]]) -> list[Encoded]:
        text_ids = self._encode_texts(rendered)
        ids: list[int] = []
        mask: list[bool] = []
        ends: list[int] = []
        controls = 0
        for pieces in rendered:
            for piece, target in pieces:
                if isinstance(piece, int):
                    ids.append(piece)
                    mask.append(target)
                    controls += 1
                else:
                    segment = text_ids[piece]
                    ids += segment
                    mask += [target] * len(segment)
            ends.append(len(ids))
        flat_ids, flat_mask = np.array(ids, np.uint32), np.array(mask, np.bool_)
        if np.count_nonzero(self._is_control[flat_ids]) != controls:
            self._refuse_control_from_text(text_ids)
        return [(flat_ids[start:end], flat_mask[start:end]) for start, end in zip([0, *ends], ends)]

    def _encode_texts(self, rendered: list[list[tuple[int | str, bool]]]) -> dict[str, list[int]]:
        """The ids of each distinct text segment."""
        if len(self._repeated) > MAX_REPEATED:
            self._repeated.clear()
        found: dict[str, list[int]] = {}
        # 1: the system prompt
        repeated = {BEFORE_USER, BEFORE_REPLY, *(str(pieces[1][0]) for pieces in rendered)}
        new = list(repeated - self._repeated.keys())
        self._repeated.update(zip(new, encode_texts(self._tokenizer, new)))
        for text in repeated:
            found[text] = self._repeated[text]
        texts = {
            piece: None
            for pieces in rendered
            for piece, _ in pieces
            if isinstance(piece, str) and piece not in found
        }
        found.update(zip(texts, encode_texts(self._tokenizer, list(texts))))
        return found

    def _refuse_control_from_text(self, text_ids: dict[str, list[int]]) -> None:
        for text, ids in text_ids.items():
            for token in ids:
                if self._is_control[token]:
                    name = self._tokenizer.id_to_token(token)
                    shown = text if len(text) <= 60 else text[:57] + "..."
                    raise InputError(
                        f"the tokenizer makes the control token {name} from the text {shown!r}: "
                        f"its model must not hold {name} as a word"
                    )
        raise AssertionError("control ids were counted wrongly")


def _id(tokenizer: "Tokenizer", token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found
