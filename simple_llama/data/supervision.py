"""Reads the flags by which rows and messages say whether they are trained on.

`weight` is OpenAI's (https://platform.openai.com/docs/guides/supervised-fine-tuning), `training`
and `train` are axolotl's (https://docs.axolotl.ai/docs/dataset-formats/conversation.html). The
others occur in published data sets.
"""

from typing import Any

from simple_llama.data.rows import RowError

TRAIN_FLAGS = ("train", "training", "trainable", "learn")
MASK_FLAGS = ("masked", "mask")
WEIGHT_FLAGS = ("weight", "loss_weight", "loss", "loss_mask")
MESSAGE_FLAGS = (*TRAIN_FLAGS, *MASK_FLAGS, *WEIGHT_FLAGS)
ROW_FLAGS = ("weight", "loss_weight", "sample_weight", "loss_mask", *TRAIN_FLAGS, *MASK_FLAGS)
"""Without `loss`: in a row, as opposed to a message, it is a score."""
FLAG_TEXTS = {"0": 0, "1": 1, "false": 0, "true": 1, "": None}
"""How a table without types, such as CSV, writes a flag."""
CHARACTER_MASK = "train_detail"
"""Axolotl's key for training on parts of a message."""


class UntrainedRow(Exception):
    """The row's flags exclude it from training."""


def message_weight(message: dict[str, Any], where: str) -> int | None:
    """1 if the message's flags say that it is trained on, 0 if not, None if it has no flags.

    Raises RowError for weights between 0 and 1, for flags that contradict each other, and for flags
    of single characters.
    """
    if message.get(CHARACTER_MASK) is not None:
        raise RowError(
            "partial supervision",
            f"{where}: {CHARACTER_MASK!r}; a message is trained as a whole, or not",
        )
    return _weight(message, MESSAGE_FLAGS, where)


def check_row(row: dict[str, Any]) -> None:
    """Raises UntrainedRow where a row's flags exclude it, and RowError where its flags cannot be
    obeyed or its label is false: such a row shows an unwanted reply
    (https://huggingface.co/docs/trl/dataset_formats, unpaired preference)."""
    if str(row.get("label")).lower() == "false":
        raise RowError("not wanted", "'label' is false: an example of what not to say")
    if _weight(row, ROW_FLAGS, "the row") == 0:
        raise UntrainedRow


def _weight(value: dict[str, Any], flags: tuple[str, ...], where: str) -> int | None:
    found: dict[str, int] = {}
    for key in flags:
        given = value.get(key)
        if isinstance(given, str):
            given = FLAG_TEXTS.get(given.strip().lower(), given)
        if given is None:
            continue
        if not isinstance(given, int | float) or given not in (0, 1):
            shown = given if isinstance(given, int | float) else type(given).__name__
            detail = f"{where}: {key!r} is {shown}, wanted 0, 1, true or false"
            raise RowError("partial supervision", detail)
        found[key] = int(bool(given) != (key in MASK_FLAGS))
    if len(set(found.values())) > 1:
        keys = " and ".join(map(repr, found))
        raise RowError("contradicting flags", f"{where}: {keys} contradict each other")
    return next(iter(found.values()), None)
