"""Ends training when the loss jumps, and notes which batches to leave out.

Called at on_train_batch_end; it waits for the device there, because it looks at each loss.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from camshaft.contrib.lightning.callbacks.callback import Callback

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["SpikeDetection", "TrainingSpikeException"]


class TrainingSpikeException(RuntimeError):
    """The loss has jumped.

    Args:
        batch_idx: at this batch.
    """

    def __init__(self, batch_idx: int) -> None:
        super().__init__(f"The loss of batch {batch_idx} is a spike.")


class SpikeDetection(Callback):
    """Raises ``TrainingSpikeException`` when a loss is far from the mean of those before it, on any process.

    The numbers of that batch and of the one before it, whose step may have been the cause, are written to a file.

    Args:
        mode: "min" for a loss, "max" for a value that should grow.
        window: of how many values the mean is.
        warmup: the first batches of an epoch that are never a spike.
        atol: a spike is at least so far from the mean; None: any distance.
        rtol: a spike is at least so far from the mean, as a fraction of it; None: any distance.
        exclude_batches_path: the file, or its directory; by default ``skip_batches.json`` in the trainer's
            ``default_root_dir``.
        finite_only: whether a value that is not finite is a spike.

    Example:
        >>> spikes = SpikeDetection(rtol=1.0)
        >>> spikes._update_stats(0.5)
        >>> spikes._is_spike(0.6), spikes._is_spike(1.2), spikes._is_spike(float("nan"))
        (False, True, True)
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | os.PathLike[str] | None = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"The mode of SpikeDetection is 'min' or 'max', not {mode!r}.")
        self.mode = mode
        self.warmup = warmup
        self.atol = atol
        self.rtol = rtol
        self.exclude_batches_path = exclude_batches_path
        self.finite_only = finite_only
        self.last_val = 0.0
        self.bad_batches: list[int] = []
        self._recent: deque[float] = deque(maxlen=window)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor):
            raise TypeError(f"SpikeDetection needs a training_step that returns a loss, but it returned {outputs!r}.")
        value = loss.item()
        is_spike = batch_idx >= self.warmup and self._is_spike(value)
        if trainer.strategy.reduce_boolean_decision(is_spike, all=False):
            self._handle_spike(trainer, batch_idx)
        if math.isfinite(value):
            self._update_stats(value)

    def _is_spike(self, value: float) -> bool:
        if not math.isfinite(value):
            return self.finite_only
        change = value - self.last_val
        if not self._recent or (change <= 0 if self.mode == "min" else change >= 0):
            return False
        mean = sum(self._recent) / len(self._recent)
        distance = abs(value - mean)
        return (self.atol is None or distance >= abs(self.atol)) and (
            self.rtol is None or distance >= abs(self.rtol * mean)
        )

    def _update_stats(self, value: float) -> None:
        self._recent.append(value)
        self.last_val = value

    def _handle_spike(self, trainer: Trainer, batch_idx: int) -> None:
        self.bad_batches += [batch_idx - 1, batch_idx]
        path = Path(trainer.default_root_dir if self.exclude_batches_path is None else self.exclude_batches_path)
        if path.suffix != ".json":
            path /= "skip_batches.json"
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.bad_batches, indent=4), encoding="utf-8")
        raise TrainingSpikeException(batch_idx)

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_val": self.last_val,
            "mode": self.mode,
            "warmup": self.warmup,
            "atol": self.atol,
            "rtol": self.rtol,
            "bad_batches": self.bad_batches,
            "recent": list(self._recent),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_val = state_dict["last_val"]
        self.mode = state_dict["mode"]
        self.warmup = state_dict["warmup"]
        self.atol = state_dict["atol"]
        self.rtol = state_dict["rtol"]
        self.bad_batches = list(state_dict["bad_batches"])
        self._recent.clear()
        self._recent.extend(state_dict.get("recent", ()))  # Lightning keeps the mean in another form
