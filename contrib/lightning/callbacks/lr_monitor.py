"""Logs the learning rates.

Called at on_train_start, which finds names, and at on_train_batch_start and on_train_epoch_start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import Optimizer

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.callbacks.logging_moments import is_time_to_log, steps_before
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["LearningRateMonitor"]


class LearningRateMonitor(Callback):
    """Logs the learning rate of each parameter group, and if asked its momentum and weight decay.

    A rate is called "lr-Adam" after its optimizer, "lr-Adam-1" for the second of a kind, "lr-Adam/pg2" for the second
    parameter group; the ``"name"`` of a schedule takes the place of "lr-Adam", that of a group the place of "pg2".

    Args:
        logging_interval: log at each "step" or "epoch"; None: when the schedule changes it.
        log_momentum: also log momentum, or the first of the betas.
        log_weight_decay: also log weight decay.

    Attributes:
        lrs: by name, the learning rates that were logged.
        last_momentum_values: by name, the momenta that were logged last.
        last_weight_decay_values: by name, the weight decays that were logged last.

    Raises:
        MisconfigurationException: another interval; when training starts, if there is no logger, or if two groups of an
            optimizer have the same name.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> LearningRateMonitor()._stats_of(optimizer, ["lr-SGD"])
        {'lr-SGD': 0.1}
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise MisconfigurationException(f"logging_interval is 'step', 'epoch' or None, not {logging_interval!r}.")
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.loggers:
            raise MisconfigurationException("LearningRateMonitor needs a logger, but the Trainer has none.")
        groupless = [one for one in trainer.optimizers if not {"momentum", "betas"} & one.defaults.keys()]
        if self.log_momentum and groupless:
            rank_zero_warn(
                f"{type(groupless[0]).__name__} has no momentum, so LearningRateMonitor(log_momentum=True) logs 0.",
                category=RuntimeWarning,
            )
        names = [name for _, _, names in _named_optimizers(trainer) for name in names]
        self.lrs = {name: [] for name in names}
        self.last_momentum_values = {name + "-momentum": None for name in names}
        self.last_weight_decay_values = {name + "-weight_decay": None for name in names}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.logging_interval != "epoch" and is_time_to_log(trainer, batch_idx):
            self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.logging_interval != "step":
            self._log(trainer, "epoch")

    def _log(self, trainer: Trainer, moment: str) -> None:
        stats: dict[str, float] = {}
        for optimizer, interval, names in _named_optimizers(trainer):
            self._rename(names)
            if self.logging_interval is not None or interval in (moment, None):
                stats.update(self._stats_of(optimizer, names))
        if stats:
            device = trainer.strategy.root_device
            trainer.callback_metrics.update({name: torch.tensor(value, device=device) for name, value in stats.items()})
            for logger in trainer.loggers:
                logger.log_metrics(stats, step=steps_before(trainer))

    def _stats_of(self, optimizer: Optimizer, names: list[str]) -> dict[str, float]:
        stats: dict[str, float] = {}
        for group, name in zip(optimizer.param_groups, names, strict=True):
            stats[name] = group["lr"]
            self.lrs.setdefault(name, []).append(group["lr"])
            if self.log_momentum:
                momentum = group["betas"][0] if "betas" in group else group.get("momentum", 0)
                stats[name + "-momentum"] = self.last_momentum_values[name + "-momentum"] = momentum
            if self.log_weight_decay:
                decay = group["weight_decay"]
                stats[name + "-weight_decay"] = self.last_weight_decay_values[name + "-weight_decay"] = decay
        return stats

    def _rename(self, names: list[str]) -> None:
        """The one group of an optimizer is called otherwise once there is a second."""
        for name in names:
            former = name.replace("/pg1", "")
            if former != name and former in self.lrs:
                self.lrs[name] = self.lrs.pop(former)


def _named_optimizers(trainer: Trainer) -> Iterator[tuple[Optimizer, str | None, list[str]]]:
    """Each optimizer, how often its schedule changes it (None without one), and the names of its groups."""
    of_a_kind: Counter[type[Optimizer]] = Counter()
    scheduled = []
    for config in trainer.lr_scheduler_configs:
        optimizer = config.scheduler.optimizer
        scheduled.append(id(optimizer))
        of_a_kind[type(optimizer)] += config.name is None
        yield optimizer, config.interval, _names_of(optimizer, config.name, of_a_kind)
    for optimizer in trainer.optimizers:
        if id(optimizer) not in scheduled:
            of_a_kind[type(optimizer)] += 1
            yield optimizer, None, _names_of(optimizer, None, of_a_kind)


def _names_of(optimizer: Optimizer, name: str | None, of_a_kind: Counter[type[Optimizer]]) -> list[str]:
    name = name or "lr-" + type(optimizer).__name__
    if of_a_kind[type(optimizer)] > 1:
        name += f"-{of_a_kind[type(optimizer)] - 1}"
    groups = optimizer.param_groups
    if len(groups) == 1:
        own = groups[0].get("name")
        return [f"{name}/{own}" if own else name]
    names = [group.get("name", f"pg{number}") for number, group in enumerate(groups, start=1)]
    twice = [own for own, count in Counter(names).items() if count > 1]
    if twice:
        raise MisconfigurationException(
            f"Two parameter groups of {type(optimizer).__name__} are called {twice[0]!r}: give each a name of its own."
        )
    return [f"{name}/{own}" for own in names]
