"""What locks and resuming need of params.yaml; no out of a stage depends on it."""

from dataclasses import dataclass

from simple_llama.strict_yaml import require


@dataclass(frozen=True, kw_only=True)
class ProcessParams:
    resume_interval: float
    """Seconds between two savings of the resume state; 0: at epoch ends only."""
    share_device: bool
    """Whether several stages may compute on one GPU at a time."""

    def __post_init__(self) -> None:
        require(self.resume_interval >= 0, "resume_interval", self.resume_interval, "0 or more")
