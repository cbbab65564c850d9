"""What the loggers of vendors' services have in common; when they record, says :mod:`camshaft.handlers.logger`.

Listens to, besides what every logger does:

- EPOCH_STARTED in REPORT, with ``checkpoints="all"``: sends the checkpoints that were written since.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from ignite.engine import Engine as IgniteEngine

from camshaft.contrib.loggers.parameters import as_mapping, as_plain, flattened
from camshaft.contrib.loggers.sender import Sender
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.handlers.checkpoint import Checkpoint
from camshaft.handlers.handler import On, handlers_of
from camshaft.handlers.logger import Logger, Record

__all__ = ["ServiceLogger"]

Status = Literal["finished", "failed", "ended for now"]


class ServiceLogger(Logger):
    """The base of the loggers of services; a subclass says in a few methods how its client is called.

    The client is called from a thread of its own, in order. A checkpoint waits until all that was recorded before it is
    sent, but not for a service that does not answer: then there is one warning, the training goes on, what could not be
    sent is tried again each minute, and the end of the run says how many records were lost.

    The run's id at the service is kept in the checkpoint, so that a resumed program goes on with the same run there.
    What the killed one had sent after its checkpoint is not sent again: the service is asked what it has, or else it is
    read from a small file that is kept beside the checkpoints of the engine's ``Checkpoint``.

    Args:
        every: record what the step returns at each N-th iteration.
        parameters: what the run was started with, by name; dictionaries in it become ``optimizer/lr``.
        tags: words, or values by name.
        checkpoints: which of the engine's ``Checkpoint`` are sent when they are whole: the ``"best"`` or the ``"last"``
            at the end of the run, or ``"all"``, each at the beginning of the next epoch.
        run_id: of a run at the service to go on with, unless a checkpoint says which.

    Raises:
        ValueError: ``checkpoints`` is none of these, or as :class:`Logger`.
        ModuleNotFoundError: the service's client is not installed.
    """

    service: ClassVar[str] = "service"
    """The name of the file that is kept beside the checkpoints."""

    writes_in_background = False  # its sender has a thread, which knows what to do when a service does not answer

    survives: bool = True
    """Whether what the client was given is still there when the process is killed."""

    def __init__(
        self,
        *,
        every: int = 50,
        parameters: Any = None,
        tags: Mapping[str, Any] | Iterable[str] = (),
        checkpoints: Literal["best", "last", "all"] | None = None,
        run_id: str | None = None,
    ) -> None:
        super().__init__(every=every)
        if checkpoints not in ("best", "last", "all", None):
            raise ValueError(
                f"{type(self).__name__} sends the 'best' checkpoint, the 'last' one, or 'all', but got {checkpoints!r}."
            )
        self.parameters = flattened(as_plain(as_mapping(parameters)))
        self.tags: dict[str, str] = (
            {name: str(value) for name, value in tags.items()} if isinstance(tags, Mapping) else dict.fromkeys(tags, "")
        )
        self.checkpoints = checkpoints
        self.run: Any = None
        """The client's object for the run, once that has begun; what it takes besides may be sent with it."""
        self.run_id = self._given_run_id = run_id
        if checkpoints == "all":
            self.listens += (On(Events.EPOCH_STARTED, Phase.REPORT, "send_new_checkpoints"),)
        self._sender = Sender(type(self).__name__)
        self._status: Status = "failed"
        self._checkpoint: Checkpoint | None = None
        self._sent_checkpoints: list[str] = []
        self._wrong: Exception | None = None  # an argument, to be raised where the run starts
        self._position = (0, 0)  # the iteration of the last record, and how many there are of that
        self._sent_before = (0, 0)  # the position that a killed run had reached
        self._steps_before: Mapping[str, int] | None = None  # the same for each name, where the service tells

    # ------------------------------------------------------------------------------------------------ for subclasses

    def begin_run(self, run_id: str | None) -> tuple[Any, str]:
        """Begin a run, or go on with that of this id; return the client's object for it, and its id."""
        raise NotImplementedError(f"{type(self).__name__} does not say how a run begins: override begin_run(run_id).")

    def steps_there(self, run: Any) -> Mapping[str, int] | None:
        """The last step that a run has of each name; None where the service cannot be asked."""
        return None

    def send_parameters(self, run: Any, parameters: Mapping[str, Any]) -> None:
        """Send what the run was started with: plain values by name."""

    def send_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        """Send tags; of a word the value is empty."""

    def send_record(self, run: Any, record: Record) -> None:
        """Send the numbers of one moment."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it sends: override send_record(run, record)."
        )

    def send_file(self, run: Any, path: Path, name: str) -> None:
        """Send a file, or the files of a directory, to be found under a name."""

    def flush_run(self, run: Any) -> None:
        """Return when what was sent outlives this process, as far as the client can tell."""

    def end_run(self, run: Any, status: Status) -> None:
        """The run is over, or will be gone on with."""

    # ------------------------------------------------------------------------------------------------ for programs

    def add_file(self, path: str | Path, name: str | None = None) -> None:
        """Send a file or a directory, which must stay as it is until the next checkpoint.

        Args:
            path: of it.
            name: under which it is found; by default its own.
        """
        if self._writes:
            path = Path(path)
            self._sender.do(lambda: self.send_file(self.run, path, name or path.name))

    # ------------------------------------------------------------------------------------------------ the run

    def begin(self, engine: Any) -> None:
        self._checkpoint = next((one for one in handlers_of(engine) if isinstance(one, Checkpoint)), None)
        super().begin(engine)

    def open(self, iteration: int) -> None:
        if iteration == 0 and self.records_written:  # another run of this object
            self.run_id = self._given_run_id
            self._position, self._sent_checkpoints = (0, 0), []
        self._status = "failed"
        self._sender.do(self._begin, is_first=True)
        self._sender.wait()
        wrong, self._wrong = self._wrong, None
        if wrong is not None:
            self._sender.finish()
            raise wrong

    def _begin(self) -> None:
        goes_on = self.run_id is not None
        try:
            self.run, self.run_id = self.begin_run(self.run_id)
            self._steps_before = self.steps_there(self.run) if goes_on else None
            self._sent_before = self._read_position() if goes_on and self.survives else (0, 0)
            if self.parameters:
                self.send_parameters(self.run, self.parameters)
            if self.tags:
                self.send_tags(self.run, self.tags)
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            if isinstance(error, OSError):  # some clients' errors are both
                raise
            self._wrong = error

    def write(self, records: list[Record]) -> None:
        for record in records:
            iteration, count = self._position
            self._position = (record.iteration, count + 1 if record.iteration == iteration else 1)
            self._sender.do(partial(self._send, record, self._position), records=1)
        self._sender.do(partial(self._confirm, self._position))

    def _send(self, record: Record, position: tuple[int, int]) -> None:
        if self._steps_before is not None:
            there = self._steps_before
            values = {name: value for name, value in record.values.items() if record.iteration > there.get(name, -1)}
        else:
            values = record.values if position > self._sent_before else {}
        if values:
            self.send_record(self.run, record._replace(values=values))

    def _confirm(self, position: tuple[int, int]) -> None:
        """Note, once that is certain, that everything up to here is sent."""
        self.flush_run(self.run)
        if position > self._sent_before:
            self._write_position(position)

    def send_new_checkpoints(self) -> None:
        """Send the checkpoints that were written since."""
        if self._writes and self._checkpoint is not None:
            for saved in self._checkpoint.store.list():
                self._send_checkpoint(saved.path)

    def finish(self, engine: Any) -> None:
        for_now = any(handler.ends_run_for_now for handler in handlers_of(engine))
        self._status = "ended for now" if for_now else "finished"
        if self._writes and self._checkpoint is not None and self.checkpoints is not None:
            self._checkpoint.wait()
            if self.checkpoints == "all":
                self.send_new_checkpoints()
            elif not for_now:
                path = (self._checkpoint.best if self.checkpoints == "best" else None) or self._checkpoint.last
                if path is not None:
                    self._send_checkpoint(path)
        super().finish(engine)

    def _send_checkpoint(self, path: Path) -> None:
        if path.name not in self._sent_checkpoints:
            self._sent_checkpoints.append(path.name)
            self._sender.do(lambda: self.send_file(self.run, path, f"checkpoints/{path.name}"))

    def close(self) -> None:
        status = self._status
        self._sender.do(lambda: self.end_run(self.run, status))
        self._sender.finish()

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        if self.checkpoints is not None and not any(isinstance(one, Checkpoint) for one in handlers_of(engine)):
            raise ValueError(
                f"{self!r} sends checkpoints, but this engine makes none: attach a Checkpoint, or leave that out."
            )

    # ------------------------------------------------------------------------------------------------ state

    @property
    def _position_file(self) -> Path | None:
        return self._checkpoint.directory / f"{self.service}.json" if self._checkpoint is not None else None

    def _write_position(self, position: tuple[int, int]) -> None:
        path = self._position_file
        if path is None:
            return
        beside = path.with_name(path.name + ".new")
        try:
            beside.write_text(json.dumps({"run_id": self.run_id, "position": position}), encoding="utf-8")
            beside.replace(path)
        except OSError as error:  # the record is sent: do not send it again
            warnings.warn(f"{path} cannot be written: {error}", stacklevel=1)

    def _read_position(self) -> tuple[int, int]:
        path = self._position_file
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
            if kept.get("run_id") == self.run_id:
                iteration, count = kept["position"]
                return iteration, count
        except (OSError, ValueError):  # there is none
            pass
        return 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The id of the run, and how much of it is sent; it is, unless the service does not answer."""
        state = super().state_dict()
        if self._writes:
            self._sender.wait()
        sent_checkpoints = list(self._sent_checkpoints)
        return {**state, "run_id": self.run_id, "position": self._position, "sent_checkpoints": sent_checkpoints}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.run_id = state_dict["run_id"]
        iteration, count = state_dict["position"]
        self._position = iteration, count
        self._sent_checkpoints = list(state_dict["sent_checkpoints"])
