"""`python -m stages.train`: data/tokens and model_path → models/sft, curves, an MLflow run."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from simple_llama import tracking
from simple_llama.data.batches import collate
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError, one_line_errors
from simple_llama.files import digest_tree, write_json
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import describe_device, numeric_environment
from simple_llama.model.folder import check_fits, check_token_rows, load_model
from simple_llama.params import (
    BaseParams,
    EvaluateParams,
    Params,
    PrepareParams,
    ProcessParams,
    TrackingParams,
    TrainParams,
    without,
)
from simple_llama.process import LOCKS, file_lock, main_root
from simple_llama.training.distributed import Ranks
from simple_llama.training.fine_tuning import ADAPTER, MODEL, fine_tuning_method
from simple_llama.training.inputs import BASE_DEP, TOKENS_DEP, TrainingInputs
from simple_llama.training.launch import run_on_devices
from simple_llama.training.loop import plan_training, report, train
from simple_llama.training.non_main import NonMainCallback
from simple_llama.training.optimizer import trainable_parameters
from simple_llama.training.recorder import Recorder, load_resume_state, save_diverged
from simple_llama.training.resume import RESUME, ResumeFolder, TrainingStart, key_lock
from simple_llama.training.snapshot_files import write_tensors
from simple_llama.training.state import Diverged, Snapshot, TrainingData, TrainResult

TOKENIZER = Path(TOKENS_DEP, "tokenizer")
CURVES = Path("reports/curves")


def main() -> None:
    with one_line_errors():
        params = Params()
        train_params = params.section(TrainParams)
        run_on_devices(
            "stages.train",
            train_params,
            lambda device, ranks: train_on(device, ranks, params),
            share=params.section(ProcessParams).share_device,
            sharded=train_params.shard == "full",
        )


def train_on(device: torch.device, ranks: Ranks, all_params: Params) -> None:
    """Train on this device, from the resume state on where there is one, and publish."""
    with _alone_in_this_folder() if ranks.is_main else contextlib.nullcontext():
        _train_on(device, ranks, all_params)


def _train_on(device: torch.device, ranks: Ranks, all_params: Params) -> None:
    params = all_params.section(TrainParams)
    base = all_params.section(BaseParams).model_path
    tokenizer = ChatTokenizer.from_folder(TOKENIZER)
    data = TrainingData(
        train=Tokens.read(Path(TOKENS_DEP, "train.safetensors")),
        val=Tokens.read(Path(TOKENS_DEP, "val.safetensors")),
        pad_id=tokenizer.pad_id,
        stop_ids=tokenizer.for_model(base).stop_ids,
    )
    _check_plan(len(data.train), params, ranks)
    model = _base_model(base, tokenizer, params, device, ranks)
    tuning = fine_tuning_method(params, base, TOKENIZER)
    tuning.prepare(model, params)
    name = _name(base, model)
    several = f", {ranks.world_size} ranks, shard: {params.shard}" if ranks.world_size > 1 else ""
    print(f"{name} on {describe_device(device, params.precision)}{several}", flush=True)
    machine = numeric_environment(device, params.precision)
    inputs = TrainingInputs.read(all_params, machine)
    key = _agreed_key(inputs, ranks)
    if not ranks.is_main:
        _follow(model, data, params, ranks)
        return
    with file_lock(key_lock(main_root(), key), "another run of this training"):
        interval = all_params.section(ProcessParams).resume_interval
        folder = ResumeFolder(main_root() / RESUME / key, interval, ranks)
        state = load_resume_state(folder)
        snapshot = ranks.broadcast(state.snapshot if state else None)
        source = all_params.section(PrepareParams).ft_json_path
        data_digest = digest_tree(Path(source))
        new = TrainingStart(
            run=dataclasses.asdict(tracking.Identity.new()),
            ranks=ranks.world_size,
            threads=torch.get_num_threads(),
        )
        start = folder.load_or_save_start(new)
        torch.set_num_threads(ranks.broadcast(start.threads))
        tracked = without(all_params, EvaluateParams)
        if start is not new:  # the run holds it, and as many ranks may now be on other machines
            del tracked["num_devices"]
        with tracking.training_run(
            all_params.section(TrackingParams),
            params=tracked,
            tags={
                **machine,
                "torch_threads": str(start.threads),
                "ranks": str(ranks.world_size),
                "digest.data": data_digest,
                "digest.tokens": inputs.files[TOKENS_DEP],
                "digest.base_model": inputs.files[BASE_DEP],
            },
            dataset=_dataset(source, data_digest, data),
            identity=tracking.Identity(**start.run),
        ) as run:
            recorder = Recorder(tokenizer, tuning.save, run, folder, params.ckpt_epochs, state)
            try:
                with ranks.propagate_errors():
                    result = train(model, data, params, recorder, snapshot, ranks)
            except Diverged as error:
                recorder.send_metrics()
                kept = save_diverged(error, data, folder)
                run.log_file(kept / "diverged.json", "diverged")
                raise InputError(f"{error}; kept for inspection: {kept}") from None
            except (KeyboardInterrupt, SystemExit):
                recorder.report_interruption()
                raise
            finally:
                recorder.close()
            one_example = collate(data.val, np.arange(1), data.pad_id, None).ids
            run.tag(tuning.publish(folder, result.best_step, one_example))
            _publish(result, recorder, run, all_params, name)


def _base_model(
    base: str, tokenizer: ChatTokenizer, params: TrainParams, device: torch.device, ranks: Ranks
) -> Decoder:
    """As training starts from it, with an embedding for each token. Raises InputError where the
    tokenizer, or the way it is trained, does not fit."""
    check_fits(base, tokenizer.vocab_size, params.max_seq_len, added_tokens=tokenizer.added_tokens)
    if params.lora_rank:
        check_token_rows(base, tokenizer.base_vocab_size, tokenizer.control_ids)
    return load_model(
        base,
        device,
        dropout=params.dropout,
        fused=params.use_flash_attention,
        vocab_size=tokenizer.vocab_size,
        trained_vocab_size=tokenizer.base_vocab_size,
        control_ids=tokenizer.control_ids.values(),
        sharded=ranks.sharded,
    )


def _check_plan(examples: int, params: TrainParams, ranks: Ranks) -> None:
    """What cannot be trained opens no run; a shortened warmup is said."""
    steps, warmup = plan_training(examples, params).steps, params.warmup_iterations
    if ranks.is_main and steps < warmup:
        print(f"note: the warmup is shortened from {warmup} steps to the {steps} of this training")


def _name(base: str, model: Decoder) -> str:
    size = sum(parameter.numel() for parameter in model.parameters())
    share = sum(parameter.numel() for parameter in trainable_parameters(model).values()) / size
    of_them = f", {share:.2%} of them trained" if share < 1 else ""
    return f"{base} ({size / 1e6:.1f}M parameters{of_them})"


def _agreed_key(inputs: TrainingInputs, ranks: Ranks) -> str:
    if len(set(ranks.all_gather(inputs.key))) > 1:
        raise InputError(
            "the machines of this training differ in params, data, base model, code or kind of "
            "device, wanted the same on all"
        )
    return inputs.key


def _follow(model: Decoder, data: TrainingData, params: TrainParams, ranks: Ranks) -> None:
    """Train with the others, on a rank that neither speaks nor publishes."""
    snapshot: Snapshot | None = ranks.broadcast(None)
    torch.set_num_threads(ranks.broadcast(0))
    try:
        train(model, data, params, NonMainCallback(ranks, params.ckpt_epochs), snapshot, ranks)
    except Diverged as error:
        write_tensors(error.snapshot.tensors, ranks.broadcast(Path()), ranks)
        raise


@contextlib.contextmanager
def _alone_in_this_folder() -> Iterator[None]:
    """Only one training writes this folder's models/, whatever its params."""
    name = sha256(str(Path.cwd()).encode()).hexdigest()[:12]
    with file_lock(main_root() / LOCKS / f"models-{name}.lock", "another training in this folder"):
        yield


