"""Reads a tokenizer as it is: a tokenizer.json, or a folder in Hugging Face's layout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.data.tokenizer_folder import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    check_file,
    content,
    read_settings,
    with_folder_tokens,
)
from simple_llama.errors import InputError
from simple_llama.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer.json", "chat_template.jinja"
MAX_FILE_BYTES = 256 * 2**20

COMMON_TOKEN_NAMES = {
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<EOA>"),
    "pad": ("<PAD>", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "[PAD]"),
    "unk": ("<UNK>", "<unk>"),
}
"""Names to look for where no config names the token."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """A tokenizer before it is adapted."""

    path: Path
    """Its tokenizer.json."""
    layout: dict[str, Any]
    """The content of tokenizer.json, with the tokens of the folder's other files added."""
    tokenizer: "Tokenizer"
    config: dict[str, Any]
    """Its settings from read_settings; {} if the path is a file."""
    template: str | None
    """Its chat template, if it has one."""

    @classmethod
    def read(cls, path: str | Path) -> "TokenizerSource":
        """Read a tokenizer.json, or a folder in Hugging Face's layout. Raises InputError."""
        path = Path(path)
        folder = path if path.is_dir() else None
        file = path / TOKENIZER_FILE if folder else path
        if folder and not file.exists():
            others = sorted(one.name for one in path.glob("*.model"))
            found = f" (found {others[0]}: convert it with transformers)" if others else ""
            raise InputError(f"{path}: no {TOKENIZER_FILE} in it{found}")
        check_file(file, MAX_FILE_BYTES, f"a {TOKENIZER_FILE}")
        layout = read_json(file)
        if not isinstance(layout, dict) or not isinstance(layout.get("model"), dict):
            raise InputError(f"{file}: not a tokenizer: no 'model' in it")
        config = read_settings(folder) if folder else {}
        tokenizer = parse_tokenizer(file, layout)
        if folder:
            with as_input_error(f"{folder}: its tokens cannot be added"):
                completed = with_folder_tokens(tokenizer, layout, config, folder)
            if completed is not layout:
                layout, tokenizer = completed, parse_tokenizer(file, completed)
        return cls(
            path=file,
            layout=layout,
            tokenizer=tokenizer,
            config=config,
            template=_read_template(folder, config) if folder else None,
        )

    @property
    def template_path(self) -> Path:
        """The file that holds its chat template."""
        own = self.path.with_name(TEMPLATE_FILE)
        return own if own.exists() else self.path.with_name(CONFIG_FILE)

    def named(self, kind: str) -> str | None:
        """The eos, pad, unk or bos token that its config names, else one of COMMON_TOKEN_NAMES."""
        for name in (content(self.config.get(f"{kind}_token")), *COMMON_TOKEN_NAMES.get(kind, ())):
            if name is not None and self.has(name):
                return name
        return None

    def has(self, token: str) -> bool:
        """Whether the vocabulary has a token."""
        try:
            return self.tokenizer.token_to_id(token) is not None
        except UnicodeEncodeError:  # JSON may hold a lone surrogate
            return False

    @property
    def unk(self) -> str | None:
        """The unknown token, for a model that does not name one."""
        return next(filter(self.has, COMMON_TOKEN_NAMES["unk"]), None)

    @property
    def eos(self) -> str | None:
        """The end-of-sequence token."""
        return self.named("eos")

    @property
    def bos(self) -> str | None:
        """The token that the tokenizer's post-processor puts before every text, if any."""
        for step in pipeline_steps(self.layout.get("post_processor"), "processors"):
            if step.get("type") == "TemplateProcessing":
                match step.get("single"):
                    case [{"SpecialToken": {"id": str(name)}}, *_] if self.has(name):
                        return name
        return None

    @property
    def markers(self) -> list[str]:
        """Added tokens that the fixed text of a prompt format may contain: special tokens, and
        others such as <|user|> that are not words or white space."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        texts = [token.content for token in added if not token.special]
        return self.special + [one for one in texts if one.strip() and not one.strip().isalnum()]

    @property
    def special(self) -> list[str]:
        """The special tokens among its added tokens."""
        added = self.tokenizer.get_added_tokens_decoder()
        return [token.content for token in added.values() if token.special]


def _read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template, from the file in which `transformers` 5 keeps it, or from the config; the
    one named default if there are several."""
    path = folder / TEMPLATE_FILE
    if path.exists():
        check_file(path, MAX_CONFIG_BYTES, "a chat template")
        try:
            return path.read_bytes().decode()
        except UnicodeDecodeError:
            raise InputError(f"{path}: not UTF-8") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def pipeline_steps(part: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or post-processor; [part] if it is not a Sequence."""
    if not isinstance(part, dict):
        return []
    steps = part.get(key) if part.get("type") == "Sequence" else [part]
    return [step for step in steps or [] if isinstance(step, dict)]


def parse_tokenizer(path: Path, layout: dict[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer

    with as_input_error(f"{path}: not a tokenizer"):
        return Tokenizer.from_str(json.dumps(layout))


@contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Turn any exception of the Rust library, of whatever type, into an InputError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as error:  # a panic in Rust is not an Exception
        text = " ".join(str(error).split())
        text = text if len(text) <= 200 else text[:197] + "..."
        raise InputError(f"{what}: {text}") from None
