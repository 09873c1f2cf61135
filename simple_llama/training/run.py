"""The train stage's work: set up, continue what was interrupted, train, publish.

Rank 0 holds the locks, the resume state and the tracked run; the others train with it.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from simple_llama import tracking
from simple_llama.errors import InputError
from simple_llama.files import digest_tree
from simple_llama.model.device import describe_device, numeric_environment
from simple_llama.model.quantisation import library_version
from simple_llama.params.process import ProcessParams
from simple_llama.params.reading import Params
from simple_llama.params.tracking import TrackingParams
from simple_llama.process import LOCKS, file_lock, main_root
from simple_llama.training.distributed import Ranks
from simple_llama.training.inputs import BASE_DEP, TOKENS_DEP, TrainingInputs
from simple_llama.training.loop import train
from simple_llama.training.non_main import train_as_non_main
from simple_llama.training.publishing import publish
from simple_llama.training.recorder import Recorder, load_resume_state, save_diverged
from simple_llama.training.resume import RESUME, ResumeFolder, TrainingStart, key_lock
from simple_llama.training.setup import Setup, set_up
from simple_llama.training.state import Diverged, TrainingData


def run_training(device: torch.device, ranks: Ranks, params: Params) -> None:
    """Train on this device, together with all ranks, from the resume state on where there is one,
    and publish.

    Raises InputError, which Diverged becomes too.
    """
    with _alone_in_this_folder() if ranks.is_main else contextlib.nullcontext():
        setup = set_up(params, device, ranks)
        precision, shard = setup.params.precision, setup.params.shard
        several = f", {ranks.world_size} ranks, shard: {shard}" if ranks.world_size > 1 else ""
        print(f"{setup.name} on {describe_device(device, precision)}{several}", flush=True)
        machine = numeric_environment(device, precision)
        if setup.params.lora_base == "nf4":
            machine["bitsandbytes"] = library_version()
        inputs = TrainingInputs.read(params, machine)
        if len(set(ranks.all_gather(inputs.key))) > 1:
            raise InputError(
                "the machines of this training differ in params, data, base model, code or kind "
                "of device, wanted the same on all"
            )
        if ranks.is_main:
            with file_lock(key_lock(main_root(), inputs.key), "another run of this training"):
                _run_as_main(setup, inputs, ranks, params)
        else:
            train_as_non_main(setup, ranks)


@contextlib.contextmanager
def _alone_in_this_folder() -> Iterator[None]:
    """Only one training writes this folder's models/, whatever its params."""
    name = sha256(str(Path.cwd()).encode()).hexdigest()[:12]
    with file_lock(main_root() / LOCKS / f"models-{name}.lock", "another training in this folder"):
        yield


def _run_as_main(setup: Setup, inputs: TrainingInputs, ranks: Ranks, params: Params) -> None:
    interval = params.section(ProcessParams).resume_interval
    folder = ResumeFolder(main_root() / RESUME / inputs.key, interval, ranks)
    state = load_resume_state(folder)
    snapshot = ranks.broadcast(state.snapshot if state else None)
    new = TrainingStart(
        run=dataclasses.asdict(tracking.Identity.new()),
        ranks=ranks.world_size,
        threads=torch.get_num_threads(),
    )
    start = folder.load_or_save_start(new)
    torch.set_num_threads(ranks.broadcast(start.threads))
    with _tracked_run(setup.data, inputs, start, params, continued=start is not new) as run:
        save, epochs = setup.fine_tuning.save, setup.params.ckpt_epochs
        recorder = Recorder(setup.tokenizer, save, run, folder, epochs, state)
        try:
            with ranks.propagate_errors():
                result = train(setup.model, setup.data, setup.params, recorder, snapshot, ranks)
        except Diverged as error:
            recorder.send_metrics()
            kept = save_diverged(error, setup.data, folder)
            run.log_file(kept / "diverged.json", "diverged")
            raise InputError(f"{error}; kept for inspection: {kept}") from None
        except (KeyboardInterrupt, SystemExit):
            recorder.report_interruption()
            raise
        finally:
            recorder.close()
        publish(setup, result, recorder, run, params)


def _tracked_run(
    data: TrainingData,
    inputs: TrainingInputs,
    start: TrainingStart,
    params: Params,
    *,
    continued: bool,
) -> contextlib.AbstractContextManager[tracking.Run]:
    source = params.values["ft_json_path"]
    source_digest = digest_tree(Path(source))
    tracked = tracking.training_values(params)
    if continued:  # the run holds it, and as many ranks may now be on other machines
        del tracked["num_devices"]
    splits = (data.train, data.val)
    return tracking.training_run(
        params.section(TrackingParams),
        params=tracked,
        tags={
            **inputs.machine,
            "torch_threads": str(start.threads),
            "ranks": str(start.ranks),
            "digest.data": source_digest,
            "digest.tokens": inputs.files[TOKENS_DEP],
            "digest.base_model": inputs.files[BASE_DEP],
        },
        dataset=tracking.Dataset(
            name=Path(source).name,
            digest=source_digest,
            source=source,
            counts={
                "train_examples": len(data.train),
                "val_examples": len(data.val),
                "tokens": sum(len(split.ids) for split in splits),
                "supervised_tokens": sum(int(np.count_nonzero(split.mask)) for split in splits),
            },
        ),
        identity=tracking.Identity(**start.run),
    )
