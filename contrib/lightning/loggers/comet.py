"""Sends the numbers of a run to Comet."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any, Literal

from torch import nn

from camshaft.contrib.lightning.loggers.hyperparameters import as_mapping, flattened
from camshaft.contrib.lightning.loggers.logger import rank_zero_experiment
from camshaft.contrib.lightning.loggers.service import ServiceLogger, client
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only

__all__ = ["CometLogger"]

_OLD_NAMES = {"experiment_name": "name", "project_name": "project", "save_dir": "offline_directory"}


class CometLogger(ServiceLogger):
    """Sends numbers and hyperparameters to Comet, or to files for it.

    Args:
        api_key: yours; by default the environment's ``COMET_API_KEY``, or what ``comet login`` has kept.
        workspace: your default one unless given.
        project: ``Uncategorized`` unless given.
        experiment_key: of an experiment to continue, or for a new one.
        mode: ``"get_or_create"``, ``"get"`` or ``"create"``.
        online: False to write files, to be uploaded later.
        prefix: what stands before the name of each metric, and a ``_`` after it.
        kwargs: ``comet_ml.ExperimentConfig``'s, such as ``name`` and ``offline_directory``.

    Raises:
        ModuleNotFoundError: ``comet_ml`` is not installed.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        **kwargs: Any,
    ) -> None:
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")  # else it patches torch when it is imported
        comet_ml = client("comet_ml", "comet_ml", self)
        super().__init__()
        for old, new in _OLD_NAMES.items():
            if old in kwargs:
                kwargs.setdefault(new, kwargs.pop(old))
        if "offline" in kwargs:
            offline = kwargs.pop("offline")
            online = not offline if online is None else online
        self._project = project or kwargs.pop("project", None)
        self._experiment_key = experiment_key
        self._prefix = prefix
        self._config = comet_ml.ExperimentConfig(**kwargs)
        self._how = {"api_key": api_key, "workspace": workspace, "mode": mode, "online": online}

    def _start(self) -> Any:
        experiment = client("comet_ml", "comet_ml", self).start(
            project=self._project,
            experiment_key=self._experiment_key,
            experiment_config=self._config,
            **self._how,
        )
        self._experiment_key = experiment.get_key()
        experiment.log_other("Created from", "camshaft")
        return experiment

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Comet's experiment."""
        return self._begun()

    @property
    def name(self) -> str | None:
        """The name of the project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The key of the experiment, once it has begun."""
        return self._experiment_key

    @property
    def save_dir(self) -> str | None:
        """Where files are written for Comet."""
        directory: str | None = self._config.offline_directory
        return directory

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        numbers = dict(metrics)
        epoch = numbers.pop("epoch", None)
        self._send(lambda experiment: experiment.log_metrics(numbers, prefix=self._prefix, step=step, epoch=epoch))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._send(lambda experiment: experiment.log_parameters(flattened(as_mapping(params))))

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        self._send(lambda experiment: experiment.set_model_graph(str(model)))

    def _finish(self, status: str) -> None:
        self._send(lambda experiment: experiment.flush())  # it stays open: programs log more after the training

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_experiment": None}  # its connection stays with this process; the key is enough
