"""Reading a value by name and telling whether it is the best so far: what stopping, schedules and checkpoints share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.handlers.handler import handlers_of

__all__ = ["Mode", "Monitor", "values_of"]

Mode = Literal["min", "max", "auto"]

# The words in a metric's name by which more is better; anything else, a loss or an error, should become less.
_MORE_IS_BETTER = ("acc", "auc", "f1", "precision", "recall", "map", "iou", "dice", "bleu", "psnr", "ssim", "score", "r2")


class Monitor:
    """One value, monitored by name: the latest, and the best so far.

    Args:
        name: of a metric in ``state.metrics``, or of an entry of what the step returns (``"loss"`` if it returns the
            loss alone).
        mode: whether the best is the ``"min"`` or the ``"max"``; ``"auto"`` takes the maximum of what is called an
            accuracy or the like, else the minimum.
        min_delta: an improvement must be larger than this, an absolute difference.

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
            mode = "max" if any(word in name.lower() for word in _MORE_IS_BETTER) else "min"
        self.name = name
        self.mode = mode
        self.min_delta = min_delta
        self.best = -math.inf if mode == "max" else math.inf
        self._last_read: int | None = None

    def read(self, engine: IgniteEngine) -> float | None:
        """The value, or None if it has not been made anew since it was last read here.

        Raises:
            ValueError: nothing of that name exists; the error names what there is.
        """
        values = values_of(engine)
        if self.name not in values:
            known = ", ".join(map(repr, sorted(values))) or "nothing yet"
            raise ValueError(
                f"{self.name!r} is monitored, but nothing produces it after iteration {engine.state.iteration} "
                f"(epoch {engine.state.epoch}). There is: {known}. Attach what makes it, such as Metrics or Evaluate, "
                "or monitor one of these."
            )
        produced_at = [at for handler in handlers_of(engine) if (at := handler.produced_at(self.name)) is not None]
        if produced_at:
            if max(produced_at) == self._last_read:
                return None
            self._last_read = max(produced_at)
        return float(values[self.name])

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
    output = engine.state.output
    outputs = output if isinstance(output, Mapping) else {"loss": output}
    return {str(name): value for name, value in {**outputs, **engine.state.metrics}.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool) or hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0
