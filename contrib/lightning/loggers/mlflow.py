"""Sends the numbers of a run to MLflow."""

from __future__ import annotations

import os
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

from camshaft.contrib.lightning.loggers.checkpoints import Checkpoint
from camshaft.contrib.lightning.loggers.hyperparameters import as_mapping, flattened, write_yaml
from camshaft.contrib.lightning.loggers.logger import rank_zero_experiment
from camshaft.contrib.lightning.loggers.service import ServiceLogger, client
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only
from camshaft.contrib.loggers.mlflow import begin_run, connect, log_parameters, name_for

__all__ = ["MLFlowLogger"]

_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class MLFlowLogger(ServiceLogger):
    """Sends numbers, hyperparameters and checkpoints to an MLflow server, or to its files.

    Args:
        experiment_name: it is made if there is none of this name.
        run_name: of the run.
        tracking_uri: of the server; by default the environment's ``MLFLOW_TRACKING_URI``, else ``file:SAVE_DIR``.
        tags: of the run.
        save_dir: where MLflow keeps its files if there is no server.
        log_model: ``"all"`` to upload checkpoints when they are saved, True when the run is over, or False.
        prefix: what stands before the name of each metric, and a ``-`` after it.
        artifact_location: where the server keeps the files of a new experiment.
        run_id: of a run to continue.
        synchronous: whether each call waits for the server; needs ``mlflow>=2.8``.

    Raises:
        ModuleNotFoundError: ``mlflow`` is not installed.
        ValueError: ``log_model`` is none of these.
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | None = "./mlruns",
        log_model: Literal["all"] | bool = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        client("mlflow", "mlflow", self)
        super().__init__(log_model)
        self.tags = tags
        self._experiment_name = experiment_name
        self._experiment_id: str | None = None
        self._run_name = run_name
        self._run_id = run_id
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"file:{save_dir}"
        self._prefix = prefix
        self._artifact_location = artifact_location
        self._log_batch_kwargs = {} if synchronous is None else {"synchronous": synchronous}

    def _start(self) -> Any:
        service = connect(self._tracking_uri, self)
        client("mlflow", "mlflow", self).set_tracking_uri(self._tracking_uri)
        if self._run_id is not None:
            self._experiment_id = service.get_run(self._run_id).info.experiment_id
        else:
            self._experiment_id, self._run_id = begin_run(
                service, self._experiment_name, self._run_name, self.tags, self._artifact_location
            )
        return service

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client."""
        return self._begun()

    @property
    def run_id(self) -> str | None:
        """The run's, which begins if it has not."""
        _ = self.experiment
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """The experiment's, which is made if there is none."""
        _ = self.experiment
        return self._experiment_id

    @property
    def name(self) -> str | None:
        """The id of the experiment."""
        return self.experiment_id

    @property
    def version(self) -> str | None:
        """The id of the run."""
        return self.run_id

    @property
    def save_dir(self) -> str | None:
        """Where MLflow keeps its files, if there is no server."""
        return self._tracking_uri.removeprefix("file:") if self._tracking_uri.startswith("file:") else None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        entity = client("mlflow.entities", "mlflow", self).Metric
        now = int(time.time() * 1000)
        before = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        batch = [
            entity(key=name_for(f"{before}{name}"), value=value, timestamp=now, step=step or 0)
            for name, value in metrics.items()
            if not isinstance(value, str)
        ]
        self._send(lambda service: service.log_batch(run_id=self._run_id, metrics=batch, **self._log_batch_kwargs))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        flat = flattened(as_mapping(params))
        self._send(lambda service: log_parameters(service, self._run_id, flat, **self._log_batch_kwargs))

    def _finish(self, status: str) -> None:
        self._send(lambda service: service.set_terminated(self._run_id, _STATUS.get(status, status)))

    def _upload(self, experiment: Any, checkpoint: Checkpoint, about: dict[str, Any]) -> None:
        place = checkpoint.path.stem
        experiment.log_artifact(self._run_id, str(checkpoint.path), place)
        with tempfile.TemporaryDirectory() as directory:
            write_yaml(Path(directory, "metadata.yaml"), about)
            Path(directory, "aliases.txt").write_text(str(checkpoint.aliases), encoding="utf-8")
            experiment.log_artifacts(self._run_id, directory, place)
