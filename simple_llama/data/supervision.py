"""What rows and messages say about whether they are trained: the flags in use, read as 0 or 1.

`weight` is OpenAI's (https://platform.openai.com/docs/guides/supervised-fine-tuning), `training`
and `train` are axolotl's (https://docs.axolotl.ai/docs/dataset-formats/conversation.html), the
others are found in published data sets.
"""

from typing import Any

from simple_llama.data.rows import RowError

TRAINED = ("train", "training", "trainable", "learn")
MASKED = ("masked", "mask")
WEIGHTS = ("weight", "loss_weight", "loss", "loss_mask")
MESSAGE_FLAGS = (*TRAINED, *MASKED, *WEIGHTS)
ROW_FLAGS = ("weight", "loss_weight", "sample_weight", "loss_mask", *TRAINED, *MASKED)
"""Without `loss`, which is a score of a row."""
AS_TEXT = {"0": 0, "1": 1, "false": 0, "true": 1, "": None}
"""What a table without types, such as CSV, has in the place of a flag."""
BY_CHARACTER = "train_detail"


class LeftOut(Exception):
    """The row says that nothing of it is to be trained."""


def message_weight(message: dict[str, Any], where: str) -> int | None:
    """1 or 0: whether a message says that it is trained; None: it says nothing.

    Raises RowError for weights between, for flags that contradict each other, and for parts of a
    message.
    """
    if message.get(BY_CHARACTER) is not None:
        raise RowError(
            "partial supervision",
            f"{where}: {BY_CHARACTER!r}; a message is trained as a whole, or not",
        )
    return _weight(message, MESSAGE_FLAGS, where)


def check_row(row: dict[str, Any]) -> None:
    """Raises LeftOut where a row's flags say so, RowError where they can't be followed or its label
    says that it is an answer nobody wants (https://huggingface.co/docs/trl/dataset_formats)."""
    if str(row.get("label")).lower() == "false":
        raise RowError("not wanted", "'label' is false: an example of what not to say")
    if _weight(row, ROW_FLAGS, "the row") == 0:
        raise LeftOut


def _weight(value: dict[str, Any], flags: tuple[str, ...], where: str) -> int | None:
    found: dict[str, int] = {}
    for key in flags:
        given = value.get(key)
        if isinstance(given, str):
            given = AS_TEXT.get(given.strip().lower(), given)
        if given is None:
            continue
        if not isinstance(given, int | float) or given not in (0, 1):
            shown = given if isinstance(given, int | float) else type(given).__name__
            detail = f"{where}: {key!r} is {shown}, wanted 0, 1, true or false"
            raise RowError("partial supervision", detail)
        found[key] = int(bool(given) != (key in MASKED))
    if len(set(found.values())) > 1:
        keys = " and ".join(map(repr, found))
        raise RowError("contradicting flags", f"{where}: {keys} contradict each other")
    return next(iter(found.values()), None)
