"""`simple-llama verify`: measure on your own data and model what the pipeline promises.

It writes no file of the project.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simple_llama.data.batches import evenly_spaced
from simple_llama.data.examples import read_examples
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.prompt_formats import Message
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.evaluation import invariances
from simple_llama.evaluation.invariances import Check
from simple_llama.model.checkpoint import check_fits
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import describe_device, pick_device
from simple_llama.model.folder import load_model
from simple_llama.params.base import BaseParams
from simple_llama.params.evaluate import VALIDATION_SPLIT
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams

TUNED = Path("models/sft")
TRAIN = Path("data/tokens/train.safetensors")
VAL = Path("data/tokens/val.safetensors")
TOKENIZER = Path("data/tokens/tokenizer")
CONVERSATIONS = Path(VALIDATION_SPLIT)

CONVERSATIONS_COMPARED = 300


def verify() -> None:
    """Print each check as soon as it is computed. Raises InputError where one fails."""
    setup = load(Params())
    print(
        f"{setup.folder} on {describe_device(pick_device(setup.params.device), 'fp32')}",
        flush=True,
    )
    done = []
    for result in checks(setup):
        print(result, flush=True)
        done.append(result)
    failed = [result.name for result in done if not result.holds]
    if failed:
        raise InputError(f"{len(failed)} of {len(done)} checks failed: {'; '.join(failed)}")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The model, tokens and conversations that the checks need."""

    folder: Path
    """Where the model came from."""
    model: Decoder
    train: Tokens
    val: Tokens
    tokenizer: ChatTokenizer
    conversations: Mapping[int, Sequence[Message]]
    """Example of `val` → its messages, the last of which is a reply; for some of the examples."""
    params: TrainParams


def load(params: Params) -> Setup:
    """Load the last run's tokens and models/sft, or the base model where there is none yet.

    Raises InputError where there is nothing to verify yet, or model and tokens do not fit.
    """
    settings = params.section(TrainParams)
    base = Path(params.section(BaseParams).model_path)
    folder = TUNED if TUNED.exists() else base
    for path in (TRAIN, VAL, TOKENIZER, CONVERSATIONS, folder):
        if not path.exists():
            raise InputError(f"nothing to verify yet, {path} is absent: run `dvc repro` first")
    tokenizer = ChatTokenizer.from_folder(TOKENIZER)
    check_fits(
        folder, tokenizer.vocab_size, settings.max_seq_len, added_tokens=tokenizer.added_tokens
    )
    val = Tokens.read(VAL)
    return Setup(
        folder=folder,
        model=load_model(
            folder,
            pick_device(settings.device),
            dropout=settings.dropout,
            fused=settings.use_flash_attention,
            vocab_size=tokenizer.vocab_size,
        ).eval(),
        train=Tokens.read(TRAIN),
        val=val,
        tokenizer=tokenizer,
        conversations=_conversations(val),
        params=settings,
    )


def _conversations(val: Tokens) -> Mapping[int, Sequence[Message]]:
    # of a line that makes several examples, the last ends with the line's last reply
    last = np.flatnonzero(np.diff(val.rows, append=-1))
    chosen = last[evenly_spaced(len(last), CONVERSATIONS_COMPARED)]
    examples = {int(val.rows[example]): int(example) for example in chosen}
    found = {
        examples[row]: example.messages
        for row, example in enumerate(read_examples(CONVERSATIONS))
        if row in examples
    }
    if len(found) < len(examples):
        raise InputError(f"{VAL} was not made from {CONVERSATIONS}: run `dvc repro` first")
    return found


def checks(setup: Setup) -> Iterator[Check]:
    """Compute all checks, one after the other. The model must be in eval mode."""
    model, tokenizer, params = setup.model, setup.tokenizer, setup.params
    prompts = invariances.some_prompts(setup.val, model.config.max_length)
    yield from invariances.micro_batching(model, setup.train, tokenizer, params)
    yield invariances.padding(model, setup.train, tokenizer, params)
    yield invariances.packing(model, setup.train, tokenizer, params)
    yield invariances.prompt_identity(setup.val, tokenizer, setup.conversations)
    yield from invariances.evaluation(model, setup.val, tokenizer, params)
    yield invariances.cached_generation(model, prompts, tokenizer)
    yield invariances.batched_generation(model, prompts, tokenizer)
    yield from invariances.saving(model, prompts[0], params)
