"""Which learning rate to begin with: the loss is watched while the learning rate grows with every step."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.tuner.trial import trial
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.parsing import holders_of, set_in_all
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from camshaft.handlers.lr_finder import LearningRateCurve

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["LRFinder", "find_learning_rate"]

log = logging.getLogger(__name__)

_NAMES = ("lr", "learning_rate")
_SMOOTHING = 0.98  # the share of the past in the mean of the losses


class LRFinder(LearningRateCurve):
    """What was found: the losses, and at which learning rates.

    Args:
        mode: ``"exponential"`` or ``"linear"``.
        lr_min: the learning rate at the beginning.
        lr_max: the one at the end.
        num_training: how many steps there are between them.

    Attributes:
        results: ``{"lr": [...], "loss": [...]}``; the losses are smoothed.

    Example:
        >>> finder = LRFinder("exponential", 1e-4, 1.0, 4)
        >>> [round(finder.lr_at(step), 4) for step in range(4)]
        [0.0001, 0.01, 0.1, 1.0]
        >>> finder.results = {"lr": [0.1, 0.2, 0.3, 0.4, 0.5], "loss": [5.0, 4.9, 4.0, 3.5, 3.4]}
        >>> finder.suggestion(skip_begin=0)
        0.3
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        if mode not in {"exponential", "linear"}:
            raise ValueError(f"lr_find(mode=...) is 'exponential' or 'linear', but got {mode!r}.")
        if not 0 < lr_min < lr_max:
            raise ValueError(f"lr_find needs 0 < min_lr < max_lr, but got min_lr={lr_min} and max_lr={lr_max}.")
        self.mode = mode
        self.lr_min = lr_min
        self.lr_max = lr_max
        self.num_training = num_training
        super().__init__(logarithmic=mode == "exponential")
        self._optimal_idx: int | None = None

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        share = 0.0 if step == 0 else (step + 1) / self.num_training
        if self.mode == "linear":
            return self.lr_min + share * (self.lr_max - self.lr_min)
        return self.lr_min * math.pow(self.lr_max / self.lr_min, share)

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The learning rate at which the loss fell most steeply, None where there are too few points to tell.

        Args:
            skip_begin: how many points to leave out at the beginning, where the loss is not smooth yet.
            skip_end: how many to leave out at the end.
        """
        self._optimal_idx = self.steepest(skip_begin, skip_end, over_logarithm=False)
        if self._optimal_idx is None:
            log.error(
                "lr_find can suggest nothing: %d of the losses are left. Allow more steps, or give more data.",
                len(self.usable(skip_begin, skip_end)),
            )
            return None
        return self.results["lr"][self._optimal_idx]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:  # type: ignore[override]
        """A picture of the losses over the learning rates.

        Args:
            suggest: whether to mark the suggestion.
            show: whether to show it on the screen.
            ax: axes of matplotlib to draw on; new ones unless given.

        Returns:
            The figure.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise ModuleNotFoundError("LRFinder.plot needs matplotlib: pip install matplotlib.") from error
        figure, ax = plt.subplots() if ax is None else (ax.figure, ax)
        self.draw(ax, self.suggestion() if suggest else None)
        if show:
            plt.show()
        return figure


_LRFinder = LRFinder  # Lightning's name for it


class _GrowingRate(Callback):
    """Sets the learning rate of each step, and keeps the losses.

    Args:
        finder: what it finds goes there.
        early_stop_threshold: the run ends when the loss is so many times the smallest one; None for never.
        bar: a progress bar of tqdm, or None.
    """

    def __init__(self, finder: LRFinder, early_stop_threshold: float | None, bar: Any) -> None:
        self.finder = finder
        self.threshold = early_stop_threshold
        self.bar = bar
        self._mean = 0.0
        self._smallest = math.inf
        self._rate = finder.lr_min

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(
                f"lr_find works with one optimizer, but {type(pl_module).__name__}.configure_optimizers() returned "
                f"{len(trainer.optimizers)}."
            )
        trainer.lr_scheduler_configs.clear()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._rate = self.finder.lr_at(trainer.global_step)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._rate

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        steps = trainer.global_step
        if steps == len(self.finder.results["loss"]):
            return  # no step was made: a batch of several, or one that was left out
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * float(loss)
        smoothed = self._mean / (1 - _SMOOTHING ** (steps + 1))  # one step too many: then both libraries find the same
        diverges = self.threshold is not None and steps > 1 and smoothed > self.threshold * self._smallest
        trainer.should_stop = trainer.strategy.broadcast(diverges)
        self._smallest = min(self._smallest, smoothed)
        self.finder.results["lr"].append(self._rate)
        self.finder.results["loss"].append(smoothed)
        if self.bar is not None:
            self.bar.update()


def find_learning_rate(
    trainer: Trainer,
    model: Any,
    data: dict[str, Any],
    *,
    min_lr: float,
    max_lr: float,
    num_training: int,
    mode: str,
    early_stop_threshold: float | None,
    update_attr: bool,
    attr_name: str,
) -> LRFinder | None:
    """Try growing learning rates, and leave all as it was but for the module's learning rate.

    Args:
        trainer: with what to train.
        model: what to train.
        data: arguments of ``trainer.fit`` with the data.
        min_lr: the rest as for :meth:`Tuner.lr_find`.
        max_lr: the largest learning rate.
        num_training: how many steps.
        mode: how it grows.
        early_stop_threshold: when to end.
        update_attr: whether to set the attribute.
        attr_name: the attribute.

    Raises:
        AttributeError: there is no such attribute.
        MisconfigurationException: there are several optimizers.
    """
    if trainer.fast_dev_run:
        rank_zero_warn("lr_find does nothing in a fast_dev_run.")
        return None
    datamodule = data.get("datamodule")
    name = _attribute(model, datamodule, attr_name) if update_attr else ""
    finder = LRFinder(mode, min_lr, max_lr, num_training)
    bar = None
    if trainer.progress_bar_callback is not None and trainer.is_global_zero:
        from tqdm import tqdm  # noqa: PLC0415 - only where there is a bar

        bar = tqdm(desc="Finding best initial lr", total=num_training)
    growing = _GrowingRate(finder, early_stop_threshold, bar)
    try:
        with trial(trainer, model, [growing], max_steps=num_training) as tried:
            tried.fit(model, **data)
            finder.results = tried.strategy.broadcast(finder.results)
            finder._total_batch_idx = tried.fit_loop.total_batch_idx  # type: ignore[attr-defined]
    finally:
        if bar is not None:
            bar.close()
    if len(finder.results["loss"]) < num_training:
        rank_zero_info(f"lr_find ended after {len(finder.results['loss'])} steps, as the loss grew.")
    if update_attr:
        found = finder.suggestion()
        if found is not None:
            set_in_all(holders_of(name, model, datamodule), name, found)
            rank_zero_info(f"Learning rate set to {found}")
    return finder


def _attribute(model: Any, datamodule: Any, name: str) -> str:
    """The name of the attribute that is the learning rate."""
    names = (name,) if name else _NAMES
    for one in names:
        if holders_of(one, model, datamodule):
            return one
    raise AttributeError(
        f"lr_find has nowhere to put what it finds: neither {type(model).__name__} nor its hyperparameters have "
        f"{' or '.join(map(repr, names))}. Name the attribute, lr_find(attr_name=...), or set it yourself: "
        "lr_find(update_attr=False).suggestion()."
    )
