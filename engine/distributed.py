"""Joins the processes that a launcher started: torchrun, `camshaft launch`, `srun`, `camshaft.launch` or Ignite's."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist

__all__ = [
    "TIMEOUT_VARIABLE",
    "broadcast",
    "finalise",
    "from_slurm",
    "gather",
    "initialise",
    "rank",
    "world_size",
]

TIMEOUT_VARIABLE = "CAMSHAFT_COLLECTIVE_TIMEOUT"
"""Where `camshaft launch --collective-timeout` leaves its seconds for the programs that it starts."""

_SECONDS_TO_LET_GO = 0.05

# The ids that SLURM gives to the steps of `sbatch`'s script, of `salloc`'s shell, and of processes outside of any step.
# Only one process runs there, though SLURM_NTASKS may say that the job is for many.
_STEPS_OF_ONE_PROCESS = {"4294967290", "4294967291", "4294967292", "batch", "interactive", "extern"}


def initialise(backend: str | None = None, timeout: float | timedelta | None = None) -> bool:
    """Make the process group, if a launcher started this process as one of several and nobody has made it yet.

    Ignite's ``ignite.distributed`` sees it, too. It is destroyed when the process ends. On one process, and when it is
    called again, nothing happens.

    Args:
        backend: ``"nccl"``, ``"gloo"``, ``"xla"`` or whatever torch knows. By default NCCL where each process has a
            CUDA device of its own, XLA where ``PJRT_DEVICE`` says TPU, else gloo.
        timeout: how many seconds a process waits for the others before it gives up with an error. By default what
            ``camshaft launch --collective-timeout`` said, else torch's own: 30 minutes, with NCCL 10.

    Returns:
        Whether there is a process group.

    Raises:
        ValueError: the environment describes several processes, but not all that torch needs to know of them.

    Example:
        >>> initialise()  # python started this process, no launcher
        False
    """
    if not dist.is_available():
        return False
    if dist.is_initialized():
        return True
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        os.environ.update(from_slurm(os.environ))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    _check_environment()

    backend = backend or _default_backend()
    if "nccl" in backend:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if backend == "xla":
        _initialise_xla(_as_timedelta(timeout))
    else:
        dist.init_process_group(backend, timeout=_as_timedelta(timeout))
    with _without("SLURM_JOB_ID", os.environ):  # Ignite would put SLURM's local rank in the place of the launcher's
        idist.sync()
    atexit.register(_finalise_at_exit)
    return True


def rank() -> int:
    """The number of this process, from 0.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """What each process gave, by rank, on every process; all must call this at the same point.

    Args:
        value: anything that can be pickled.

    Example:
        >>> gather("this process")
        ['this process']
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_group_for_objects)
    return values


def broadcast(value: Any) -> Any:
    """What the first process gave, on every process; all must call this at the same point.

    Args:
        value: anything that can be pickled; of the others it is not looked at.

    Example:
        >>> broadcast("runs/digits")
        'runs/digits'
    """
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, group=_group_for_objects)
    return values[0]


def finalise() -> None:
    """Destroy the process group, if there is one; ``initialise`` makes another.

    Example:
        >>> finalise()
    """
    global _group_for_objects  # noqa: PLW0603 - a process has one default group, and this one beside it
    _group_for_objects = None
    atexit.unregister(_finalise_at_exit)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        idist.sync()


def from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, for a process that SLURM's ``srun`` started as one of several, else nothing.

    Args:
        environment: the variables that SLURM set.

    Returns:
        RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR (the first host of the step) and MASTER_PORT (which depends on the job
        and the step, so that two of them on one host do not meet). An address or port that is set already is kept.

    Example:
        >>> from_slurm({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "4711",
        ...             "SLURM_NODELIST": "gpu[07-08]"})["MASTER_ADDR"]
        'gpu07'
        >>> from_slurm({})
        {}
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    if not _is_one_of_a_steps_tasks(environment) or int(tasks) == 1:
        return {}
    nodes = next((environment[name] for name in _NODE_LISTS if environment.get(name)), "127.0.0.1")
    job, step = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": tasks,
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(nodes),
        # Below the ports that Linux gives to outgoing connections.
        "MASTER_PORT": environment.get("MASTER_PORT") or str(15000 + (int(job) + int(step)) % 10000),
    }


_NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")


def _is_one_of_a_steps_tasks(environment: Mapping[str, str]) -> bool:
    if "SLURM_PROCID" not in environment:
        return False
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID")
    if step is None:
        return environment.get("ENVIRONMENT") != "BATCH"
    return step not in _STEPS_OF_ONE_PROCESS


def _first_host(nodes: str) -> str:
    """The first host of SLURM's way to write many, such as ``rack[2-3]gpu[07-09,12],login1``."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group()) if first else nodes


def _check_environment() -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(
                f"The environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, but {name} is not set. A launcher sets "
                "both: start the program with `camshaft launch`, torchrun or srun, or unset WORLD_SIZE."
            )
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])


# Of XLA's process group, whose own collectives take tensors on the device only; None: the default group.
_group_for_objects: dist.ProcessGroup | None = None


def _initialise_xla(timeout: timedelta | None) -> None:
    global _group_for_objects  # noqa: PLW0603
    importlib.import_module("torch_xla.distributed.xla_backend")  # makes torch know the backend and its way to meet
    dist.init_process_group("xla", init_method="xla://", timeout=timeout)
    _group_for_objects = dist.new_group(backend="gloo", timeout=timeout)


def _default_backend() -> str:
    if os.environ.get("PJRT_DEVICE") == "TPU":
        return "xla"
    if not (torch.cuda.is_available() and dist.is_nccl_available()):
        return "gloo"
    devices = torch.cuda.device_count()
    # As `srun --gpus-per-task` and `--virtual-local-rank` do it: one visible device each, but not the same.
    own_device = devices == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > devices and not own_device:
        return "gloo"  # NCCL refuses two processes on one device
    return "nccl"


def _as_timedelta(timeout: float | timedelta | None) -> timedelta | None:
    if timeout is None and TIMEOUT_VARIABLE in os.environ:
        timeout = float(os.environ[TIMEOUT_VARIABLE])
    return timeout if timeout is None or isinstance(timeout, timedelta) else timedelta(seconds=timeout)


def _finalise_at_exit() -> None:
    # A thread of gloo that lets go of a tensor while the interpreter ends makes it abort. The group that sharded models
    # and cached meshes hold outlives it; its threads have nothing left to do a moment after the last exchange.
    gc.collect()
    time.sleep(_SECONDS_TO_LET_GO)
    # After an error, the others may be gone or hang, and NCCL would wait for them. Gloo does not.
    if not (hasattr(sys, "last_value") and dist.is_initialized() and "nccl" in dist.get_backend()):
        finalise()


@contextmanager
def _without(name: str, environment: MutableMapping[str, str]) -> Iterator[None]:
    value = environment.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            environment[name] = value
