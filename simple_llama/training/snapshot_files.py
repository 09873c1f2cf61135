"""The tensors of a snapshot on disk: one safetensors file, or one from each rank.

The latter are written and read by torch.distributed.checkpoint, in its safetensors form: nothing
is pickled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.model.weights import write_safetensors
from simple_llama.training.distributed import Ranks
from simple_llama.training.state import Progress, Snapshot


@dataclass(frozen=True)
class ShardedSnapshot(Snapshot):
    """A snapshot on disk, of which each rank reads its part straight into its own tensors."""

    folder: Path

    def copy_into(self, tensors: Mapping[str, Tensor]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        try:
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(self.folder)))
        except (CheckpointException, ValueError, RuntimeError) as error:
            raise InputError(f"the snapshot is of another training: {error}") from None


def read_snapshot(progress: Progress, path: Path, ranks: Ranks) -> Snapshot:
    """Raises SafetensorError where the file is not one."""
    if ranks.world_size == 1:
        return Snapshot(progress, load_file(path))
    return ShardedSnapshot(progress, {}, path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, ranks: Ranks) -> None:
    """Write a safetensors file; several ranks write a folder together.

    Raises OSError where the disk refuses.
    """
    if ranks.world_size > 1:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        save(
            dict(tensors), storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True)
        )
        return
    try:
        write_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # a full disk, mostly
        raise OSError(None, f"the training's state was not written: {error}", path) from None
