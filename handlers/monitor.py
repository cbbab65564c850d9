"""Reading a value by name and telling whether it is the best so far: what stopping, schedules and checkpoints share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.agreement import mean
from camshaft.engine.distributed import world_size
from camshaft.engine.events import Events
from camshaft.handlers.direction import more_is_better
from camshaft.handlers.handler import handlers_of

__all__ = ["Mode", "Monitor", "metrics_of", "outputs_of", "values_of", "weight_of_output"]

Mode = Literal["min", "max", "auto"]


class Monitor:
    """One value, monitored by name: the latest, and the best so far.

    On several processes it is the mean over them, the same on each: a metric is that already, what a step returned is
    weighted as ``GradientAccumulation(weight=...)`` weighs it. All must read it at the same point.

    Args:
        name: of a metric in ``state.metrics``, or of an entry of what the step returns (``"loss"`` if it returns the
            loss alone).
        mode: whether the best is the ``"min"`` or the ``"max"``; ``"auto"`` takes the maximum of what is called an
            accuracy or the like, else the minimum.
        min_delta: an improvement must be larger than this, an absolute difference.

    Attributes:
        best: the best value so far; infinite before the first.

    Raises:
        ValueError: an unknown mode or a negative ``min_delta``.

    Example:
        >>> monitor = Monitor("val_accuracy")
        >>> [monitor.improves(value) for value in (0.5, 0.7, float("nan"), 0.6)], monitor.best
        ([True, True, False, False], 0.7)
    """

    def __init__(self, name: str, mode: Mode = "auto", min_delta: float = 0.0) -> None:
        if mode not in ("min", "max", "auto"):
            raise ValueError(f"The mode of a monitored value is 'min', 'max' or 'auto', not {mode!r}.")
        if not min_delta >= 0:
            raise ValueError(f"min_delta must not be negative, but is {min_delta!r}.")
        if mode == "auto":
            mode = "max" if more_is_better(name) else "min"
        self.name = name
        self.mode = mode
        self.min_delta = min_delta
        self.reset()

    def reset(self) -> None:
        """Forget what was read: a new run begins."""
        self.best = -math.inf if self.mode == "max" else math.inf
        self._last_read: int | None = None
        self._missing_since: int | None = None  # the epoch in which a value was first asked for and not there

    def read(self, engine: IgniteEngine) -> float | None:
        """The value, or None if it has not been made anew since it was last read here, or cannot have been made yet.

        Raises:
            ValueError: an epoch has ended and nothing of that name exists; the error names what there is.
        """
        value = self._read_here(engine)
        if world_size() == 1:
            return value
        return mean(value, 1.0 if self.name in metrics_of(engine) else float(weight_of_output(engine)))

    def _read_here(self, engine: IgniteEngine) -> float | None:
        """The value of this process."""
        values = values_of(engine)
        produced_at = [at for handler in handlers_of(engine) if (at := handler.produced_at(self.name)) is not None]
        if self.name not in values:
            if not produced_at and self._is_overdue(engine):
                raise ValueError(self._complaint(engine, values))
            return None
        if produced_at:
            latest = max(produced_at)
            if latest in (0, self._last_read) or latest > engine.state.iteration:  # the last: it is of an earlier run
                return None
            self._last_read = latest
        value = values[self.name]
        return float(value.item() if isinstance(value, torch.Tensor) else value)  # float() warns of one with a graph

    def _is_overdue(self, engine: IgniteEngine) -> bool:
        """Whether an epoch has ended since the value was first asked for: most are made at the end of one."""
        epoch = engine.state.epoch
        if self._missing_since is None:
            self._missing_since = epoch
        return epoch > self._missing_since or engine.last_event_name in (Events.EPOCH_COMPLETED, Events.COMPLETED)

    def _complaint(self, engine: IgniteEngine, values: Mapping[str, Any]) -> str:
        known = ", ".join(map(repr, sorted(values))) or "nothing yet"
        return (
            f"{self.name!r} is monitored, but nothing has produced it after iteration {engine.state.iteration} "
            f"(epoch {engine.state.epoch}). There is: {known}. Attach what makes it, such as Metrics or Evaluate, "
            "monitor one of these, or, if it comes more seldom, monitor it at the same event as it is made."
        )

    def improves(self, value: float) -> bool:
        """Whether ``value`` is better than the best so far, which it then becomes; NaN never is."""
        better = value > self.best + self.min_delta if self.mode == "max" else value < self.best - self.min_delta
        if better:
            self.best = value
        return better

    def state_dict(self) -> dict[str, Any]:
        """The best value and when it was last read."""
        return {"best": self.best, "last_read": self._last_read}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.best = state_dict["best"]
        self._last_read = state_dict["last_read"]


def values_of(engine: IgniteEngine) -> dict[str, Any]:
    """The numbers that an engine has at hand: the scalars that its step returned, and ``state.metrics`` over these.

    Values are left as they are, so that reading them does not wait for a device.

    Example:
        >>> from camshaft import Engine
        >>> engine = Engine(lambda engine, batch: {"loss": torch.tensor(0.5), "y_pred": torch.ones(8, 10)})
        >>> state = engine.run([None])
        >>> values_of(engine)
        {'loss': tensor(0.5000)}
    """
    return {**outputs_of(engine), **metrics_of(engine)}


def outputs_of(engine: IgniteEngine) -> dict[str, Any]:
    """The scalars that the step returned last, by name; a scalar on its own is the loss."""
    output: Any = engine.state.output
    return _numbers_in(output if isinstance(output, Mapping) else {"loss": output})


def weight_of_output(engine: IgniteEngine) -> Any:
    """How much what the step returned counts among the processes: 1 unless gradients are weighted, too."""
    output: Any = engine.state.output
    key = getattr(engine._process_function, "weight_key", None)
    return output[key] if isinstance(output, Mapping) and key in output else 1.0


def metrics_of(engine: IgniteEngine) -> dict[str, Any]:
    """The numbers in ``state.metrics``, by name."""
    return _numbers_in(engine.state.metrics)


def _numbers_in(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    return hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0  # one of NumPy's
