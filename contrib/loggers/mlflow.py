"""Sends the numbers of a run to MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from camshaft.contrib.loggers.client import client
from camshaft.contrib.loggers.service import ServiceLogger, Status
from camshaft.handlers.logger import Record

__all__ = ["MLflowLogger", "begin_run", "connect", "log_parameters", "name_for"]

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "ended for now": "KILLED"}
_LONGEST_PARAMETER = 250  # characters; servers refuse longer ones
_LARGEST_BATCH = 100  # parameters that a server takes at once


class MLflowLogger(ServiceLogger):
    """Sends numbers, parameters, tags and checkpoints to an MLflow server, or to a data base or files of MLflow's.

    The step is the iteration. A resumed run asks the server which steps it has.

    Args:
        experiment: it is made if there is none of this name.
        tracking_uri: of the server; by default the environment's ``MLFLOW_TRACKING_URI``, else what MLflow chooses.
        name: of the run; the server chooses one unless given.
        artifact_location: where the server keeps the files of a new experiment.
        options: ``every``, ``parameters``, ``tags``, ``checkpoints`` and ``run_id``, as of :class:`ServiceLogger`.

    Raises:
        ValueError: as :class:`ServiceLogger`.
        ModuleNotFoundError: when the run starts, ``mlflow`` is not installed.

    Example:
        >>> MLflowLogger("digits", tracking_uri="http://127.0.0.1:5000", checkpoints="best")
        MLflowLogger(experiment='digits', tracking_uri='http://127.0.0.1:5000', checkpoints='best')
    """

    service: ClassVar[str] = "mlflow"

    def __init__(
        self,
        experiment: str = "Default",
        *,
        tracking_uri: str | None = None,
        name: str | None = None,
        artifact_location: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self.name = name
        self.artifact_location = artifact_location

    def begin_run(self, run_id: str | None) -> tuple[Any, str]:
        service = connect(self.tracking_uri, self)
        if run_id is not None:
            service.update_run(run_id, status="RUNNING")
            return service, run_id
        return service, begin_run(service, self.experiment, self.name, self.tags, self.artifact_location)[1]

    def steps_there(self, run: Any) -> Mapping[str, int]:
        names = run.get_run(self.run_id).data.metrics
        return _Named({name: max(one.step for one in run.get_metric_history(self.run_id, name)) for name in names})

    def send_parameters(self, run: Any, parameters: Mapping[str, Any]) -> None:
        there = run.get_run(self.run_id).data.params  # of which none can be changed
        log_parameters(run, self.run_id, {name: value for name, value in parameters.items() if name not in there})

    def send_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            run.set_tag(self.run_id, name, value)

    def send_record(self, run: Any, record: Record) -> None:
        entity = client("mlflow.entities", "mlflow", self).Metric
        time = int(record.time * 1000)
        metrics = [entity(name_for(name), value, time, record.iteration) for name, value in record.values.items()]
        run.log_batch(self.run_id, metrics=metrics)

    def send_file(self, run: Any, path: Path, name: str) -> None:
        if path.is_dir():
            run.log_artifacts(self.run_id, str(path), name)
        else:
            run.log_artifact(self.run_id, str(path), str(Path(name).parent) if "/" in name else None)

    def end_run(self, run: Any, status: Status) -> None:
        run.set_terminated(self.run_id, _STATUS[status])


def connect(tracking_uri: str | None, logger: object) -> Any:
    """MLflow's client for a server, a data base, or files."""
    if tracking_uri is not None and tracking_uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions refuse files unless told to take them
    return client("mlflow", "mlflow", logger).MlflowClient(tracking_uri)


def begin_run(
    service: Any, experiment: str, name: str | None, tags: Mapping[str, Any] | None, artifact_location: str | None
) -> tuple[str, str]:
    """Begin a run, and the experiment if there is none of this name; the ids of both."""
    found = service.get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage != "deleted":
        experiment_id = found.experiment_id
    else:
        experiment_id = service.create_experiment(experiment, artifact_location)
    resolve_tags = client("mlflow.tracking.context.registry", "mlflow", service).resolve_tags
    own = {**(tags or {}), **({"mlflow.runName": name} if name is not None else {})}
    return experiment_id, service.create_run(experiment_id, tags=resolve_tags(own)).info.run_id


def log_parameters(service: Any, run_id: str | None, parameters: Mapping[str, Any], **how: Any) -> None:
    """Send parameters, in batches that a server takes."""
    entity = client("mlflow.entities", "mlflow", service).Param
    entities = [entity(name_for(name), str(value)[:_LONGEST_PARAMETER]) for name, value in parameters.items()]
    for first in range(0, len(entities), _LARGEST_BATCH):
        service.log_batch(run_id=run_id, params=entities[first : first + _LARGEST_BATCH], **how)


def name_for(name: str) -> str:
    """The name without the characters that MLflow does not take.

    Example:
        >>> name_for("val_loss (mean)/0")
        'val_loss mean/0'
    """
    return re.sub(r"[^a-zA-Z0-9_/. -]+", "", name)


class _Named(dict[str, int]):
    """Steps by MLflow's names, found by ours, too."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name_for(name), default)
