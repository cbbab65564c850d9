"""Types for the arguments of modules that a command line makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, Union

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from camshaft.contrib.lightning.cli.dependency import Namespace

__all__ = [
    "ArgsType",
    "LRSchedulerCallable",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "OptimizerCallable",
    "ReduceLROnPlateau",
]


class ReduceLROnPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """torch's schedule, which also knows the metric that it watches, so that a command line can say it.

    Args:
        optimizer: whose learning rate falls.
        monitor: the name of the metric.
        args: as torch's.
        kwargs: as torch's.
    """

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


# `Union`: jsonargparse reads them at run time, and a program may write them into its own annotations.
LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion: TypeAlias = Union[LRScheduler, ReduceLROnPlateau]  # noqa: UP007
LRSchedulerType: TypeAlias = Union[type[LRScheduler], type[ReduceLROnPlateau]]  # noqa: UP007

ArgsType: TypeAlias = Union[list[str], dict[str, Any], Namespace, None]  # noqa: UP007
OptimizerCallable: TypeAlias = Callable[[Iterable], Optimizer]  # type: ignore[type-arg]
LRSchedulerCallable: TypeAlias = Callable[[Optimizer], LRSchedulerTypeUnion]
