"""Names of types for the annotations of modules and callbacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Protocol, TypeAlias, TypedDict, Union

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import NotRequired, Required

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = [
    "EPOCH_OUTPUT",
    "EVAL_DATALOADERS",
    "STEP_OUTPUT",
    "TRAIN_DATALOADERS",
    "LRSchedulerConfig",
    "LRSchedulerConfigType",
    "LRSchedulerPLType",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "OptimizerConfig",
    "OptimizerLRScheduler",
    "OptimizerLRSchedulerConfig",
]

# `Union` rather than `|`: programs read these with `typing.get_origin`, and write `"Metric" | STEP_OUTPUT`.
_NUMBER: TypeAlias = int | float
_METRIC: TypeAlias = Union["Metric", Tensor, int, float]
STEP_OUTPUT: TypeAlias = Optional[Union[Tensor, Mapping[str, Any]]]  # noqa: UP007, UP045
EPOCH_OUTPUT: TypeAlias = list[STEP_OUTPUT]  # what `..._epoch_end(outputs)` got in 1.x
_EVALUATE_OUTPUT: TypeAlias = list[Mapping[str, float]]  # one for each loader
_PREDICT_OUTPUT: TypeAlias = Union[list[Any], list[list[Any]]]  # noqa: UP007
TRAIN_DATALOADERS: TypeAlias = Any  # an iterable, or a collection of iterables
EVAL_DATALOADERS: TypeAlias = Any

LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion: TypeAlias = Union[LRScheduler, ReduceLROnPlateau]  # noqa: UP007
LRSchedulerPLType: TypeAlias = LRSchedulerTypeUnion
LRSchedulerType: TypeAlias = Union[type[LRScheduler], type[ReduceLROnPlateau]]  # noqa: UP007


@dataclass
class LRSchedulerConfig:
    """A learning rate schedule and when it steps.

    Attributes:
        scheduler: the schedule.
        name: under which ``LearningRateMonitor`` logs it.
        interval: ``"epoch"`` or ``"step"``.
        frequency: it steps every so many intervals.
        reduce_on_plateau: whether its ``step`` takes a metric.
        monitor: the name of that metric.
        strict: whether it is an error that the metric is missing.
    """

    scheduler: LRSchedulerTypeUnion
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


class LRSchedulerConfigType(TypedDict, total=False):
    """The same as a dictionary, as ``configure_optimizers`` may return it."""

    scheduler: Required[LRSchedulerTypeUnion]
    name: str | None
    interval: str
    frequency: int
    reduce_on_plateau: bool
    monitor: str | None
    strict: bool


class OptimizerConfig(TypedDict):
    """An optimizer alone, as a dictionary."""

    optimizer: Optimizer


class OptimizerLRSchedulerConfig(TypedDict):
    """An optimizer and its schedule, as a dictionary."""

    optimizer: Optimizer
    lr_scheduler: LRSchedulerTypeUnion | LRSchedulerConfigType
    monitor: NotRequired[str]


OptimizerLRScheduler: TypeAlias = Optional[  # noqa: UP045
    Union[  # noqa: UP007
        Optimizer,
        Sequence[Optimizer],
        tuple[Sequence[Optimizer], Sequence[Union[LRSchedulerTypeUnion, LRSchedulerConfig]]],  # noqa: UP007
        OptimizerConfig,
        OptimizerLRSchedulerConfig,
        Sequence[OptimizerConfig],
        Sequence[OptimizerLRSchedulerConfig],
    ]
]


class _SizedIterable(Protocol):
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...
