"""Sends the numbers of a run to Comet."""

from __future__ import annotations

import os
import time
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from camshaft.contrib.loggers.client import client
from camshaft.contrib.loggers.service import ServiceLogger, Status
from camshaft.handlers.logger import Record

__all__ = ["CometLogger"]

_LONGEST_WAIT = 20.0  # seconds for what is on the way into Comet's file
_INSIDE = ("_write_experiment_meta_file", "_get_offline_archive_file_name", "tmpdir", "offline_directory")
_END_OF_FILE = 4096  # bytes, of which the last message has less


class CometLogger(ServiceLogger):
    """Sends numbers, parameters, tags and checkpoints to Comet, or to files for it (``online=False``).

    A resumed run goes on with the experiment of the same key. Offline, Comet makes its archive at the end only, so the
    logger makes one each time that it writes; the process that goes on has another one with the same key, and
    ``comet upload`` takes both.

    Args:
        project: its name.
        workspace: your default one unless given.
        online: False to write files, to be uploaded later.
        settings: ``comet_ml.ExperimentConfig``'s arguments, such as ``name`` and ``offline_directory``.
        every: record what the step returns at each N-th iteration.
        parameters: as of :class:`ServiceLogger`, and so are the other three.
        tags: see there.
        checkpoints: see there.
        run_id: see there; it is Comet's key of the experiment.

    Raises:
        ValueError: as :class:`ServiceLogger`.
        ModuleNotFoundError: when the run starts, ``comet_ml`` is not installed.

    Example:
        >>> CometLogger("digits", online=False)
        CometLogger(project='digits', online=False)
    """

    service: ClassVar[str] = "comet"

    def __init__(
        self,
        project: str | None = None,
        *,
        workspace: str | None = None,
        online: bool | None = None,
        every: int = 50,
        parameters: Any = None,
        tags: Any = (),
        checkpoints: Any = None,
        run_id: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(every=every, parameters=parameters, tags=tags, checkpoints=checkpoints, run_id=run_id)
        self.project = project
        self.workspace = workspace
        self.online = online
        self.settings = settings

    def begin_run(self, run_id: str | None) -> tuple[Any, str]:
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")  # else it patches torch when it is imported
        comet_ml = client("comet_ml", "comet_ml", self)
        experiment = comet_ml.start(
            project=self.project,
            workspace=self.workspace,
            online=self.online,
            experiment_key=run_id,
            mode="create" if run_id is None else "get_or_create",
            experiment_config=comet_ml.ExperimentConfig(**self.settings),
        )
        return experiment, experiment.get_key()

    def send_parameters(self, run: Any, parameters: Mapping[str, Any]) -> None:
        run.log_parameters(dict(parameters))

    def send_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        run.add_tags([name for name, value in tags.items() if not value])
        for name, value in tags.items():
            if value:
                run.log_other(name, value)

    def send_record(self, run: Any, record: Record) -> None:
        run.log_metrics(record.values, step=record.iteration, epoch=record.epoch)

    def send_file(self, run: Any, path: Path, name: str) -> None:
        if name.startswith("checkpoints/"):
            run.log_model(name.removeprefix("checkpoints/"), str(path))
        elif path.is_dir():
            run.log_asset_folder(str(path), log_file_name=True)
        else:
            run.log_asset(str(path), file_name=name)

    def flush_run(self, run: Any) -> None:
        if not isinstance(run, client("comet_ml", "comet_ml", self).OfflineExperiment):
            run.flush()
        elif all(hasattr(run, name) for name in _INSIDE):  # of which no version of Comet promises anything
            _archive(run)

    def end_run(self, run: Any, status: Status) -> None:
        run.log_other("status", status)
        run.end()


def _archive(run: Any) -> None:
    """Make the archive of an offline experiment as Comet does at its end, with all that it was given until now."""
    files = Path(run.tmpdir)
    marker = uuid.uuid4().hex  # messages are written in order, and one cannot ask whether they are
    run.log_other("camshaft", marker)
    give_up_at = time.monotonic() + _LONGEST_WAIT
    while marker.encode() not in _end_of(files / "messages.json"):
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"Comet has not written its messages to {files} within {_LONGEST_WAIT:.0f} seconds.")
        time.sleep(0.01)
    run.stop_time = round(1000 * time.time())  # for the process may be killed
    run._write_experiment_meta_file()
    archive = Path(run.offline_directory, run._get_offline_archive_file_name())
    beside = archive.with_suffix(".new")
    with zipfile.ZipFile(beside, "w") as content:
        for file in files.iterdir():
            content.write(file, file.name)
    beside.replace(archive)


def _end_of(path: Path) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _END_OF_FILE, 0))
        return file.read()
