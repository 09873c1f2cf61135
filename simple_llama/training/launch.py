"""Run a stage on one device in this process, or on several by torchrun, in a process for each.

On several machines the stage is started on each, with torchrun's settings as variables, PET_NNODES
and the like (https://docs.pytorch.org/docs/stable/elastic/run.html), or by torchrun itself.
"""

import logging
import os
import signal
import sys
import uuid
import warnings
from collections.abc import Callable, Sequence

import torch

from simple_llama.errors import InputError
from simple_llama.model.device import allowed_devices, claim_devices, use_deterministic_algorithms
from simple_llama.params.execution import ExecutionParams
from simple_llama.params.process import ProcessParams
from simple_llama.params.reading import Params
from simple_llama.process import terminate_with
from simple_llama.stage_code import as_stage
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks, init_process_group

Work = Callable[[torch.device, Ranks], None]
StageWork = Callable[[torch.device, Ranks, Params], None]


def run_stage(module: str, owner: type[ExecutionParams], work: StageWork) -> None:
    """The main() of a stage that computes on devices: read params.yaml, run `work` on the devices
    that the values of `owner` name, and end on a user's mistake in one line."""
    with as_stage(module):
        params = Params()
        run_on_devices(
            module,
            params.section(owner),
            lambda device, ranks: work(device, ranks, params),
            share=params.section(ProcessParams).share_device,
        )


def run_on_devices(module: str, params: ExecutionParams, work: Work, *, share: bool) -> None:
    """Call `work`: here, or in a process for each device that runs `module` again.

    share: other stages may compute on the same devices. Returns, or exits, when all are done.
    """
    if params.deterministic:
        use_deterministic_algorithms()
    if "LOCAL_RANK" in os.environ:  # torchrun started this process
        with terminate_with(os.getppid(), "torchrun"):
            _as_rank(params, work)
        return
    with claim_devices(params.device, params.num_devices, share=share) as chosen:
        if len(chosen) == 1 and os.environ.get("PET_NNODES", "1") == "1":
            work(chosen[0], SINGLE_PROCESS)
        else:
            _launch(module, chosen)


def _as_rank(params: ExecutionParams, work: Work) -> None:
    kind = allowed_devices(params.device)[0].type
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device(kind, int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if os.environ["RANK"] != "0":  # rank 0 prints
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        warnings.simplefilter("ignore")
    with init_process_group(kind, sharded=params.is_sharded) as ranks, ranks.propagate_errors():
        work(device, ranks)


def _launch(module: str, chosen: Sequence[torch.device]) -> None:
    """Run the module once for each device by torchrun's agent, and end as rank 0 ends."""
    if chosen[0].type == "cuda":
        known = (torch.cuda.get_device_properties(device).uuid for device in chosen)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(f"GPU-{uuid}" for uuid in known)
    else:
        threads = max(1, torch.get_num_threads() // len(chosen))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    logging.disable()  # of torchrun's agent: rank 0 prints the errors
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={uuid.uuid4()}"]
    if "PET_NNODES" in os.environ:
        meeting = []  # these variables say where the machines meet
    arguments = [*meeting, f"--nproc-per-node={len(chosen)}", "--module", module]
    config, command, rest = config_from_args(parse_args(arguments))  # type: ignore[no-untyped-call]
    try:
        elastic_launch(config, command)(*rest)
    except ChildFailedError as error:
        first = error.failures.get(0)
        if first is not None and first.exitcode < 0:
            name = signal.Signals(-first.exitcode).name
            raise InputError(f"rank 0 (process {first.pid}) was ended by {name}") from None
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except (RendezvousError, DistError, ValueError) as error:
        raise InputError(f"torchrun: the machines did not meet: {error}") from None
