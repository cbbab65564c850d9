"""What a Trainer is doing: the function that was called, and the stage it is in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["RunningStage", "TrainerFn", "TrainerState", "TrainerStatus"]


class _Text(str, Enum):
    """An enumeration whose members equal their text."""

    def __str__(self) -> str:
        return str(self.value)


class TrainerStatus(_Text):
    """How far the call of a Trainer's function is.

    Example:
        >>> TrainerStatus.FINISHED == "finished", TrainerStatus.RUNNING.stopped
        (True, False)
    """

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """Whether it is over."""
        return self in (TrainerStatus.FINISHED, TrainerStatus.INTERRUPTED)


class TrainerFn(_Text):
    """The function that was called: ``fit``, ``validate``, ``test`` or ``predict``.

    Example:
        >>> TrainerFn.FITTING.value
        'fit'
    """

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class RunningStage(_Text):
    """What happens within it: a fit trains, validates, and first checks that validation works.

    Example:
        >>> RunningStage.SANITY_CHECKING.evaluating, RunningStage.SANITY_CHECKING.dataloader_prefix
        (True, 'val')
    """

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        """Whether it computes metrics without training."""
        return self in (RunningStage.VALIDATING, RunningStage.TESTING, RunningStage.SANITY_CHECKING)

    @property
    def dataloader_prefix(self) -> str:
        """How the names of its loaders and limits begin."""
        return "val" if self in (RunningStage.VALIDATING, RunningStage.SANITY_CHECKING) else str(self.value)

    @property
    def hook_name(self) -> str:
        """Its name within those of hooks, as in ``on_validation_start``."""
        return "validation" if self.dataloader_prefix == "val" else str(self.value)


@dataclass
class TrainerState:
    """The state of a Trainer.

    Attributes:
        status: how far the call is.
        fn: the function that was called last, or None.
        stage: the stage it is in, or None.

    Example:
        >>> TrainerState().finished
        False
    """

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None

    @property
    def finished(self) -> bool:
        """Whether the last call came to its end."""
        return self.status == TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        """Whether no call is under way."""
        return self.status.stopped
