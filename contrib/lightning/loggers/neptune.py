"""Sends the numbers of a run to a Neptune server."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from camshaft.contrib.lightning.loggers.checkpoints import Checkpoint
from camshaft.contrib.lightning.loggers.hyperparameters import as_mapping, as_plain
from camshaft.contrib.lightning.loggers.logger import rank_zero_experiment
from camshaft.contrib.lightning.loggers.service import ServiceLogger, client
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only

__all__ = ["NeptuneLogger"]


class NeptuneLogger(ServiceLogger):
    """Sends numbers, hyperparameters and checkpoints to a Neptune server of your own, or to files for it.

    The public service ended in 2026, and Lightning has dropped its logger; the client still works with
    ``mode="offline"`` and with servers that are run elsewhere.

    Args:
        api_key: yours; by default the environment's ``NEPTUNE_API_TOKEN``.
        project: ``workspace/name``; by default the environment's ``NEPTUNE_PROJECT``.
        name: of the run.
        run: one that has begun, to record with.
        log_model_checkpoints: whether to upload checkpoints when the run is over.
        prefix: the name under which everything stands.
        neptune_run_kwargs: ``neptune.init_run``'s, such as ``mode`` and ``tags``.

    Raises:
        ModuleNotFoundError: ``neptune`` is not installed.
    """

    LOGGER_JOIN_CHAR = "/"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        project: str | None = None,
        name: str | None = None,
        run: Any = None,
        log_model_checkpoints: bool | None = True,
        prefix: str = "training",
        **neptune_run_kwargs: Any,
    ) -> None:
        client("neptune", "neptune", self)
        super().__init__(bool(log_model_checkpoints))
        self._experiment = run
        self._name = name
        self._prefix = prefix
        self._how = {"api_token": api_key, "project": project, "name": name, **neptune_run_kwargs}

    def _start(self) -> Any:
        given = {key: value for key, value in self._how.items() if value is not None}
        return client("neptune", "neptune", self).init_run(**given)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Neptune's run."""
        return self._begun()

    @property
    def run(self) -> Any:
        """The same."""
        return self.experiment

    @property
    def name(self) -> str | None:
        """The name of the run."""
        return self._name

    @property
    def version(self) -> str | None:
        """The id of the run, once it has begun."""
        if self._experiment is None:
            return None
        try:
            version: str = self._experiment["sys/id"].fetch()
        except Exception:  # noqa: BLE001 - it has none while it is offline
            return None
        return version

    @property
    def save_dir(self) -> str:
        """Where the client keeps its files."""
        return ".neptune"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        def send(run: Any) -> None:
            for name, value in metrics.items():
                run[self._path(name)].append(value, step=step)

        self._send(send)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        values = as_plain(as_mapping(params))
        texts = client("neptune.utils", "neptune", self).stringify_unsupported(values)
        self._send(lambda run: run.__setitem__(self._path("hyperparams"), texts))

    def _upload(self, experiment: Any, checkpoint: Checkpoint, about: dict[str, Any]) -> None:
        place = self._path(f"model/checkpoints/{checkpoint.path.stem}")
        experiment[place].upload(str(checkpoint.path))
        if "best" in checkpoint.aliases:
            experiment[self._path("model/best_model_path")] = str(checkpoint.path)
            if checkpoint.score is not None:
                experiment[self._path("model/best_model_score")] = checkpoint.score

    def _finish(self, status: str) -> None:
        self._send(lambda run: run.__setitem__(self._path("status"), status))

    def _path(self, name: str) -> str:
        return self.LOGGER_JOIN_CHAR.join(part for part in (self._prefix, name) if part)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_experiment": None}
