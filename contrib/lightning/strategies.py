"""How many processes a Trainer uses, and how its model is spread over them."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from camshaft.contrib.lightning.data import in_order
from camshaft.contrib.lightning.devices import root_device
from camshaft.contrib.lightning.trainer.states import TrainerFn
from camshaft.contrib.lightning.transfer import attach_transfer
from camshaft.engine.distributed import broadcast, initialise, rank, world_size
from camshaft.engine.sharded import sharded_like, whole
from camshaft.handlers.amp import AMP
from camshaft.handlers.data_parallel import DataParallel
from camshaft.handlers.device import moved
from camshaft.handlers.distributed_sampling import DistributedSampling
from camshaft.handlers.fully_sharded import FullySharded

__all__ = ["DDPStrategy", "FSDPStrategy", "SingleDeviceStrategy", "Strategy", "strategy_of"]


class Strategy:
    """One model on one device; the base of the others.

    Attributes:
        accelerator: the kind of device.
        device_ids: of this machine's processes.
        lightning_module: the module, once it is known.

    Example:
        >>> SingleDeviceStrategy().root_device
        device(type='cpu')
    """

    strategy_name = "single_device"
    spreads = False  # over processes

    def __init__(self, device: str | torch.device | None = None, accelerator: Any = None, **unsupported: Any) -> None:
        refuse(unsupported, type(self).__name__)
        self.accelerator = "cpu" if device is None else torch.device(device).type
        self.device_ids = [0]
        self.num_nodes = 1
        self.lightning_module: Any = None
        self.trainer: Any = None
        self._step_module: _Step | None = None
        self._sampling = DistributedSampling()

    # -------------------------------------------------------------------------------------------- what callbacks use

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        return root_device(self.accelerator, self.device_ids)

    @property
    def model(self) -> Any:
        """The module."""
        return self.lightning_module

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process of all."""
        return self.global_rank == 0

    @property
    def global_rank(self) -> int:
        """The number of this process among all."""
        return rank() if dist.is_available() and dist.is_initialized() else int(os.environ.get("RANK", "0"))

    @property
    def local_rank(self) -> int:
        """The number of this process on its machine."""
        return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0")

    @property
    def node_rank(self) -> int:
        """The number of this machine."""
        return int(os.environ.get("GROUP_RANK") or os.environ.get("NODE_RANK") or "0")

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return world_size()

    def barrier(self, name: str | None = None) -> None:
        """Wait for the other processes."""
        if world_size() > 1:
            dist.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """What process ``src`` gave, on every process."""
        if src == 0 or world_size() == 1:
            return broadcast(obj)
        values = [obj]
        dist.broadcast_object_list(values, src=src)
        return values[0]

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """The mean, or sum, of a number over all processes."""
        if world_size() == 1 or not isinstance(tensor, torch.Tensor):
            return tensor
        total = tensor.detach().clone()
        if str(reduce_op).lower() in ("mean", "avg"):
            total = total.float() if not total.is_floating_point() else total
            dist.all_reduce(total)
            return total / world_size()
        dist.all_reduce(total)
        return total

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """The tensors of all processes, stacked along a new first dimension."""
        if isinstance(data, torch.Tensor):
            if sync_grads:
                from torch.distributed.nn import functional  # noqa: PLC0415 - rarely needed

                return torch.stack(functional.all_gather(data))
            gathered = [torch.empty_like(data) for _ in range(world_size())]
            dist.all_gather(gathered, data.contiguous())
            return torch.stack(gathered)
        if isinstance(data, dict):
            return {key: self.all_gather(value, sync_grads=sync_grads) for key, value in data.items()}
        if isinstance(data, (list, tuple)):
            return type(data)(self.all_gather(value, sync_grads=sync_grads) for value in data)
        return self.all_gather(torch.tensor(data, device=self.root_device))

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:  # noqa: A002 - Lightning's name
        """Whether all, or any, of the processes say so."""
        if world_size() == 1:
            return decision
        votes = torch.tensor(int(decision), device=self.root_device)
        dist.all_reduce(votes)
        return bool(votes == world_size()) if all else bool(votes > 0)

    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        """Delete a checkpoint; the first process does it."""
        if self.is_global_zero:
            Path(filepath).unlink(missing_ok=True)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """A batch on the device."""
        return moved(batch, device or self.root_device)

    # ---------------------------------------------------------------------------------------- what the Trainer uses

    @property
    def processes(self) -> int:
        """How many processes there are to be on this machine."""
        return len(self.device_ids)

    def setup_environment(self) -> None:
        """Join the other processes, if a launcher has started several."""
        initialise()

    def prepare_engine(self, engine: Any, evaluation: Any = None) -> None:
        """Attach what places data and model, to the engine that trains or to that of an evaluation."""
        trainer, module = self.trainer, self.lightning_module
        attach_transfer(engine, evaluation, trainer)
        precision = trainer.precision_settings
        if precision.amp is not None and (evaluation is not None or module.automatic_optimization):
            engine.attach(AMP(precision.amp))
        if evaluation is None and world_size() > 1 and trainer.use_distributed_sampler:
            engine.attach(self._sampling)

    def prepared_to_train(self, loader: Any) -> Any:
        """A loader as this process uses it: all processes take as many batches of it."""
        return self._prepared(loader, even=True)

    def prepared_to_evaluate(self, loader: Any) -> Any:
        """A loader as this process uses it: all processes together take every sample once."""
        return self._prepared(loader, even=False)

    def _prepared(self, loader: Any, *, even: bool) -> Any:
        if self.trainer.overfit_batches and self.trainer.state.fn == TrainerFn.FITTING:
            loader = in_order(loader)
        if world_size() == 1 or not self.trainer.use_distributed_sampler:
            return loader
        return self._sampling._share_of(loader, even)

    def prepare_training(self, engine: Any) -> None:
        """Attach what spreads the model."""

    def step(self, name: str) -> Any:
        """What is called for a batch: ``training_step`` and so on, directly or through what spreads the model."""
        return getattr(self.lightning_module, name)

    def model_state_dict(self) -> dict[str, Any]:
        """All weights, whole."""
        state: dict[str, Any] = self.lightning_module.state_dict()
        return state

    def optimizer_state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of an optimizer, whole."""
        return optimizer.state_dict()

    def load_model_state_dict(self, state: dict[str, Any], *, strict: bool) -> None:
        """Take over weights."""
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take over the state of an optimizer."""
        optimizer.load_state_dict(state)


