"""A finished training as the outs of its stage, and as its run in MLflow."""

import shutil
from pathlib import Path

import numpy as np

from simple_llama.data.batches import collate
from simple_llama.files import write_json
from simple_llama.params.reading import Params
from simple_llama.tracking import Run
from simple_llama.training.fine_tuning import ADAPTER, MODEL
from simple_llama.training.loop import report
from simple_llama.training.recorder import Recorder
from simple_llama.training.setup import Setup
from simple_llama.training.state import TrainResult

CURVES = Path("reports/curves")


def publish(
    setup: Setup, result: TrainResult, recorder: Recorder, run: Run, params: Params
) -> None:
    """Write models/ and reports/, and send them to MLflow.

    A process that is killed in it is continued by one that does all of it again.
    """
    data = setup.data
    one_example = collate(data.val, np.arange(1), data.pad_id, None).ids
    run.tag(setup.fine_tuning.publish(recorder.folder, result.best_step, one_example))
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
        {
            name: value
            for name, value in report(result).items()
            if name in ("train_loss", "best_val_loss", "rounded_base_val_loss")
        },
        # published twice, they stand once
        timestamp=int(recorder.curves.rows["train"][-1]["timestamp"]),
    )
    if any(ADAPTER.iterdir()):
        run.log_folder(ADAPTER, "adapter")
    run.log_model(MODEL)
    run.describe(
        f"{setup.name} fine-tuned on {params.values['ft_json_path']}, {result.steps:,} steps.  \n"
        f"Best validation loss {result.best_val_loss:.4f} at step {result.best_step:,}."
    )
    recorder.folder.mark_published(run.id)
    print(
        f"best validation loss {result.best_val_loss:.4f} at step {result.best_step:,}; "
        f"the model is {MODEL}/"
    )
