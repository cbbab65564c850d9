"""Writes the numbers of a run for TensorBoard; when, says :mod:`camshaft.handlers.logger`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camshaft.handlers.logger import Logger, Record, check_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tensorboardX.event_file_writer import EventsWriter

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(Logger):
    """Writes scalars to an event file, through tensorboardX; ``tensorboard --logdir DIRECTORY`` shows them.

    A tag is the name by which the value can be monitored and stands in the CSV: ``loss``, ``val_accuracy``; the step is
    the iteration. Where a run resumes, or a new one begins in the directory of an earlier one, the event file tells
    TensorBoard to hide what an earlier one holds from that iteration on.

    Args:
        directory: where the event file is made; one for each run lets TensorBoard compare them.
        every: record what the step returns at each N-th iteration.

    Raises:
        ValueError: as :class:`Logger`.
        OSError: when the run starts, if the directory cannot be written.

    Example:
        >>> import tempfile
        >>> from camshaft import Engine
        >>> directory = tempfile.TemporaryDirectory()
        >>> engine = Engine(lambda engine, batch: batch / 2).attach(TensorBoardLogger(directory.name, every=2))
        >>> state = engine.run([1, 2, 3, 4])
        >>> [path.name[:20] for path in Path(directory.name).iterdir()]
        ['events.out.tfevents.']
        >>> directory.cleanup()
    """

    path: Path

    def __init__(self, directory: str | os.PathLike[str], *, every: int = 50) -> None:
        super().__init__(every=every)
        self.path = Path(directory)
        self._writer: EventsWriter | None = None
        self._hide_from: int | None = None
        self._last: list[Record] = []  # those of the last iteration that were written
        self._again: list[Record] = []  # those among them that will be hidden
        self._hides = True  # what is there is of a run that this object knows nothing of, or went on from

    def check_destination(self) -> None:
        check_directory(self.path, self)

    def open(self, iteration: int) -> None:
        # From this iteration on, of which there may be records that came after the checkpoint; those from before it are
        # written again.
        self._hide_from = max(iteration, 1) if self._hides else None
        self._again = [record for record in self._last if self._hides and record.iteration == iteration]
        self._hides = False

    def write(self, records: list[Record]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415 - costs half a second that only a run should pay
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415

        if self._writer is None:
            self._writer = self._new_file()
        again, self._again = self._again, []
        for record in (*again, *records):
            scalars = [Summary.Value(tag=name, simple_value=number) for name, number in record.values.items()]
            self._writer.write_event(
                Event(wall_time=record.time, step=record.iteration, summary=Summary(value=scalars))
            )
        self._writer.flush()
        self._last = [record for record in (*self._last, *records) if record.iteration == records[-1].iteration]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _new_file(self) -> Any:
        # Not tensorboardX's SummaryWriter: its queue and thread give no means to wait until a record is in the file.
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415

        files = sum(1 for _ in self.path.glob("*.tfevents.*"))
        writer = EventsWriter(str(self.path / "events"), f".{files}")  # the rest of its name is the time in seconds
        if files and self._hide_from is not None:
            writer.write_event(Event(step=self._hide_from, session_log=SessionLog(status=SessionLog.START)))
        self._hide_from = None
        return writer

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()  # which writes what waits
        # Without their time, so that equal runs have equal states.
        return {**state, "last": [tuple(record._replace(time=0.0)) for record in self._last]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._last = [Record(*record)._replace(time=time.time()) for record in state_dict["last"]]
        self._hides = True
