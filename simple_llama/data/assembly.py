"""Turns the pieces of rendered conversations into token ids and loss masks.

Control tokens are inserted as ids and never come from text, so the name of a control token in the
data stays text. Each run of text between two control tokens is encoded separately, as
`transformers` does with a rendered prompt.

    <|im_start|>  user\\nquestion  <|im_end|>  \\n   <|im_start|>  assistant\\n  reply  <|im_end|>
       an id         a text         an id   a text    an id           a text          an id
                                                         the prompt ends ^  supervised from here
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.prompt_formats import Control, Piece, Refusal
from simple_llama.data.tokenizer import TextEncoder, special_ids
from simple_llama.errors import InputError

Encoded = tuple[NDArray[np.uint32], NDArray[np.bool_]]
"""Token ids (T,) and loss mask (T,): whether each token is a target of the loss."""


@dataclass(frozen=True)
class EncodedBatch:
    """B examples, concatenated."""

    ids: NDArray[np.uint32]
    """(N,) token ids."""
    mask: NDArray[np.bool_]
    """(N,) whether each token is a target of the loss."""
    lengths: NDArray[np.int64]
    """(B,) number of tokens of each example."""
    rows: NDArray[np.int64]
    """(B,) index of the conversation of each example; a conversation may make several."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Index of a conversation that the format cannot write → why. It makes one empty example."""

    def examples(self) -> list[Encoded]:
        """The examples, separately."""
        ends = np.cumsum(self.lengths).tolist()
        spans = [slice(start, end) for start, end in zip([0, *ends], ends)]
        return [(self.ids[span], self.mask[span]) for span in spans]


Text = tuple[str, bool]
"""A run of text, and whether it stands at the start of the conversation."""

Run = tuple[int | Text, int]
"""Either (id of a control token, whether it is a target: 0 or 1), or (text, number of characters
before the part of it that is a target)."""

TextIds = dict[Text, NDArray[np.uint32]]


class Assembler:
    """Joins encoded texts and the ids of control tokens."""

    def __init__(self, encoder: TextEncoder, ids: Mapping[str, int]) -> None:
        """ids: name → id of all control tokens."""
        self._encoder, self._ids = encoder, ids
        self._control_ids = {one: np.array([one], np.uint32) for one in ids.values()}
        pad = encoder.id_of(encoder.pad)
        self.is_control = np.zeros(encoder.vocab_size, bool)
        """(V,) whether an id is of a control token, which no text may be encoded to."""
        self.is_control[[*ids.values(), pad, *special_ids(encoder.tokenizer)]] = True
        if encoder.unk is not None:
            self.is_control[encoder.id_of(encoder.unk)] = False

    def __call__(self, conversations: Sequence[list[list[Piece]] | Refusal]) -> EncodedBatch:
        """Encode the examples of each conversation. Raises InputError where the tokenizer encodes
        text to a control token."""
        refused = {
            row: one.reason for row, one in enumerate(conversations) if isinstance(one, Refusal)
        }
        examples = [
            (row, pieces)
            for row, one in enumerate(conversations)
            for pieces in ([[]] if isinstance(one, Refusal) else one)
        ]
        all_runs = [self._runs(pieces) for _, pieces in examples]
        text_ids = self._encode_texts(all_runs)
        pieces = [np.zeros(0, np.uint32)]
        sizes: list[int] = []
        targets: list[bool] = []
        lengths: list[int] = []
        controls = 0
        for (row, _), runs in zip(examples, all_runs):
            before_it = len(pieces), len(sizes), controls
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
                    if prompt is None:
                        refused[row] = _mismatch(run[0], before)
                    pieces.append(segment)
                    sizes += (prompt or 0, len(segment) - (prompt or 0))
                    targets += (False, True)
                    length += len(segment)
            if row in refused:
                first, size, controls = before_it
                del pieces[first:], sizes[size:], targets[size:]
                length = 0
            lengths.append(length)
        flat_ids = np.concatenate(pieces)
        flat_mask = np.repeat(np.array(targets, bool), np.array(sizes, np.int64))
        if np.count_nonzero(self.is_control[flat_ids]) != controls:
            self._refuse_control_from_text(text_ids)
        rows = np.array([row for row, _ in examples], np.int64)
        return EncodedBatch(flat_ids, flat_mask, np.array(lengths, np.int64), rows, refused)

    def _runs(self, pieces: Sequence[Piece]) -> list[Run]:
        """The pieces, with adjacent texts joined."""
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

    def _encode_texts(self, conversations: list[list[Run]]) -> TextIds:
        """The ids of each distinct text, and of the part of it before its target."""
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
            for token in ids[self.is_control[ids]]:
                name = self._encoder.tokenizer.id_to_token(int(token))
                raise InputError(
                    f"the tokenizer makes the control token {name} from the text "
                    f"{_shown(text)}: its model must not hold {name} as a word"
                )
        raise AssertionError("control ids were counted wrongly")


def _prompt_length(run: Text, before: int, text_ids: TextIds) -> int | None:
    """How many ids of a text come before its target; None if the tokenizer gives the prompt other
    ids when a reply follows. Generation continues the ids of the prompt alone, so in training the
    reply must follow the same ids."""
    text, at_start = run
    if before == 0:
        return 0
    if before == len(text):
        return len(text_ids[run])
    prompt = text_ids[text[:before], at_start]
    return len(prompt) if np.array_equal(text_ids[run][: len(prompt)], prompt) else None


def _mismatch(text: str, before: int) -> str:
    return (
        f"the tokenizer makes other ids of {_shown(text[max(0, before - 20) : before])} when "
        f"{_shown(text[before:])} follows: wanted another prompt_format; the prompt of "
        "simple_llama ends in a control token and works with every tokenizer"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
