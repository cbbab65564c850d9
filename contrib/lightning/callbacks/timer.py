"""Measures the time of training, validation and testing, and ends training when its time is over.

Called at the start and the end of each of them, and, with a limit, at on_fit_start and on_train_batch_end or
on_train_epoch_end.
"""

from __future__ import annotations

import re
import time
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.trainer.states import RunningStage
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["Interval", "Timer"]

_DURATION = re.compile(r"(?P<days>\d+):(?P<hours>\d\d):(?P<minutes>\d\d):(?P<seconds>\d\d)")


class Interval(str, Enum):
    """When the clock is looked at."""

    step = "step"
    epoch = "epoch"


class Timer(Callback):
    """Measures how long training, validation and testing take, and ends training after ``duration``.

    The time that training has taken is kept in checkpoints, and counts on when it is resumed.

    Args:
        duration: as "DD:HH:MM:SS", a ``datetime.timedelta``, or a dict of its arguments; None only measures.
        interval: look at the clock after each "step" or each "epoch".
        verbose: tell when the time is over.

    Raises:
        MisconfigurationException: a ``duration`` or an ``interval`` of another form.

    Example:
        >>> timer = Timer("00:12:00:00")
        >>> timer.time_remaining()
        43200.0
    """

    def __init__(
        self,
        duration: str | timedelta | dict[str, int] | None = None,
        interval: str = Interval.step,
        verbose: bool = True,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise MisconfigurationException(f"The interval of a Timer is 'step' or 'epoch', not {interval!r}.")
        self._duration = _in_seconds(duration)
        self._interval = Interval(interval)
        self._verbose = verbose
        self._start_time: dict[RunningStage, float] = {}
        self._end_time: dict[RunningStage, float] = {}
        self._offset = 0.0  # seconds of training before this run, out of a checkpoint

    def start_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """When a stage ("train", "validate", "test") began, in seconds of ``time.monotonic``; None if it did not."""
        return self._start_time.get(RunningStage(stage))

    def end_time(self, stage: str = RunningStage.TRAINING) -> float | None:
        """When a stage ended, in seconds of ``time.monotonic``; None if it did not."""
        return self._end_time.get(RunningStage(stage))

    def time_elapsed(self, stage: str = RunningStage.TRAINING) -> float:
        """How many seconds a stage has taken."""
        start, end = self.start_time(stage), self.end_time(stage)
        offset = self._offset if RunningStage(stage) == RunningStage.TRAINING else 0.0
        return offset if start is None else offset + (time.monotonic() if end is None else end) - start

    def time_remaining(self, stage: str = RunningStage.TRAINING) -> float | None:
        """How many seconds are left; None without a limit."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(RunningStage.TRAINING)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_time[RunningStage.TRAINING] = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(RunningStage.VALIDATING)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_time[RunningStage.VALIDATING] = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(RunningStage.TESTING)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_time[RunningStage.TESTING] = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_time_remaining(trainer)  # a resumed run may have none left

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._interval == Interval.step:
            self._check_time_remaining(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._interval == Interval.epoch:
            self._check_time_remaining(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"time_elapsed": {stage.value: self.time_elapsed(stage) for stage in RunningStage}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._offset = state_dict.get("time_elapsed", {}).get(RunningStage.TRAINING.value, 0.0)

    def _start(self, stage: RunningStage) -> None:
        self._start_time[stage] = time.monotonic()
        self._end_time.pop(stage, None)

    def _check_time_remaining(self, trainer: Trainer) -> None:
        """End training if the time is over; the first process looks at the clock for all."""
        if self._duration is None:
            return
        is_over = trainer.is_global_zero and self.time_elapsed() >= self._duration
        if not trainer.strategy.reduce_boolean_decision(is_over, all=False):
            return
        trainer.should_stop = True
        if self._verbose:
            elapsed = timedelta(seconds=int(self.time_elapsed()))
            rank_zero_info(f"The time limit is reached: training has taken {elapsed}, and ends.")


def _in_seconds(duration: str | timedelta | dict[str, int] | None) -> float | None:
    if isinstance(duration, str):
        match = _DURATION.fullmatch(duration.strip())
        if match is None:
            raise MisconfigurationException(
                f"The duration of a Timer has the form DD:HH:MM:SS, such as '00:12:00:00' (12 hours), not {duration!r}."
            )
        duration = {unit: int(number) for unit, number in match.groupdict().items()}
    if isinstance(duration, dict):
        duration = timedelta(**duration)
    return None if duration is None else duration.total_seconds()
