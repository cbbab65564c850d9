"""Logs how many batches, samples and operations a second are worked off.

Called at the start of training, validation, testing and prediction, and after each of their batches; on CUDA devices it
waits for the device there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.callbacks.logging_moments import is_time_to_log, steps_before
from camshaft.contrib.lightning.trainer.states import RunningStage, TrainerFn

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["Throughput", "ThroughputMonitor", "measure_flops"]


class Throughput:
    """Computes rates over the last updates.

    Args:
        available_flops: what a device can do in a second, for the share of it that is used ("mfu").
        world_size: how many devices; with more than one, the rates of all are there beside those of each ("device/…").
        window_size: over how many updates; there are no rates before so many.
        separator: between "device" and the name of a rate.

    Raises:
        ValueError: a window of less than two updates.

    Example:
        >>> throughput = Throughput(window_size=2)
        >>> throughput.update(time=1.0, batches=1, samples=32)
        >>> throughput.update(time=3.0, batches=2, samples=64)
        >>> throughput.compute()["device/samples_per_sec"]
        16.0
    """

    def __init__(
        self, available_flops: float | None = None, world_size: int = 1, window_size: int = 100, separator: str = "/"
    ) -> None:
        if window_size < 2:
            raise ValueError(f"A rate needs at least two updates, but window_size is {window_size}.")
        self.available_flops = available_flops
        self.world_size = world_size
        self.separator = separator
        self._totals: deque[dict[str, float]] = deque(maxlen=window_size)
        self._flops: deque[float] = deque(maxlen=window_size)

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: float | None = None
    ) -> None:
        """Take in totals since the beginning.

        Args:
            time: in seconds.
            batches: of this device.
            samples: of this device.
            lengths: of the samples.
            flops: of this device since the last update.

        Raises:
            ValueError: one of them has not grown, or there are fewer samples than batches, or less length than samples.
        """
        totals: dict[str, float] = {"time": time, "batches": batches, "samples": samples}
        if lengths is not None:
            totals["lengths"] = lengths
        for name, total in totals.items():
            if self._totals and not total > self._totals[-1].get(name, -1):
                raise ValueError(f"The total of {name} grows, but {total} follows {self._totals[-1][name]}.")
        if samples < batches or (lengths is not None and lengths < samples):
            raise ValueError(
                f"A batch has at least a sample, and a sample a length of 1: {batches=}, {samples=}, {lengths=}."
            )
        self._totals.append(totals)
        if flops is not None:
            self._flops.append(flops * self.world_size)

    def compute(self) -> dict[str, float]:
        """The totals, and the rates once the window is full."""
        first, last = self._totals[0], self._totals[-1]
        metrics = dict(last)
        elapsed = last["time"] - first["time"]
        if len(self._totals) == self._totals.maxlen:
            names = {"batches": "batches", "samples": "samples", "lengths": "items"}
            for name in names.keys() & first.keys() & last.keys():
                self._add_rate(metrics, names[name], (last[name] - first[name]) / elapsed)
        if len(self._flops) == self._flops.maxlen:
            of_device = (sum(self._flops) - self._flops[0]) / elapsed / self.world_size
            self._add_rate(metrics, "flops", of_device)
            if self.available_flops:
                metrics[f"device{self.separator}mfu"] = of_device / self.available_flops
        return metrics

    def _add_rate(self, metrics: dict[str, float], name: str, of_device: float) -> None:
        metrics[f"device{self.separator}{name}_per_sec"] = of_device
        if self.world_size > 1:
            metrics[f"{name}_per_sec"] = of_device * self.world_size

    def reset(self) -> None:
        """Begin anew."""
        self._totals.clear()
        self._flops.clear()


class ThroughputMonitor(Callback):
    """Logs the rates of :class:`Throughput`, as "train/device/samples_per_sec".

    Where the module has ``flops_per_batch`` (see :func:`measure_flops`), also those of operations.

    Args:
        batch_size_fn: the number of samples of a batch.
        length_fn: the sum of their lengths.
        kwargs: of :class:`Throughput`; give ``available_flops`` to know the share of these that is used.

    Example:
        >>> ThroughputMonitor(batch_size_fn=len, window_size=10).kwargs
        {'window_size': 10}
    """

    def __init__(
        self, batch_size_fn: Callable[[Any], int], length_fn: Callable[[Any], int] | None = None, **kwargs: Any
    ) -> None:
        self.kwargs = kwargs
        self.batch_size_fn = batch_size_fn
        self.length_fn = length_fn
        self.available_flops: float | None = kwargs.get("available_flops")
        self._clocks: dict[RunningStage, _Clock] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        Throughput(world_size=trainer.world_size, **self.kwargs)  # which refuses what it cannot take
        self._clocks = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, RunningStage.TRAINING)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._update(trainer, pl_module, RunningStage.TRAINING, batch, batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._start(trainer, RunningStage.VALIDATING)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._update(trainer, pl_module, RunningStage.VALIDATING, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and RunningStage.TRAINING in self._clocks:
            training, validation = self._clocks[RunningStage.TRAINING], self._clocks[RunningStage.VALIDATING]
            training.start += time.perf_counter() - validation.start  # which is no time of training

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, RunningStage.TESTING)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update(trainer, pl_module, RunningStage.TESTING, batch, batch_idx)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, RunningStage.PREDICTING)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update(trainer, pl_module, RunningStage.PREDICTING, batch, batch_idx)

    def _start(self, trainer: Trainer, stage: RunningStage) -> None:
        if trainer.is_global_zero:
            self._clocks[stage] = _Clock(Throughput(world_size=trainer.world_size, **self.kwargs))

    def _update(
        self, trainer: Trainer, pl_module: LightningModule, stage: RunningStage, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # or what is still under way would count as done
        clock = self._clocks[stage]
        with torch.no_grad():
            clock.batches += 1
            clock.samples += self.batch_size_fn(batch)
            clock.lengths += 0 if self.length_fn is None else self.length_fn(batch)
        clock.throughput.update(
            time=time.perf_counter() - clock.start,
            batches=clock.batches,
            samples=clock.samples,
            lengths=None if self.length_fn is None else clock.lengths,
            flops=getattr(pl_module, "flops_per_batch", None),
        )
        trains = stage == RunningStage.TRAINING
        completes_step = not trains or trainer.training_loop is None or trainer.training_loop._stepped
        if completes_step and is_time_to_log(trainer, batch_idx, has_ended=trains):
            separator = clock.throughput.separator
            metrics = {f"{stage.value}{separator}{name}": rate for name, rate in clock.throughput.compute().items()}
            step = clock.batches
            if trains:
                step, metrics["epoch"] = steps_before(trainer, has_ended=True), trainer.current_epoch
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)


class _Clock:
    """What a stage has come to."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.start = time.perf_counter()
        self.batches = self.samples = self.lengths = 0


def measure_flops(
    model: torch.nn.Module,
    forward_fn: Callable[[], torch.Tensor],
    loss_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> int:
    """How many floating-point operations a batch takes, as ``torch.utils.flop_counter`` counts them.

    Args:
        model: not looked at; it may be on the "meta" device, where nothing is computed.
        forward_fn: calls it.
        loss_fn: makes a loss of what ``forward_fn`` returns; then its backward counts, too.

    Example:
        >>> with torch.device("meta"):
        ...     model, x = torch.nn.Linear(32, 10), torch.randn(2, 32)
        >>> measure_flops(model, lambda: model(x))
        1280
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - slow to import, and rarely used

    with FlopCounterMode(display=False) as counter:
        output = forward_fn()
        if loss_fn is not None:
            loss_fn(output).backward()
    total: int = counter.get_total_flops()
    return total
