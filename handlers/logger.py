"""Records the numbers of a run and hands them in batches to a file or a service: what every logger shares.

Listens to:

- STARTED in PREPARE: makes sure that it can write, and asks the other processes when to. In REPORT, after a checkpoint
  was brought back: begins to.
- ITERATION_STARTED(every=N) in REPORT: notes the learning rates that this iteration will use.
- ITERATION_COMPLETED(every=N) in REPORT: records them, what the step returned, and metrics that are new.
- EPOCH_COMPLETED in REPORT: records the metrics of the epoch and writes.
- INTERRUPT, TERMINATE, COMPLETED in REPORT, and EXCEPTION_RAISED in PREPARE, before a function of the user can raise
  the error again: writes what is left.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ignite.distributed as idist
import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.agreement import Agreement, gather_on_first, weighted_mean
from camshaft.engine.distributed import world_size
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.engine.used_objects import used_by
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.monitor import metrics_of, outputs_of, weight_of_output
from camshaft.handlers.optimizer_step import OptimizerStep
from camshaft.handlers.scalars import Scalars
from camshaft.handlers.writer_thread import WriterThread

__all__ = ["Logger", "Record"]

# Records that may wait in memory, and for how long: then they are written even in the middle of an epoch.
_MOST_WAITING = 100
_LONGEST_WAIT = 30.0  # seconds


class Record(NamedTuple):
    """The numbers of one moment.

    Attributes:
        iteration: ``state.iteration``.
        epoch: ``state.epoch``.
        optimizer_step: optimizer steps made so far, or None where nobody counts them.
        time: seconds since the epoch of Unix.
        values: the numbers by name; tensors until they are written.
    """

    iteration: int
    epoch: int
    optimizer_step: int | None
    time: float
    values: dict[str, Any]


class Logger(Handler):
    """The base class of all loggers; a subclass says in :meth:`write` where the records go.

    Everywhere a number has one name, by which it can be monitored, too: ``loss`` and the other scalars that the step
    returns have the names they have there, metrics those in ``state.metrics`` (``val_accuracy``). The learning rate is
    ``learning_rate``; with several optimizers or groups of parameters it is ``learning_rate/generator_step``,
    ``learning_rate/0`` and so on.

    Values stay tensors, copied on their device, and are fetched together: at the end of an epoch and of the run, before
    a checkpoint, at an error, after 100 records or half a minute. Attach it on every process of a distributed run: the
    first alone writes, the means over all processes, which are gathered when it fetches. What it writes at an error is
    its own.

    A thread writes what was fetched, in order, while the training goes on. All of it is written when a checkpoint is
    made, when the run ends, is interrupted or fails, and when :meth:`flush` returns. An error in writing is raised in
    the thread that trains, the next time that it hands over records.

    Args:
        every: record what the step returns at each N-th iteration, 50 by default, and at the end of an epoch that had
            none of these.

    Raises:
        ValueError: ``every`` is not positive; when the run starts, if two loggers of one engine write to one place.
        OSError: when the run starts, if it cannot write.

    Example:
        >>> from camshaft import Engine
        >>> class Print(Logger):
        ...     def write(self, records):
        ...         for record in records:
        ...             print(record.iteration, record.values)
        >>> engine = Engine(lambda engine, batch: torch.tensor(batch / 2)).attach(Print(every=2))
        >>> state = engine.run([1, 2, 3, 4])
        2 {'loss': 1.0}
        4 {'loss': 2.0}
    """

    path: Path | None = None
    """The file or directory that it writes to, if that is what it does."""

    writes_in_background: ClassVar[bool] = True
    """Whether :meth:`write` is called by a thread of the logger's own, or by the one that trains."""

    def __init__(self, *, every: int = 50) -> None:
        if not every > 0:
            raise ValueError(f"{type(self).__name__} records every so many iterations, but got every={every!r}.")
        self.every = every
        self.listens = (
            On(Events.STARTED, Phase.PREPARE, "prepare"),
            On(Events.STARTED, Phase.REPORT, "begin"),
            On(Events.ITERATION_STARTED(every=every), Phase.REPORT, "note_learning_rates"),
            On(Events.ITERATION_COMPLETED(every=every), Phase.REPORT, "record"),
            On(Events.EPOCH_COMPLETED, Phase.REPORT, "record_epoch"),
            On(Events.INTERRUPT, Phase.REPORT, "flush"),
            On(Events.TERMINATE, Phase.REPORT, "stop"),
            On(Events.COMPLETED, Phase.REPORT, "finish"),
            On(Events.EXCEPTION_RAISED, Phase.PREPARE, "rescue"),
        )
        self.records_written: int | None = None  # None until its first run, which may find those of a lost one
        self._epoch_recorded = 0  # the last one of which an iteration was recorded
        self._waiting: list[Record] = []
        self._weights: list[Any] = []  # of these, beside the same ones of other processes
        self._recorded = 0  # iterations, since it last wrote
        self._written_at = 0.0
        self._writes = self._is_open = False
        self._is_one_of_several = False
        self._thread: WriterThread | None = None  # while it is open
        self._agreement: Agreement | None = None  # with the other processes, on when to write
        self._learning_rates: dict[str, Any] = {}
        self._seen: dict[str, tuple[Any, int | None, int]] = {}
        self._seen_before: Mapping[str, Any] | None = None  # of the metrics that a checkpoint brings back
        self._engine: weakref.ref[IgniteEngine] | None = None

    # ------------------------------------------------------------------------------------------------ for subclasses

    def check_destination(self) -> None:
        """Raise an OSError that says what to do if nothing can be written; called before anything else happens."""

    def open(self, iteration: int) -> None:
        """Be ready to write what comes after ``iteration``.

        ``self.records_written`` says how many records there are by rights: any further ones are of a run that went on
        after the checkpoint which has been brought back. It is None when this object has never written.
        """

    def write(self, records: list[Record]) -> None:
        """Write records, in order; their values are plain numbers.

        A thread calls it, once at a time, and no other method here while it does; see ``writes_in_background``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it writes: override write(records).")

    def close(self) -> None:
        """Let go of what :meth:`open` took; it may be opened again."""

    # ------------------------------------------------------------------------------------------------ the run

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        for other in handlers_of(engine):
            if other is not self and type(other) is type(self) and self.path is not None and other.path == self.path:
                raise ValueError(f"Two loggers write to {str(self.path)!r}, {self!r} and {other!r}: keep one of them.")

    def prepare(self, engine: IgniteEngine) -> None:
        """Make sure, before anything else happens, that there is somewhere to write to."""
        self._writes = idist.get_rank() == 0
        self._is_one_of_several = world_size() > 1
        self._agreement = Agreement.of(engine)
        if self._agreement is not None:
            self._question = f"Logger {handlers_of(engine).index(self)}"
            self._agreement.ask(self._question, self._has_waited_long)
        if self._writes:
            self.check_destination()

    def begin(self, engine: Any) -> None:
        """Begin to record; what ``state.metrics`` holds by now is of an earlier run."""
        if not self._records:
            return
        self._optimizers = _optimizers_of(engine)
        if engine.state.iteration == 0:
            self._epoch_recorded = 0
        self._engine = weakref.ref(engine)
        self._seen = {}
        if self._seen_before is None:
            for _ in self._new_metrics(engine):
                pass
        else:
            metrics = metrics_of(engine)
            self._seen = {name: (metrics[name], *at) for name, at in self._seen_before.items() if name in metrics}
        self._seen_before = None
        self._open(engine.state.iteration)

    @property
    def _records(self) -> bool:
        """Whether it has anything to do: of processes of which torch does not know, the first alone."""
        return self._writes or self._is_one_of_several

    def note_learning_rates(self, engine: IgniteEngine) -> None:
        """Note the learning rates before the step and the schedule that follows it."""
        if self._records:
            self._learning_rates = _learning_rates(self._optimizers)

    def record(self, engine: Any) -> None:
        """Record one iteration."""
        if not self._records:
            return
        self._epoch_recorded = engine.state.epoch
        outputs = {name: _kept(value) for name, value in outputs_of(engine).items()}
        self._add(engine, {**outputs, **self._learning_rates})
        self._recorded += 1
        if self._recorded >= _MOST_WAITING or self._is_time_to_write():
            self._hand_over()

    def record_epoch(self, engine: Any) -> None:
        """Record the metrics of an epoch, and its last iteration if none was recorded; then write."""
        if not self._records:
            return
        values: dict[str, Any] = {}
        if self._epoch_recorded != engine.state.epoch:
            self._epoch_recorded = engine.state.epoch
            values = {name: _kept(value) for name, value in outputs_of(engine).items()}
            values.update(_learning_rates(self._optimizers))
        self._add(engine, values, epoch_is_over=True)
        self._hand_over()

    def finish(self, engine: Any) -> None:
        """Record what the end of the run has added, such as a test, and close."""
        if self._records:
            self._add(engine, {})
            self._hand_over()
            self._close()

    def stop(self, engine: Any) -> None:
        """Write when the run is told to end; close, too, if it was told to end without COMPLETED."""
        if engine.should_terminate == "skip_completed":
            self.finish(engine)
        else:
            self.flush()

    def rescue(self, engine: Any, error: BaseException) -> None:
        """Write what was recorded before an error; where that fails, too, the first error is the one to see."""
        if self._is_open:
            try:
                self._write([record for record, _ in self._fetch()])  # the other processes may know of no error
                self._close()
            except (OSError, RuntimeError) as second:
                engine.logger.warning("%r could not write its last records: %s", self, second)

    def flush(self) -> None:
        """Return when all that was recorded is written; of several processes all call it at the same point."""
        self._hand_over()
        self._wait()

    def _hand_over(self) -> None:
        """Fetch what waits, and have it written."""
        fetched = self._fetch()
        of_processes = gather_on_first(fetched) if self._is_one_of_several else [fetched]
        self._write(averaged(of_processes if of_processes is not None else [fetched]))

    def _fetch(self) -> list[tuple[Record, float]]:
        """What waits, with plain numbers, and how much each record counts."""
        records, weights = self._waiting, self._weights
        self._waiting, self._weights, self._recorded = [], [], 0
        self._written_at = time.monotonic()
        values = [value for record in records for value in record.values.values()]
        numbers = iter(Scalars([*values, *weights]).numbers())
        records = [record._replace(values={name: next(numbers) for name in record.values}) for record in records]
        return list(zip(records, numbers, strict=True))

    def _write(self, records: list[Record]) -> None:
        if not records:
            return
        if not self._is_open:  # a checkpoint was brought back in the middle of the run
            self._open(records[0].iteration - 1)
        self._do(partial(self._write_now, records))

    def _write_now(self, records: list[Record]) -> None:
        if self._writes:
            self.write(records)
        self.records_written = (self.records_written or 0) + len(records)

    def _do(self, call: Callable[[], object]) -> None:
        """Call what writes, in the order in which this is called."""
        if self._thread is not None:
            self._thread.do(call)
        else:
            call()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.wait()

    def _is_time_to_write(self) -> bool:
        if self._agreement is None:
            return bool(self._has_waited_long())
        agreed = self._agreement.agreed(self._question)
        self._agreement.forget(self._question)
        return bool(agreed)

    def _has_waited_long(self) -> int:
        return time.monotonic() - self._written_at > _LONGEST_WAIT

    def _open(self, iteration: int) -> None:
        self._end_thread()  # of a run that was given up
        if self._writes:
            self.open(iteration)
            if self.writes_in_background:
                self._thread = WriterThread(type(self).__name__)
        self.records_written = self.records_written or 0
        self._written_at = time.monotonic()
        self._is_open = True

    def _close(self) -> None:
        self._is_open = False
        try:
            self._end_thread()
        finally:
            if self._writes:
                self.close()

    def _end_thread(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.end()

    def _add(self, engine: Any, values: dict[str, Any], *, epoch_is_over: bool = False) -> None:
        """Let a record of ``values`` and of the new metrics wait; a metric made earlier gets one before."""
        state = engine.state
        now = time.time()
        metrics: dict[int, dict[str, Any]] = {}
        for name, value, iteration in self._new_metrics(engine, epoch_is_over=epoch_is_over):
            metrics.setdefault(iteration, {})[name] = _kept(value)
        values = {**values, **metrics.pop(state.iteration, {})}
        self._waiting += [Record(made, state.epoch, None, now, metrics[made]) for made in sorted(metrics)]
        self._weights += [1.0] * len(metrics)
        if values:
            optimizer_step = getattr(state, "optimizer_step", None)
            self._waiting.append(Record(state.iteration, state.epoch, optimizer_step, now, values))
            self._weights.append(_kept(weight_of_output(engine)) if self._is_one_of_several else 1.0)

    def _new_metrics(self, engine: Any, *, epoch_is_over: bool = False) -> Iterator[tuple[str, Any, int]]:
        """The metrics that were not recorded yet: name, value, and the iteration at which it was made.

        New is what a handler says it has made, and another object than last time. At the end of an epoch a number of
        which no handler knows anything is taken for new as well: equal numbers may be one object.
        """
        now = engine.state.iteration
        last = self._waiting[-1].iteration if self._waiting else -1
        for name, value in metrics_of(engine).items():
            times = [at for handler in handlers_of(engine) if (at := handler.produced_at(name)) is not None]
            made = max(times, default=None)
            value_seen, made_seen, seen_at = self._seen.get(name, (None, None, -1))
            if value is not value_seen or made != made_seen or (epoch_is_over and made is None and seen_at != now):
                self._seen[name] = (value, made, now)
                yield name, value, made if made and last < made < now and made != made_seen else now

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """How much has been written, once all that waits is, and which of the present metrics are among it."""
        self.flush()
        engine = self._engine() if self._engine is not None else None
        metrics = metrics_of(engine) if engine is not None else {}
        seen = {name: at for name, (value, *at) in self._seen.items() if metrics.get(name) is value}
        return {"records_written": self.records_written, "epoch_recorded": self._epoch_recorded, "seen": seen}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._wait()
        self._waiting, self._weights = [], []
        self._epoch_recorded = state_dict["epoch_recorded"]
        if not self._is_open:
            self._seen_before = state_dict["seen"]
        if state_dict["records_written"] != self.records_written:
            self.records_written = state_dict["records_written"]
            if self._is_open:
                self._close()


def averaged(of_processes: list[list[tuple[Record, float]]]) -> list[Record]:
    """The records of several processes as one: the means of their values, weighted, in the order of iterations.

    Example:
        >>> first, second = (Record(5, 1, None, 0.0, {"loss": loss}) for loss in (1.0, 2.0))
        >>> averaged([[(first, 3.0)], [(second, 1.0)]])[0].values
        {'loss': 1.25}
    """
    if len(of_processes) == 1:
        return [record for record, _ in of_processes[0]]
    merged: dict[tuple[int, int], Record] = {}  # by the iteration, and which of its records it is
    values: dict[tuple[int, int], dict[str, list[tuple[float, float]]]] = {}
    for records in of_processes:
        of_iteration: Counter[int] = Counter()
        for record, weight in records:
            key = record.iteration, of_iteration[record.iteration]
            of_iteration[record.iteration] += 1
            merged.setdefault(key, record)
            by_name = values.setdefault(key, {})
            for name, value in record.values.items():
                by_name.setdefault(name, []).append((value, weight))
    return [
        merged[key]._replace(values={name: weighted_mean(of_name) for name, of_name in values[key].items()})
        for key in sorted(merged)
    ]


def check_directory(directory: Path, logger: object) -> None:
    """Make ``directory`` if need be, and make sure that files can be made there.

    Raises:
        OSError: they cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise cannot_write(directory, logger, error) from None


