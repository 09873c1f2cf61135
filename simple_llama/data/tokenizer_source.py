"""A tokenizer as its owner left it: a tokenizer.json, or a folder in Hugging Face's layout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.data.tokenizer_folder import (
    CONFIG,
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

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
MAX_FILE_BYTES = 256 * 2**20

KNOWN = {
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<EOA>"),
    "pad": ("<PAD>", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "[PAD]"),
    "unk": ("<UNK>", "<unk>"),
}
"""What they are called where no config names them."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """A tokenizer as it was found."""

    path: Path
    """Of its tokenizer.json."""
    layout: dict[str, Any]
    """What stands in it, with the tokens of the folder's other files."""
    tokenizer: "Tokenizer"
    config: dict[str, Any]
    """Its settings (read_settings); empty where only the file was given."""
    template: str | None
    """Its chat template, if it has one."""

    @classmethod
    def read(cls, path: str | Path) -> "TokenizerSource":
        """From a tokenizer.json alone, or from a folder in Hugging Face's layout.

        Raises InputError where it is neither.
        """
        path = Path(path)
        folder = path if path.is_dir() else None
        file = path / TOKENIZER if folder else path
        if folder and not file.exists():
            others = sorted(one.name for one in path.glob("*.model"))
            found = f" (found {others[0]}: convert it with transformers)" if others else ""
            raise InputError(f"{path}: no {TOKENIZER} in it{found}")
        check_file(file, MAX_FILE_BYTES, f"a {TOKENIZER}")
        layout = read_json(file)
        if not isinstance(layout, dict) or not isinstance(layout.get("model"), dict):
            raise InputError(f"{file}: not a tokenizer: no 'model' in it")
        config = read_settings(folder) if folder else {}
        tokenizer = parse(file, layout)
        if folder:
            with refusing(f"{folder}: its tokens cannot be added"):
                completed = with_folder_tokens(tokenizer, layout, config, folder)
            if completed is not layout:
                layout, tokenizer = completed, parse(file, completed)
        return cls(
            path=file,
            layout=layout,
            tokenizer=tokenizer,
            config=config,
            template=_read_template(folder, config) if folder else None,
        )

    @property
    def template_path(self) -> Path:
        """The file that its chat template stands in."""
        own = self.path.with_name(TEMPLATE)
        return own if own.exists() else self.path.with_name(CONFIG)

    def named(self, kind: str) -> str | None:
        """The eos, pad, unk or bos token as its config calls it, or else custom."""
        for name in (content(self.config.get(f"{kind}_token")), *KNOWN.get(kind, ())):
            if name is not None and self.has(name):
                return name
        return None

    def has(self, token: str) -> bool:
        """Whether there is such a token."""
        try:
            return self.tokenizer.token_to_id(token) is not None
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
            return False

    @property
    def unk(self) -> str | None:
        """What stands for unknown text, where the model does not say."""
        return next(filter(self.has, KNOWN["unk"]), None)

    @property
    def eos(self) -> str | None:
        """What ends a text."""
        return self.named("eos")

    @property
    def bos(self) -> str | None:
        """What the tokenizer itself puts before every text, if it does."""
        for step in steps(self.layout.get("post_processor"), "processors"):
            if step.get("type") == "TemplateProcessing":
                match step.get("single"):
                    case [{"SpecialToken": {"id": str(name)}}, *_] if self.has(name):
                        return name
        return None

    @property
    def markers(self) -> list[str]:
        """Its added tokens that may stand in a prompt format's fixed text: special ones, and others
        that are no words or white space, such as <|user|>."""
        added = self.tokenizer.get_added_tokens_decoder().values()
        texts = [token.content for token in added if not token.special]
        return self.special + [one for one in texts if one.strip() and not one.strip().isalnum()]

    @property
    def special(self) -> list[str]:
        """Its added tokens that are no text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return [token.content for token in added.values() if token.special]


def _read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """From a file of its own, where `transformers` 5 keeps it, or from the config; of several, the
    default one."""
    path = folder / TEMPLATE
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


def steps(part: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or post-processor, be it one or a sequence."""
    if not isinstance(part, dict):
        return []
    steps = part.get(key) if part.get("type") == "Sequence" else [part]
    return [step for step in steps or [] if isinstance(step, dict)]


def parse(path: Path, layout: dict[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer

    with refusing(f"{path}: not a tokenizer"):
        return Tokenizer.from_str(json.dumps(layout))


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what the Rust library raises, of whatever type, into an InputError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        text = " ".join(str(error).split())
        text = text if len(text) <= 200 else text[:197] + "..."
        raise InputError(f"{what}: {text}") from None
