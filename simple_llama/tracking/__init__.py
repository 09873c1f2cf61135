"""Records every run of the pipeline in MLflow: its inputs, its results and how it ended.

The train stage opens a run, and the evaluate stage continues it. A thread sends everything to
MLflow. If MLflow fails, training continues, and what MLflow missed is sent later (journal.py).
"""

from simple_llama.tracking.logged_params import evaluation_values, training_values
from simple_llama.tracking.run import Dataset, Identity, Run, evaluation_run, training_run

__all__ = [
    "Dataset",
    "Identity",
    "Run",
    "evaluation_run",
    "evaluation_values",
    "training_run",
    "training_values",
]
