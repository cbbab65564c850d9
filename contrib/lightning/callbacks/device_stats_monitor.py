"""Logs the memory of the accelerator, and the load of the CPU.

Called before and after each batch of training, validation and testing; it reads only what will be logged.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.callbacks.logging_moments import is_time_to_log, steps_before
from camshaft.contrib.lightning.trainer.states import TrainerFn
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["DeviceStatsMonitor", "cpu_stats", "device_stats"]


class DeviceStatsMonitor(Callback):
    """Logs the statistics of the device, as "DeviceStatsMonitor.on_train_batch_end/allocated_bytes.all.peak".

    On CUDA devices these are all of ``torch.cuda.memory_stats``; of the CPU the load, and the shares of memory and swap
    in use, which need the package psutil.

    Args:
        cpu_stats: whether those of the CPU are logged; by default where the CPU is the device.

    Raises:
        MisconfigurationException: when ``fit`` starts, if there is no logger.
        ModuleNotFoundError: when ``fit`` starts, if psutil is needed and not installed.

    Example:
        >>> DeviceStatsMonitor(cpu_stats=False).state_key
        'DeviceStatsMonitor'
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self._cpu_stats = cpu_stats

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == TrainerFn.FITTING and not trainer.loggers:
            raise MisconfigurationException("DeviceStatsMonitor needs a logger, but the Trainer has none.")
        is_cpu = trainer.strategy.root_device.type == "cpu"
        self._logs_cpu = is_cpu if self._cpu_stats is None else self._cpu_stats
        if self._logs_cpu:
            cpu_stats()  # whose first answer has nothing to compare with

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._log(trainer, "on_train_batch_start", batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._log(trainer, "on_train_batch_end", batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._log(trainer, "on_validation_batch_start", batch_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log(trainer, "on_validation_batch_end", batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._log(trainer, "on_test_batch_start", batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._log(trainer, "on_test_batch_end", batch_idx)

    def _log(self, trainer: Trainer, hook: str, batch_idx: int) -> None:
        has_ended = hook == "on_train_batch_end"
        if not is_time_to_log(trainer, batch_idx, has_ended=has_ended):
            return
        stats = device_stats(trainer.strategy.root_device)
        if self._logs_cpu:
            stats.update(cpu_stats())
        step = steps_before(trainer, has_ended=has_ended)
        for logger in trainer.loggers if stats else ():
            prefix = f"{type(self).__qualname__}.{hook}{logger.group_separator}"
            logger.log_metrics({prefix + name: value for name, value in stats.items()}, step=step)


def device_stats(device: torch.device) -> dict[str, float]:
    """What an accelerator tells of its memory, in bytes; nothing for the CPU.

    Example:
        >>> device_stats(torch.device("cpu"))
        {}
    """
    if device.type == "cuda":
        return dict(torch.cuda.memory_stats(device))
    if device.type == "mps":
        return {
            "allocated_bytes.all.current": float(torch.mps.current_allocated_memory()),
            "reserved_bytes.all.current": float(torch.mps.driver_allocated_memory()),
        }
    return {}


def cpu_stats() -> dict[str, float]:
    """The load of the machine since the last call, and the shares of its memory and swap in use, in percent.

    Raises:
        ModuleNotFoundError: psutil is not installed.
    """
    try:
        psutil = import_module("psutil")  # only who logs these needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "DeviceStatsMonitor reads the load of the CPU by psutil, which is not installed: `pip install psutil`, or "
            "pass DeviceStatsMonitor(cpu_stats=False)."
        ) from error
    return {
        "cpu_percent": psutil.cpu_percent(),
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_swap_percent": psutil.swap_memory().percent,
    }