class SingleDeviceStrategy(Strategy):
    """One process."""


class DDPStrategy(Strategy):
    """A copy of the model on each process, which exchange gradients: torch's ``DistributedDataParallel``.

    Args:
        find_unused_parameters: and the other options of ``DistributedDataParallel``.
        process_group_backend: ``"nccl"``, ``"gloo"``; by the device if left out.
        timeout: how long a process waits for the others.
        start_method: accepted; other processes are started by the same command line.

    Example:
        >>> DDPStrategy(find_unused_parameters=True).options
        {'find_unused_parameters': True}
    """

    strategy_name = "ddp"
    spreads = True
    spread_steps: tuple[str, ...] = ("training_step",)  # those that go through what spreads the model

    def __init__(
        self,
        accelerator: Any = None,
        process_group_backend: str | None = None,
        timeout: Any = None,
        start_method: str = "popen",
        **options: Any,
    ) -> None:
        super().__init__()
        known = {
            "find_unused_parameters",
            "static_graph",
            "gradient_as_bucket_view",
            "bucket_cap_mb",
            "broadcast_buffers",
        }
        refuse({key: value for key, value in options.items() if key not in known}, type(self).__name__)
        self.options = options
        self.process_group_backend = process_group_backend
        self.timeout = timeout

    def setup_environment(self) -> None:
        if self.processes * self.num_nodes > 1 and "WORLD_SIZE" not in os.environ and "SLURM_PROCID" not in os.environ:
            if self.num_nodes > 1:
                raise ValueError(
                    f"Trainer(num_nodes={self.num_nodes}): start the program on each machine by a launcher: camshaft "
                    "launch --nnodes ... (or torchrun, or srun)."
                )
            start_other_processes(self.processes)
        initialise(self.process_group_backend or ("gloo" if self.accelerator == "cpu" else None), self.timeout)

    def prepare_training(self, engine: Any) -> None:
        if world_size() > 1:
            assert self._step_module is not None
            engine.attach(DataParallel(self._step_module, **self.options))

    def step(self, name: str) -> Any:
        if world_size() == 1 or name not in self.spread_steps:
            return super().step(name)
        if self._step_module is None or self._step_module.module is not self.lightning_module:
            self._step_module = _Step(self.lightning_module)
        step_module = self._step_module

        @functools.wraps(super().step(name))
        def step(*args: Any) -> Any:
            return step_module(name, *args)

        return step


