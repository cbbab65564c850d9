"""Learning-rate schedules of a module: what ``configure_optimizers`` says of them, and when each is stepped."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from camshaft.contrib.lightning.hooks import is_overridden

__all__ = ["LRSchedulerConfig", "schedule_configs", "step_schedules"]


@dataclass
class LRSchedulerConfig:
    """A scheduler and how it is stepped.

    Attributes:
        scheduler: of ``torch.optim.lr_scheduler``, or alike.
        name: for ``LearningRateMonitor``.
        interval: ``"epoch"`` or ``"step"``.
        frequency: every so many of these.
        reduce_on_plateau: whether it is given a value.
        monitor: the name of that value.
        strict: whether a missing value is an error; otherwise it is a warning.
    """

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


_KEYS = {field.name for field in fields(LRSchedulerConfig)}


def schedule_configs(schedules: list[Any], monitor: str | None, *, automatic: bool) -> list[LRSchedulerConfig]:
    """The schedules as ``configure_optimizers`` gave them, each a scheduler or a mapping with it.

    Args:
        schedules: as given.
        monitor: what those that reduce on a plateau monitor if they do not say so themselves.
        automatic: whether they are stepped for the user.

    Raises:
        ValueError: a mapping without a scheduler, with an unknown interval, or with nothing to monitor.
    """
    configs = []
    for given in schedules:
        settings = dict(given) if isinstance(given, Mapping) else {"scheduler": given}
        if "scheduler" not in settings:
            raise ValueError(f"A schedule needs its 'scheduler', but configure_optimizers() returned {settings!r}.")
        unknown = sorted(set(settings) - _KEYS)
        if unknown:
            warnings.warn(f"Unknown keys of a schedule are passed over: {', '.join(unknown)}.", stacklevel=2)
        config = LRSchedulerConfig(**{key: value for key, value in settings.items() if key in _KEYS})
        if config.interval not in ("epoch", "step"):
            raise ValueError(f"The interval of a schedule is 'epoch' or 'step', not {config.interval!r}.")
        config.reduce_on_plateau = bool(
            settings.get("reduce_on_plateau", isinstance(config.scheduler, ReduceLROnPlateau))
        )
        if config.reduce_on_plateau and config.monitor is None:
            config.monitor = monitor
            if monitor is None and automatic:
                raise ValueError(
                    "ReduceLROnPlateau needs a value to monitor: return {'optimizer': optimizer, 'lr_scheduler': "
                    "{'scheduler': scheduler, 'monitor': 'val_loss'}} from configure_optimizers()."
                )
        if isinstance(config.scheduler, OneCycleLR) and config.interval == "epoch" and automatic:
            warnings.warn("OneCycleLR is stepped once an epoch: did you mean 'interval': 'step'?", stacklevel=2)
        configs.append(config)
    return configs


def step_schedules(trainer: Any, configs: list[LRSchedulerConfig], interval: str, *, on_plateau: bool) -> None:
    """Step the schedules of an interval that are due.

    Args:
        trainer: whose epoch or batch it is, and whose metrics are monitored.
        configs: the schedules.
        interval: ``"epoch"`` or ``"step"``.
        on_plateau: those that monitor a value, or the others.

    Raises:
        ValueError: what one of them monitors is not there.
    """
    module = trainer.lightning_module
    number = 1 + (trainer.batch_idx if interval == "step" else trainer.current_epoch)
    for config in configs:
        if config.interval != interval or config.reduce_on_plateau != on_plateau or number % config.frequency:
            continue
        value = None
        if on_plateau:
            value = trainer.callback_metrics.get(config.monitor)
            if value is None:
                message = (
                    f"ReduceLROnPlateau monitors {config.monitor!r}, which was not logged; there are "
                    f"{sorted(trainer.callback_metrics)}."
                )
                if config.strict:
                    raise ValueError(message)
                warnings.warn(f"{message} The learning rate stays.", stacklevel=2)
                continue
        if is_overridden("lr_scheduler_step", module):
            module.lr_scheduler_step(config.scheduler, value)
        elif value is None:
            config.scheduler.step()
        else:
            config.scheduler.step(value)


def check_schedulers(configs: list[LRSchedulerConfig], module: Any) -> None:
    """Refuse a scheduler that is none of torch's unless the module steps it itself.

    Raises:
        ValueError: there is one.
    """
    for config in configs:
        known = isinstance(config.scheduler, (LRScheduler, ReduceLROnPlateau))
        if not known and module.automatic_optimization and not is_overridden("lr_scheduler_step", module):
            raise ValueError(
                f"{type(config.scheduler).__name__} is no scheduler of torch.optim.lr_scheduler: override "
                "lr_scheduler_step(scheduler, metric) to step it."
            )
