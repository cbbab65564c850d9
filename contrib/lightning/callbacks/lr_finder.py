"""Finds a learning rate before training.

Called at on_fit_start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.tuner.lr_finder import LRFinder, find_learning_rate

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["LearningRateFinder"]


class LearningRateFinder(Callback):
    """Trains some steps with a learning rate that grows, and then trains with the one at which the loss fell most.

    The module is put back before training begins. A subclass may call :meth:`lr_find` at other moments.

    Args:
        min_lr: the learning rate of the first step.
        max_lr: the one of the last.
        num_training_steps: how many steps.
        mode: "exponential" or "linear": how it grows.
        early_stop_threshold: end when the loss is so many times the smallest one; None for never.
        update_attr: whether to set the module's ``lr`` or ``learning_rate``, and the learning rate of the optimizer.
        attr_name: the name of another attribute.

    Attributes:
        optimal_lr: what was found, with ``suggestion()`` and ``plot()``.

    Raises:
        ValueError: another mode.

    Example:
        >>> LearningRateFinder(mode="linear").optimal_lr is None  # nothing yet
        True
    """

    SUPPORTED_MODES = ("exponential", "linear")

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        if mode.lower() not in self.SUPPORTED_MODES:
            raise ValueError(f"The mode of LearningRateFinder is 'exponential' or 'linear', not {mode!r}.")
        self._min_lr = min_lr
        self._max_lr = max_lr
        self._num_training_steps = num_training_steps
        self._mode = mode.lower()
        self._early_stop_threshold = early_stop_threshold
        self._update_attr = update_attr
        self._attr_name = attr_name
        self.optimal_lr: LRFinder | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.lr_find(trainer, pl_module)

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find it now, and train with it from now on."""
        given = None if trainer._train_source is None else trainer._train_source.given
        self.optimal_lr = find_learning_rate(
            trainer,
            pl_module,
            {"train_dataloaders": given, "datamodule": trainer.datamodule if given is None else None},
            min_lr=self._min_lr,
            max_lr=self._max_lr,
            num_training=self._num_training_steps,
            mode=self._mode,
            early_stop_threshold=self._early_stop_threshold,
            update_attr=self._update_attr,
            attr_name=self._attr_name,
        )
        rate = None if self.optimal_lr is None or not self._update_attr else self.optimal_lr.suggestion()
        if rate is None:
            return
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        for config in trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [rate] * len(config.scheduler.optimizer.param_groups)
