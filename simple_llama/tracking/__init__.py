"""Every run of the pipeline in MLflow: what went in, what came out, and how it ended.

A run is opened by train and continued by evaluate. MLflow is reached by a thread; when it fails,
training goes on and what it missed is sent later (journal.py).
"""

from simple_llama.tracking.run import Dataset, Identity, Run, evaluation_run, training_run

__all__ = ["Dataset", "Identity", "Run", "evaluation_run", "training_run"]
