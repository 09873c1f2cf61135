"""`python -m stages.train`: data/tokens and model_path → models/sft, curves, an MLflow run."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from simple_llama import tracking
from simple_llama.data.batches import Plan
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError, one_line_errors
from simple_llama.files import digest, write_csv, write_json
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import describe, pick_device
from simple_llama.model.folder import check_fits, load_model, save_model, weight_files
from simple_llama.params import (
    BaseParams,
    EvaluateParams,
    Params,
    PrepareParams,
    TrackingParams,
    TrainParams,
    without,
)
from simple_llama.training.console import Console
from simple_llama.training.loop import (
    Diverged,
    StepRecord,
    TrainingData,
    TrainResult,
    plan_training,
    report,
    train,
)

TOKENS = (Path("data/tokens/train.safetensors"), Path("data/tokens/val.safetensors"))
TOKENIZER = Path("data/tokens/tokenizer")
MODEL = Path("models/sft")
CHECKPOINTS = Path("models/checkpoints")
CURVES = Path("reports/curves")
TRAIN_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")
DIVERGED = Path(".resume/diverged.json")


def main() -> None:
    with one_line_errors():
        all_params = Params()
        params = all_params.section(TrainParams)
        base = all_params.section(BaseParams).model_path
        tokenizer = ChatTokenizer.from_folder(TOKENIZER)
        data = TrainingData(
            train=Tokens.read(TOKENS[0]),
            val=Tokens.read(TOKENS[1]),
            pad_id=tokenizer.pad_id,
            stop_id=tokenizer.stop_id,
        )
        plan_training(len(data.train), params)  # what cannot be trained opens no run
        device = pick_device(params.device)
        check_fits(base, tokenizer.vocab_size, params.max_seq_len)
        model = load_model(base, device, dropout=params.dropout, fused=params.use_flash_attention)
        size = sum(parameter.numel() for parameter in model.parameters())
        where = describe(device, params.precision)
        print(f"{base}: {size / 1e6:.1f}M parameters on {where}", flush=True)
        source = all_params.section(PrepareParams).ft_json_path
        data_digest = digest(_files(Path(source)))
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        with tracking.training_run(
            all_params.section(TrackingParams),
            params=without(all_params, EvaluateParams),
            tags=_tags(base, data_digest, where),
            dataset=_dataset(source, data_digest, data),
        ) as run:
            recorder = Recorder(tokenizer, run, params.ckpt_epochs)
            try:
                result = train(model, data, params, recorder)
            except Diverged as error:
                path = tracking.main_root() / DIVERGED
                rows = data.train.rows[error.examples].tolist()
                write_json(path, {"step": error.step, "rows_of_train_jsonl_from_0": rows})
                run.log_file(path, "diverged")
                raise InputError(f"{error}; the step's examples: {path}") from None
            finally:
                recorder.close()
            _write(result, recorder, run, all_params, f"{base} ({size / 1e6:.1f}M parameters)")


class Recorder(Console):
    """Prints, keeps the curves, sends them to MLflow, and saves the models."""

    def __init__(self, tokenizer: ChatTokenizer, run: tracking.Run, ckpt_epochs: int) -> None:
        super().__init__(tokenizer.decode)
        self.run = run
        self.ckpt_epochs = ckpt_epochs
        self.train_curve: list[Mapping[str, float]] = []
        self.interval_curve: list[Mapping[str, float]] = []
        self.val_curve: list[Mapping[str, float]] = []

    def started(self, plan: Plan) -> None:
        super().started(plan)
        self.run.tag({"steps_planned": str(plan.steps)})

    def stepped(self, record: StepRecord) -> None:
        super().stepped(record)
        point = {"loss": record.loss, "lr": record.lr, "grad_norm": record.grad_norm}
        self.train_curve.append({"step": record.step, "epoch": record.epoch, **point})
        speed = record.tokens / record.seconds
        self.run.log(record.step, {**point, "tokens_per_second": speed})

    def validated(self, step: int, loss: float, examples: int, *, full: bool) -> None:
        super().validated(step, loss, examples, full=full)
        curve = self.val_curve if full else self.interval_curve
        curve.append({"step": step, "val_loss": loss})
        self.run.log(step, {"val_loss" if full else "val_loss_interval": loss})

    def sampled(
        self, step: int, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> None:
        super().sampled(step, prompts, replies)
        rows = [
            {"step": step, "prompt": self.decode(prompt), "reply": self.decode(reply)}
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
        self.run.log_table(rows, "samples/during_training.json")

    def improved(self, model: Decoder) -> None:
        save_model(model, MODEL, TOKENIZER)

    def epoch_ended(self, epoch: int, model: Decoder) -> None:
        if self.ckpt_epochs and epoch % self.ckpt_epochs == 0:
            save_model(model, CHECKPOINTS / f"epoch-{epoch:02}", TOKENIZER)


def _tags(base: str, data: str, where: str) -> dict[str, str]:
    return {
        "device": where,
        "torch": torch.__version__,
        "torch_threads": str(torch.get_num_threads()),
        "digest.data": data,
        "digest.tokens": digest(TOKENS),
        "digest.base_model": digest(weight_files(base)),
    }


def _files(path: Path) -> list[Path]:
    """A file, or what a folder holds."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


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


def _write(
    result: TrainResult, recorder: Recorder, run: tracking.Run, params: Params, base: str
) -> None:
    """The stage's outs, and the same for MLflow."""
    shutil.rmtree(CURVES, ignore_errors=True)
    write_csv(CURVES / "train.csv", recorder.train_curve, TRAIN_COLUMNS)
    write_csv(CURVES / "interval.csv", recorder.interval_curve, ("step", "val_loss"))
    write_csv(CURVES / "val.csv", recorder.val_curve, ("step", "val_loss"))
    write_json("reports/train.json", report(result))
    write_json("models/run.json", {"run_id": run.id})
    run.log_file(Path("params.yaml"), "config")
    run.log_folder(CURVES, "curves")
    run.log_final(
        {
            "train_loss": result.train_loss,
            "best_val_loss": result.best_val_loss,
            "best_step": result.best_step,
        }
    )
    run.log_model(MODEL)
    run.describe(
        f"{base} fine-tuned on {params.values['ft_json_path']}, {result.steps:,} steps.  \n"
        f"Best validation loss {result.best_val_loss:.4f} at step {result.best_step:,}."
    )
    print(
        f"best validation loss {result.best_val_loss:.4f} at step {result.best_step:,}; "
        f"the model is {MODEL}/"
    )


if __name__ == "__main__":
    main()