def check_file(path: Path, logger: object) -> None:
    """Make sure that ``path`` can be written, which may be there already.

    Raises:
        OSError: it cannot.
    """
    check_directory(path.parent, logger)
    try:
        path.open("a").close()
    except OSError as error:
        raise cannot_write(path, logger, error) from None


def move_aside(path: Path) -> None:
    """Rename the file of an earlier run: ``metrics.csv`` to ``metrics.1.csv``, or the next number that is free."""
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(older)


def write_to_disk(path: Path) -> None:
    """Return when what was written to ``path``, if it is there, is on the disk."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def cannot_write(path: Path, logger: object, error: OSError) -> OSError:
    """The same error as a sentence that names the place and says what to do."""
    return OSError(
        error.errno,
        f"{type(logger).__name__} cannot write to {str(path)!r} ({error.strerror}). Give it another directory, or "
        "make this one writable",
    )


def _kept(value: Any) -> Any:
    """A copy that the next iteration cannot change, on the device where the value is."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _optimizers_of(engine: IgniteEngine) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of the engine's ``OptimizerStep`` handlers, else those that its step uses, by name."""
    steps = [handler for handler in handlers_of(engine) if isinstance(handler, OptimizerStep)]
    if not steps:
        return used_by(engine._process_function, torch.optim.Optimizer)
    names = {id(step): name for name, step in used_by(engine._process_function, OptimizerStep).items()}
    optimizers = {}
    for i, step in enumerate(steps):
        name = names.get(id(step), str(i) if len(steps) > 1 else "")
        for j, optimizer in enumerate(step.optimizers):
            optimizers[f"{name}.{j}".lstrip(".") if len(step.optimizers) > 1 else name] = optimizer
    return optimizers


def _learning_rates(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
    rates = {}
    for optimizer_name, optimizer in optimizers.items():
        groups = optimizer.param_groups
        for i, group in enumerate(groups):
            name = "learning_rate"
            if len(optimizers) > 1:
                name += f"/{optimizer_name}"
            if len(groups) > 1:
                name += f"/{group.get('name', i)}"
            if "lr" in group:
                rates[name] = _kept(group["lr"])
    return rates
