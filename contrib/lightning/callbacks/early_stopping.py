"""Ends training when a value no longer improves, has reached what was wanted, or is not a number any more.

Called at on_train_epoch_end, or at on_validation_end where validation does not come once an epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.callbacks.monitored import mode_of
from camshaft.contrib.lightning.trainer.states import TrainerFn
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["EarlyStopping", "EarlyStoppingReason"]

log = logging.getLogger(__name__)


class EarlyStoppingReason(Enum):
    """Why training was ended."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Ends training when a logged value has not improved for ``patience`` checks in a row.

    A value that is not finite ends training at once, unless ``check_finite`` is off: then it is no improvement. Where
    several processes train, all end when one of them decides so.

    Args:
        monitor: the name of a value in ``trainer.callback_metrics``.
        min_delta: an improvement must be larger than this, an absolute difference.
        patience: how many checks in a row without improvement end training; checks, not epochs.
        verbose: tell of improvements and of the end.
        mode: whether "min" or "max" is best; "auto" takes the maximum of what is called an accuracy or the like.
        strict: whether a value that is not there is an error; if not, the check is left out.
        check_finite: end training when the value is NaN or infinite.
        stopping_threshold: end training when the value is better than this.
        divergence_threshold: end training when the value is worse than this.
        check_on_train_epoch_end: check at the end of training epochs (True) or of validation (False); by default of
            epochs if validation comes once in each.
        log_rank_zero_only: tell on the first process only.

    Attributes:
        best_score: the best value so far, a tensor.
        wait_count: checks in a row without improvement.
        stopped_epoch: the epoch that ended training; 0 if none did.
        stopping_reason: one of ``EarlyStoppingReason``.
        stopping_reason_message: the same as a sentence, or None.

    Raises:
        MisconfigurationException: an unknown ``mode``.
        RuntimeError: at a check, if the value is not there; the error names those that are.

    Example:
        >>> stopping = EarlyStopping("val_loss", patience=2)
        >>> stopping.state_key
        "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"
        >>> [stopping._evaluate_stopping_criteria(torch.tensor(loss))[0] for loss in (0.9, 0.5, 0.6, 0.5)]
        [False, False, False, True]
        >>> stopping.stopping_reason.name, stopping.best_score
        ('PATIENCE_EXHAUSTED', tensor(0.5000))
    """

    mode_dict: ClassVar[dict[str, Callable[..., Tensor]]] = {"min": torch.lt, "max": torch.gt}
    order_dict: ClassVar[dict[str, str]] = {"min": "<", "max": ">"}

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        self.monitor = monitor
        self.patience = patience
        self.verbose = verbose
        self.mode = mode_of(self, monitor, mode)
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.min_delta = min_delta if self.mode == "max" else -min_delta
        self.best_score = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        self.wait_count = 0
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._check_on_train_epoch_end = check_on_train_epoch_end

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def monitor_op(self) -> Callable[..., Tensor]:
        """``torch.lt`` or ``torch.gt``: whether its first argument is better than its second."""
        return self.mode_dict[self.mode]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._check_on_train_epoch_end is None:
            self._check_on_train_epoch_end = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._check_on_train_epoch_end and not self._should_skip_check(trainer):
            self._run_early_stopping_check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._check_on_train_epoch_end and not self._should_skip_check(trainer):
            self._run_early_stopping_check(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = torch.as_tensor(state_dict["best_score"])
        self.patience = state_dict["patience"]
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))  # new in Lightning 2.6
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def _should_skip_check(self, trainer: Trainer) -> bool:
        return trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or bool(trainer.fast_dev_run)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        if not self._validate_condition_metric(metrics):
            return
        should_stop, reason = self._evaluate_stopping_criteria(torch.as_tensor(metrics[self.monitor]).squeeze())
        if trainer.strategy.reduce_boolean_decision(should_stop, all=False):
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = reason
        if reason and self.verbose:
            self._log_info(trainer, reason, self.log_rank_zero_only)

    def _validate_condition_metric(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the monitored value is there."""
        if self.monitor in metrics:
            return True
        message = (
            f"EarlyStopping monitors {self.monitor!r}, which nothing has logged. There is: "
            f"{', '.join(map(repr, metrics)) or 'nothing'}. Monitor one of these, or call "
            f"self.log({self.monitor!r}, value) in the validation or training step."
        )
        if self.strict:
            raise RuntimeError(message)
        if self.verbose:
            rank_zero_warn(message, category=RuntimeWarning)
        return False

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        """Take in a new value: whether it ends training, and what there is to tell of it."""
        is_better, value = self.monitor_op, f"{self.monitor} = {current:.5g}"
        if self.check_finite and not torch.isfinite(current):
            self.stopping_reason = EarlyStoppingReason.NON_FINITE_METRIC
            return True, f"{value} is not finite. The best value was {self.best_score:.5g}."
        if self.stopping_threshold is not None and is_better(current, self.stopping_threshold):
            self.stopping_reason = EarlyStoppingReason.STOPPING_THRESHOLD
            order = self.order_dict[self.mode]
            return True, f"{value} has reached the threshold for stopping: {order} {self.stopping_threshold}."
        if self.divergence_threshold is not None and is_better(-current, -self.divergence_threshold):
            self.stopping_reason = EarlyStoppingReason.DIVERGENCE_THRESHOLD
            order = self.order_dict["max" if self.mode == "min" else "min"]
            return True, f"{value} has diverged: {order} {self.divergence_threshold}."
        if is_better(current - self.min_delta, self.best_score.to(current.device)):
            previous, self.best_score, self.wait_count = self.best_score, current, 0
            return False, f"{value} is the best so far" + (
                f", better by {abs(previous - current):.5g}." if torch.isfinite(previous) else "."
            )
        self.wait_count += 1
        if self.wait_count < self.patience:
            return False, None
        self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
        return True, (
            f"{self.monitor} did not improve in the last {self.wait_count} checks. "
            f"The best value was {self.best_score:.5g}."
        )

    @staticmethod
    def _log_info(trainer: Trainer, message: str, log_rank_zero_only: bool) -> None:
        if trainer.world_size == 1:
            log.info(message)
        elif trainer.global_rank == 0 or not log_rank_zero_only:
            log.info("[rank: %d] %s", trainer.global_rank, message)
