"""A tensorboardX SummaryWriter that has written when it says so: the original has a queue that cannot be waited for."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar
from tensorboardX.writer import FileWriter

__all__ = ["EventFileWriter"]


class EventFileWriter(SummaryWriter):  # type: ignore[misc] # tensorboardX has no types
    """Takes what a ``SummaryWriter`` does, and writes it in the order in which it came, without a thread.

    Args:
        directory: which exists.
        kwargs: ``SummaryWriter``'s.

    Example:
        >>> import tempfile
        >>> directory = tempfile.TemporaryDirectory()
        >>> writer = EventFileWriter(directory.name)
        >>> writer.add_row({"loss": 0.5, "accuracy": 0.75}, step=9)
        >>> writer.close()
        >>> writer.add_scalar("loss", 0.25, 10)  # in another file
        >>> writer.close()
        >>> len(list(Path(directory.name).iterdir()))
        2
        >>> directory.cleanup()
    """

    file_writer: Any
    all_writers: Any
    purge_step: int | None

    def __init__(self, directory: str, **kwargs: Any) -> None:
        super().__init__(logdir=directory, **kwargs)

    def add_row(self, values: Mapping[str, Any], step: int | None) -> None:
        """Add numbers of one step, all in one event.

        Args:
            values: the numbers by name.
            step: optimizer steps made before.

        Raises:
            ValueError: a value is no number.
        """
        entries = []
        for name, value in values.items():
            try:
                entries.extend(scalar(name, value).value)
            except (AssertionError, NotImplementedError, TypeError, ValueError):
                raise ValueError(
                    f"TensorBoardLogger records numbers, and dictionaries of them, but {name!r} is {value!r}."
                ) from None
        if entries:
            self._get_file_writer().add_summary(Summary(value=entries), step)

    def add_scalars(
        self, main_tag: str, tag_scalar_dict: Mapping[str, Any], global_step: int | None = None, walltime: Any = None
    ) -> None:
        """Add numbers that are drawn in one plot, each in a file of its own.

        Args:
            main_tag: the name of the plot.
            tag_scalar_dict: the numbers by name.
            global_step: the step.
            walltime: seconds since the epoch of Unix; now unless given.
        """
        self._get_file_writer()
        for tag, value in tag_scalar_dict.items():
            directory = str(Path(self.logdir, main_tag, tag))
            if directory not in self.all_writers:
                self.all_writers[directory] = _File(directory, self._flush_secs, self._filename_suffix)
            self.all_writers[directory].add_summary(scalar(main_tag, value), global_step, walltime)

    def hide_from(self, step: int) -> None:
        """Let TensorBoard hide what was recorded at this step and later, until now.

        Args:
            step: the first that will be recorded again.
        """
        self._get_file_writer().add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)

    def _get_file_writer(self) -> Any:
        if self._write_to_disk and (self.all_writers is None or self.file_writer is None):
            self.file_writer = _File(self.logdir, self._flush_secs, self._filename_suffix)
            self.all_writers = {self.logdir: self.file_writer}
            if self.purge_step is not None:
                purge, self.purge_step = self.purge_step, None
                self.hide_from(purge)
        return super()._get_file_writer()


class _File(FileWriter):  # type: ignore[misc]
    """tensorboardX's, without its queue and thread, and with a name that no other file has."""

    def __init__(self, directory: str, flush_seconds: float, suffix: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        files = sum(1 for _ in Path(directory).glob("*.tfevents.*"))  # the rest of a name is the time in seconds
        self._directory = directory
        self._default_metadata: dict[str, Any] = {}
        self.event_writer = _Events(str(Path(directory, "events")), f".{files}{suffix}", flush_seconds)

    def get_logdir(self) -> str:
        return self._directory

    def reopen(self) -> None:
        """It is open."""


class _Events(EventsWriter):  # type: ignore[misc]
    """Writes events when they come; the system gets them after some seconds, or when it is flushed."""

    def __init__(self, prefix: str, suffix: str, flush_seconds: float) -> None:
        super().__init__(prefix, suffix)
        self._flush_seconds = flush_seconds
        self._flushed_at = time.monotonic()
        weakref.finalize(self, self._py_recordio_writer.close)  # a logger that is dropped has lost nothing

    def add_event(self, event: Event) -> None:
        self.write_event(event)
        if time.monotonic() - self._flushed_at >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        # tensorboardX's waits for the disk as well; what the system has, it keeps when the process is killed.
        self._flushed_at = time.monotonic()
        self._py_recordio_writer._writer.flush()
