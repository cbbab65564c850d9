"""The base of the Lightning-style loggers, to which a Trainer hands rows of numbers and the hyperparameters."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only

__all__ = ["DummyExperiment", "DummyLogger", "Logger", "rank_zero_experiment"]


class Logger(ABC):
    """A place where the numbers of a run go; a subclass says in ``log_metrics`` how they get there.

    Example:
        >>> class Print(Logger):
        ...     name, version = "print", 0
        ...
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, metrics)
        ...
        ...     def log_hyperparams(self, params, *args, **kwargs):
        ...         print(params)
        >>> Print().log_metrics({"loss": 0.5}, step=3)
        3 {'loss': 0.5}
    """

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The name of the experiment."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Which of its runs this is."""

    @property
    def root_dir(self) -> str | None:
        """The directory of all versions, or None where nothing is kept in directories."""
        return None

    @property
    def log_dir(self) -> str | None:
        """The directory of this version, or None."""
        return None

    @property
    def save_dir(self) -> str | None:
        """The directory of all experiments, or None."""
        return None

    @property
    def group_separator(self) -> str:
        """What stands between the names of a group and of its member."""
        return "/"

    @abstractmethod
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record numbers.

        Args:
            metrics: the numbers by name.
            step: optimizer steps made before.
        """

    @abstractmethod
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the hyperparameters.

        Args:
            params: by name.
            args: what a subclass takes besides.
            kwargs: the same, by name.
        """

    # The rest may be left out. They are not abstract, and callers need no test whether they are there.

    def log_graph(self, model: nn.Module, input_array: Tensor | None = None) -> None:  # noqa: B027
        """Record the graph of a model.

        Args:
            model: with a ``forward``.
            input_array: what to call it with; its ``example_input_array`` by default.
        """

    def resume_from(self, step: int) -> None:  # noqa: B027
        """The run goes on after so many optimizer steps: drop what an interrupted one recorded later than that.

        Args:
            step: ``trainer.global_step`` of the checkpoint.
        """

    def save(self) -> None:  # noqa: B027
        """Write what waits to be written."""

    def finalize(self, status: str) -> None:
        """The run is over.

        Args:
            status: ``"success"``, ``"failed"`` or ``"finished"``.
        """
        self.save()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:  # noqa: B027
        """A ``ModelCheckpoint`` has saved a file.

        Args:
            checkpoint_callback: it.
        """


class DummyExperiment:
    """Takes every call and does nothing: what ``logger.experiment`` is on all processes but the first.

    Example:
        >>> experiment = DummyExperiment()
        >>> experiment.add_image("digit", None)
        >>> experiment[0].add_scalar("loss", 0.5)
    """

    def nop(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):  # Python asks for these to find out what an object is
            raise AttributeError(name)
        return self.nop

    def __getitem__(self, index: Any) -> DummyExperiment:
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        pass


class DummyLogger(Logger):
    """Takes everything and records nothing: the logger of a ``fast_dev_run``, for modules that use theirs.

    Example:
        >>> logger = DummyLogger()
        >>> logger.log_metrics({"loss": 0.5}, step=1)
        >>> logger.log_image(key="digits", images=[])
        >>> logger.name, logger.experiment.add_scalar("loss", 0.5)
        ('', None)
    """

    def __init__(self) -> None:
        self._experiment = DummyExperiment()

    @property
    def experiment(self) -> DummyExperiment:
        """One that does nothing either."""
        return self._experiment

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getitem__(self, index: Any) -> DummyLogger:
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return DummyExperiment().nop


def rank_zero_experiment(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decorates the ``experiment`` of a logger: only the first process makes one, the others get one that does nothing.

    Example:
        >>> class Memory(DummyLogger):
        ...     @property
        ...     @rank_zero_experiment
        ...     def experiment(self):
        ...         return [1.0, 2.0]
        >>> Memory().experiment
        [1.0, 2.0]
    """

    @functools.wraps(fn)
    def experiment(self: Any) -> Any:
        return fn(self) if rank_zero_only.rank == 0 else DummyExperiment()

    return experiment