def _dataset(source: str, data_digest: str, data: TrainingData) -> tracking.Dataset:
    splits = (data.train, data.val)
    return tracking.Dataset(
        name=Path(source).name,
        digest=data_digest,
        source=source,
        counts={
            "train_examples": len(data.train),
            "val_examples": len(data.val),
            "tokens": sum(len(split.ids) for split in splits),
            "supervised_tokens": sum(int(np.count_nonzero(split.mask)) for split in splits),
        },
    )


def _publish(
    result: TrainResult, recorder: Recorder, run: tracking.Run, params: Params, base: str
) -> None:
    """The reports, and all for MLflow. Killed anywhere in it, it is done again."""
    shutil.rmtree(CURVES, ignore_errors=True)
    recorder.curves.write(CURVES)
    write_json("reports/train.json", report(result))
    write_json("models/run.json", {"run_id": run.id})
    run.log_file(Path("params.yaml"), "config")
    run.log_folder(CURVES, "curves")
    run.tag(
        {
            "resume.seconds_of_saving": f"{recorder.saving_seconds:.2f}",
            "best_step": str(result.best_step),
        }
    )
    run.log_final(
        {"train_loss": result.train_loss, "best_val_loss": result.best_val_loss},
        # published twice, they stand once
        timestamp=int(recorder.curves.rows["train"][-1]["timestamp"]),
    )
    if any(ADAPTER.iterdir()):
        run.log_folder(ADAPTER, "adapter")
    run.log_model(MODEL)
    run.describe(
        f"{base} fine-tuned on {params.values['ft_json_path']}, {result.steps:,} steps.  \n"
        f"Best validation loss {result.best_val_loss:.4f} at step {result.best_step:,}."
    )
    recorder.folder.mark_published(run.id)
    print(
        f"best validation loss {result.best_val_loss:.4f} at step {result.best_step:,}; "
        f"the model is {MODEL}/"
    )


if __name__ == "__main__":
    main()
