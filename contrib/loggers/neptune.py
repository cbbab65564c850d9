"""Sends the numbers of a run to a Neptune server."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from camshaft.contrib.loggers.client import client
from camshaft.contrib.loggers.service import ServiceLogger, Status
from camshaft.handlers.logger import Record

__all__ = ["NeptuneLogger"]


class NeptuneLogger(ServiceLogger):
    """Sends numbers, parameters, tags and checkpoints to a Neptune server, or to files for it (``mode="offline"``).

    The public service ended in 2026; the client still works offline and with servers that are run elsewhere. Numbers
    that are not finite are left out, because Neptune takes none.

    Args:
        project: ``workspace/name``; by default the environment's ``NEPTUNE_PROJECT``.
        settings: ``neptune.init_run``'s arguments, such as ``name``, ``api_token`` and ``mode``.
        every: record what the step returns at each N-th iteration.
        parameters: as of :class:`ServiceLogger`, and so are the other three.
        tags: see there.
        checkpoints: see there.
        run_id: see there; it is Neptune's ``custom_run_id``, by which runs that were made offline become one.

    Raises:
        ValueError: as :class:`ServiceLogger`.
        ModuleNotFoundError: when the run starts, ``neptune`` is not installed.

    Example:
        >>> NeptuneLogger("team/digits", mode="offline")
        NeptuneLogger(project='team/digits', mode='offline')
    """

    service: ClassVar[str] = "neptune"

    def __init__(
        self,
        project: str | None = None,
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
        self.settings = settings

    def begin_run(self, run_id: str | None) -> tuple[Any, str]:
        run_id = run_id or uuid.uuid4().hex
        run = client("neptune", "neptune", self).init_run(project=self.project, custom_run_id=run_id, **self.settings)
        return run, run_id

    def send_parameters(self, run: Any, parameters: Mapping[str, Any]) -> None:
        run["parameters"] = client("neptune.utils", "neptune", self).stringify_unsupported(dict(parameters))

    def send_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        run["sys/tags"].add([f"{name}:{value}" if value else name for name, value in tags.items()])

    def send_record(self, run: Any, record: Record) -> None:
        for name, value in record.values.items():
            if math.isfinite(value):
                run[name].append(value, step=record.iteration, timestamp=record.time)

    def send_file(self, run: Any, path: Path, name: str) -> None:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                place = f"{name}/{file.relative_to(path)}" if path.is_dir() else name
                run[place].upload(str(file))

    def flush_run(self, run: Any) -> None:
        run.wait(disk_only=True)

    def end_run(self, run: Any, status: Status) -> None:
        run["status"] = status
        run.stop()