class FSDPStrategy(DDPStrategy):
    """The model in shards over the processes: torch's ``fully_shard`` (FSDP2), by :class:`FullySharded`.

    Checkpoints hold whole weights and states, so that any number of processes goes on with them.

    Args:
        process_group_backend: ``"nccl"``, ``"gloo"``; by the device if left out.
        timeout: how long a process waits for the others.
        auto_wrap_policy: which parts are sharded on their own: a set of module classes, or a function of a module.
        cpu_offload: keep the shards in the CPU's memory.
        options: of ``FullySharded``.

    Example:
        >>> FSDPStrategy(cpu_offload=True).sharding
        {'cpu_offload': True}
    """

    strategy_name = "fsdp"
    spread_steps = ("training_step", "validation_step", "test_step", "predict_step")

    def __init__(
        self,
        accelerator: Any = None,
        process_group_backend: str | None = None,
        timeout: Any = None,
        auto_wrap_policy: Any = None,
        cpu_offload: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(accelerator, process_group_backend, timeout)
        self.sharding: dict[str, Any] = {"cpu_offload": cpu_offload, **options}
        if auto_wrap_policy is not None:
            is_set = isinstance(auto_wrap_policy, (set, frozenset))
            self.sharding["wrap"] = tuple(auto_wrap_policy) if is_set else auto_wrap_policy

    def prepare_training(self, engine: Any) -> None:
        if world_size() > 1:
            assert self._step_module is not None
            engine.attach(FullySharded(self._step_module, **self.sharding))

    def model_state_dict(self) -> dict[str, Any]:
        return {name: whole(tensor) for name, tensor in super().model_state_dict().items()}

    def optimizer_state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = _each_tensor(optimizer.state_dict(), whole)
        return state

    def load_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        of_parameters = {
            index: {
                name: sharded_like(parameters[index], value)
                if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape
                else value
                for name, value in own.items()
            }
            for index, own in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": of_parameters})


def _each_tensor(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Nested mappings and lists with each tensor replaced."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _each_tensor(item, function) for key, item in value.items()}
    return [_each_tensor(item, function) for item in value] if isinstance(value, list) else value


class _Step(nn.Module):
    """A module whose forward is a step of another: what spreads a model goes around it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, name: str, *args: Any) -> Any:
        return getattr(self.module, name)(*args)

    @property
    def training(self) -> bool:
        """That of the module, which alone is put into evaluation mode."""
        module = self._modules.get("module") if "_modules" in self.__dict__ else None
        return True if module is None else module.training

    @training.setter
    def training(self, training: bool) -> None:
        """It follows the module."""


_REFUSED = {
    "dp": "it was removed from torch's recommendations; use 'ddp'",
    "deepspeed": "use 'fsdp'",
    "ddp_spawn": "processes are started by the same command line; use 'ddp', or camshaft.launch(main, nproc=N)",
    "ddp_fork": "use camshaft.launch(main, nproc=N)",
    "ddp_notebook": "use camshaft.launch(main, nproc=N), which works in a notebook",
}


def strategy_of(strategy: Any, *, processes: int) -> Strategy:
    """The strategy that ``strategy=`` means.

    Args:
        strategy: a name, or an object.
        processes: how many there are to be.

    Raises:
        ValueError: an unknown one, or one that is not supported.

    Example:
        >>> type(strategy_of("auto", processes=2)).__name__
        'DDPStrategy'
    """
    if isinstance(strategy, Strategy):
        return strategy
    name = str(strategy)
    if name == "auto":
        return DDPStrategy() if processes > 1 else SingleDeviceStrategy()
    if name == "ddp_find_unused_parameters_true":
        return DDPStrategy(find_unused_parameters=True)
    if name in ("ddp", "ddp_find_unused_parameters_false", "ddp_cpu", "ddp2"):
        return DDPStrategy()
    if name == "fsdp":
        return FSDPStrategy()
    if name == "single_device":
        return SingleDeviceStrategy()
    reason = next((reason for known, reason in _REFUSED.items() if name.startswith(known)), "it is not known")
    raise ValueError(f"Trainer(strategy={strategy!r}) is not supported: {reason}. There are 'auto', 'ddp' and 'fsdp'.")


def refuse(unsupported: dict[str, Any], where: str) -> None:
    """Refuse arguments that would do nothing.

    Raises:
        TypeError: there are some.
    """
    if unsupported:
        raise TypeError(f"{where} does not support {', '.join(f'{key}=' for key in unsupported)}.")


def start_other_processes(number: int) -> None:
    """Start this program ``number`` - 1 times more, as the other processes of this machine, and become the first.

    Args:
        number: of processes.

    Raises:
        RuntimeError: it cannot be started again: it was typed in.
    """
    main = sys.modules.get("__main__")
    if getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None:
        raise RuntimeError(
            f"Trainer(devices={number}) starts the same program {number - 1} times more, but this one was typed in: "
            "use camshaft.launch(main, nproc=N)."
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    command = [sys.executable, *sys.orig_argv[1:]]
    others = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(index), "LOCAL_RANK": str(index)})
        for index in range(1, number)
    ]
    os.environ.update({**common, "RANK": "0", "LOCAL_RANK": "0"})
    atexit.register(_end, others)
    threading.Thread(target=_watch, args=(others,), daemon=True).start()


def _watch(others: list[subprocess.Popen[bytes]]) -> None:
    """End this process, too, when another one fails: it would wait for it."""
    waiting = list(others)
    while waiting:
        for process in list(waiting):
            try:
                status = process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            waiting.remove(process)
            if status:
                sys.stderr.write(f"Process {others.index(process) + 1} of {len(others) + 1} ended with {status}.\n")
                _end(others)
                os.kill(os.getpid(), signal.SIGTERM)
                return


def _end(others: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the other processes for a moment, then end them."""
    for process in others:
        try:
            process.wait(timeout=30 if sys.exc_info()[0] is None and not hasattr(sys, "last_value") else 1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
