"""A tokenizer as its owner left it: a tokenizer.json, or a folder in Hugging Face's layout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.errors import InputError
from simple_llama.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
MAX_FILE_BYTES = 256 * 2**20
MAX_CONFIG_BYTES = 16 * 2**20

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
    """What stands in it."""
    tokenizer: "Tokenizer"
    config: dict[str, Any]
    """Its tokenizer_config.json; empty where only the file was given."""
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
        _check_file(file, MAX_FILE_BYTES, f"a {TOKENIZER}")
        layout = read_json(file)
        if not isinstance(layout, dict) or not isinstance(layout.get("model"), dict):
            raise InputError(f"{file}: not a tokenizer: no 'model' in it")
        config = _read_config(folder / CONFIG) if folder else {}
        return cls(
            path=file,
            layout=layout,
            tokenizer=parse(file, layout),
            config=config,
            template=_read_template(folder, config) if folder else None,
        )

    def named(self, kind: str) -> str | None:
        """The eos, pad, unk or bos token as its config calls it, or else custom."""
        token = self.config.get(f"{kind}_token")
        if isinstance(token, dict):  # of an AddedToken
            token = token.get("content")
        for name in (token, *KNOWN.get(kind, ())):
            if isinstance(name, str) and self.has(name):
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
    def special(self) -> list[str]:
        """Its added tokens that are no text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return [token.content for token in added.values() if token.special]


def _check_file(path: Path, most: int, wanted: str) -> None:
    """Before it is opened: a pipe or device would never end."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted {wanted}") from None
    if not path.is_file():
        raise InputError(f"{path}: not a file, wanted {wanted}")
    if size > most:
        raise InputError(f"{path}: {size} bytes, wanted at most {most}")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    _check_file(path, MAX_CONFIG_BYTES, f"a {CONFIG}")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: got {type(config).__name__}, wanted an object")
    return config


def _read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """From a file of its own, where `transformers` 5 keeps it, or from the config; of several, the
    default one."""
    path = folder / TEMPLATE
    if path.exists():
        _check_file(path, MAX_CONFIG_BYTES, "a chat template")
        try:
            return path.read_text(encoding="utf-8")
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
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        text = " ".join(str(error).split())
        text = text if len(text) <= 200 else text[:197] + "..."
        raise InputError(f"{what}: {text}") from None
