"""Sends the numbers of a run to ClearML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from camshaft.contrib.loggers.client import client
from camshaft.contrib.loggers.service import ServiceLogger, Status
from camshaft.handlers.logger import Record

__all__ = ["ClearMLLogger"]

# What the client would find out by itself: it would patch torch and others, and record the same numbers again.
_NOTHING_BY_ITSELF = {
    "auto_connect_frameworks": {"detect_repository": False},
    "auto_connect_arg_parser": False,
    "auto_connect_streams": False,
    "auto_resource_monitoring": False,
}


class ClearMLLogger(ServiceLogger):
    """Sends numbers, parameters, tags and checkpoints to ClearML, or to files for it after ``Task.set_offline(True)``.

    A name of two parts, such as ``learning_rate/0``, is a series of the plot ``learning_rate``. The process has one
    task; if the program has begun it, it is taken.

    Args:
        project: its name.
        name: of the task.
        settings: ``Task.init``'s arguments; unless given, the client patches and watches nothing by itself.
        every: record what the step returns at each N-th iteration.
        parameters: as of :class:`ServiceLogger`, and so are the other three.
        tags: see there.
        checkpoints: see there.
        run_id: see there; it is ClearML's id of the task.

    Raises:
        ValueError: as :class:`ServiceLogger`.
        ModuleNotFoundError: when the run starts, ``clearml`` is not installed.

    Example:
        >>> ClearMLLogger("digits", "first")
        ClearMLLogger(project='digits', name='first')
    """

    service: ClassVar[str] = "clearml"

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        *,
        every: int = 50,
        parameters: Any = None,
        tags: Any = (),
        checkpoints: Any = None,
        run_id: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(every=every, parameters=parameters, tags=tags, checkpoints=checkpoints, run_id=run_id)
        self.project = project
        self.name = name
        self.settings = settings

    def begin_run(self, run_id: str | None) -> tuple[Any, str]:
        task_class = client("clearml", "clearml", self).Task
        how = {**_NOTHING_BY_ITSELF, "reuse_last_task_id": run_id or False, **self.settings}
        if run_id is not None:
            how["continue_last_task"] = 0  # with that task, and without adding its last iteration to ours
        task = task_class.current_task() or task_class.init(project_name=self.project, task_name=self.name, **how)
        return task, task.id

    def send_parameters(self, run: Any, parameters: Mapping[str, Any]) -> None:
        run.set_parameters({f"General/{name}": value for name, value in parameters.items()})

    def send_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        run.add_tags([f"{name}:{value}" if value else name for name, value in tags.items()])

    def send_record(self, run: Any, record: Record) -> None:
        for name, value in record.values.items():
            title, _, series = name.partition("/")
            run.get_logger().report_scalar(title, series or title, value, record.iteration)

    def send_file(self, run: Any, path: Path, name: str) -> None:
        run.upload_artifact(name, artifact_object=str(path), wait_on_upload=True)

    def flush_run(self, run: Any) -> None:
        run.flush(wait_for_uploads=True)

    def end_run(self, run: Any, status: Status) -> None:
        if status == "failed":
            run.mark_failed(ignore_errors=True, status_reason="the training ended with an error")
        run.flush(wait_for_uploads=True)
        run.close()
