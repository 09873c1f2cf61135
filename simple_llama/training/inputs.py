"""All that the result of a training depends on, and the key made of it.

dvc.yaml says what the train stage reads: its params and its deps, the base model's folder, the
tokens, the code and the requirements among them. What reruns train for DVC is another training
here, whatever file of a folder it is in.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import torch

from simple_llama.params.reading import Params
from simple_llama.pipeline import dep_digest, read_stages

BASE_DEP, TOKENS_DEP = "${model_path}", "data/tokens"
"""Two of the deps, as dvc.yaml writes them."""
NOT_IN_KEY = ("num_devices",)
"""The resume state itself holds the number of ranks, and refuses another."""


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What one training is made of."""

    params: dict[str, Any]
    files: dict[str, str]
    """Digests of the deps, by the name that dvc.yaml gives them."""
    machine: dict[str, str]
    """What decides the last digits: see model.device.numeric_environment."""
    torch: str

    @classmethod
    def read(cls, params: Params, machine: Mapping[str, str]) -> "TrainingInputs":
        """Of the project in the current folder. Raises InputError, or OSError where one is
        missing."""
        stage, values = read_stages()["train"], params.values
        return cls(
            params={name: values[name] for name in stage.params if name not in NOT_IN_KEY},
            files={dep: dep_digest(dep, values) for dep in stage.deps},
            machine=dict(machine),
            torch=torch.__version__,
        )

    @property
    def key(self) -> str:
        """The name of this training's resume state; any other input gives another."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]
