"""The owners of all keys: what the whole params.yaml of the pipeline is checked against.

No stage's result depends on this file: a stage reads the values of its own owners.
"""

from simple_llama.params.base import BaseParams
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.prepare import PrepareParams
from simple_llama.params.process import ProcessParams
from simple_llama.params.tokenize import TokenizeParams
from simple_llama.params.tracking import TrackingParams
from simple_llama.params.train import TrainParams

PIPELINE = (
    PrepareParams,
    TokenizeParams,
    BaseParams,
    TrainParams,
    EvaluateParams,
    TrackingParams,
    ProcessParams,
)
"""In the order of the data."""
