"""Shows where the time of a few iterations goes: a trace, a table, and a hint in plain words.

Listens to:

- STARTED in SAVE, the last phase: makes the directory, and begins to wait for the first window.
- INTERRUPT, TERMINATE in SAVE: writes a window that this cuts short.
- COMPLETED in SAVE: the same, and prints the table.
- EXCEPTION_RAISED in CHECK, before all others: the same.

While it waits it listens to one event with a filter (ITERATION_COMPLETED in SAVE), after its last window to none of an
iteration. Within a window it stands around all events, and calls every other subscriber in a range of its name.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine as IgniteEngine
from torch.profiler import record_function

from camshaft.engine.around import BACKWARD, DATA, FORWARD, OPTIMIZER, PARTS, STEP, Around, Kind
from camshaft.engine.distributed import rank, world_size
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase, subscribe
from camshaft.handlers.handler import Handler, On

__all__ = ["Profiler"]

REST = "engine and the rest"

# How torch itself names what a step does that is its own backward and optimizer.step().
_NAMED_BY_TORCH = {
    "Optimizer.step#": OPTIMIZER,
    "Optimizer.zero_grad#": OPTIMIZER,
    "autograd::engine::evaluate_function": BACKWARD,
}
# cudaStreamSynchronize, hipDeviceSynchronize, cudaEventSynchronize, ...; zeEventHostSynchronize
_WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "HostSynchronize")
_STEP_OF_TORCH = "ProfilerStep"  # the range of an iteration, in which all others are
_WIDEST = 80  # characters of a name in the table
_LARGE = 0.25  # the part of the time of which a hint says what to do about it


class Profiler(Handler):
    """Records a few iterations with ``torch.profiler`` and tells where their time went.

    Each window leaves a Chrome trace in ``directory`` (``iterations=14-18.json``; of several processes one each,
    ``iterations=14-18,rank=1.json``), for https://ui.perfetto.dev. In it an iteration, an event, each handler and each
    part of the step is a named range around torch's operators. At the end of the run, the first process prints
    :meth:`table`.

    Outside of its windows it costs nothing: it steps out of the engine's way. Within them everything is slower, what
    consists of many small operators the most, and the end of one takes seconds where it recorded many.

    The parts of the step are those of :class:`~camshaft.engine.StepEvents`. Where the step does its own backward and
    optimizer step, the ranges of torch itself tell them apart, on CUDA only the latter, and what is left is ``step``.

    Args:
        directory: for the traces; made if it is not there.
        wait: iterations before a window that are not looked at.
        warmup: then, iterations at the start of a window that are not recorded: the profiler itself has to get going.
        active: then, iterations that are recorded.
        repeat: windows in a run; 0 for as many as it is long.

    Attributes:
        traces: the files written in this run.

    Raises:
        ValueError: a number that cannot be; two of them on one engine.
        OSError: when the run starts, if the directory cannot be made.

    Example:
        >>> import tempfile
        >>> from camshaft import Engine
        >>> directory = tempfile.TemporaryDirectory()
        >>> profiler = Profiler(directory.name, wait=2, warmup=1, active=3)
        >>> state = Engine(lambda engine, batch: torch.ones(3).sum()).attach(profiler).run(range(10))
        iterations 4 to 6...
        >>> [trace.name for trace in profiler.traces], "data loading" in profiler.shares
        (['iterations=4-6.json'], True)
        >>> directory.cleanup()
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.SAVE, "begin"),
        On(Events.INTERRUPT | Events.TERMINATE, Phase.SAVE, "cut_short"),
        On(Events.COMPLETED, Phase.SAVE, "end"),
        On(Events.EXCEPTION_RAISED, Phase.CHECK, "end_with_error"),
    )

    def __init__(
        self, directory: str | os.PathLike[str], *, wait: int = 10, warmup: int = 3, active: int = 5, repeat: int = 1
    ) -> None:
        for name, number, least in (
            ("wait", wait, 0),
            ("warmup", warmup, 1),
            ("active", active, 1),
            ("repeat", repeat, 0),
        ):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"Profiler's {name} is a whole number of at least {least}, but got {number!r}.")
        self.directory = Path(directory)
        self.wait, self.warmup, self.active, self.repeat = wait, warmup, active, repeat
        self.traces: list[Path] = []
        self._windows: list[_Window] = []
        self._spent = _Spent()
        self._ended = False
        self._recorder: _Recorder | None = None  # of the window that is open
        self._waiting: Any = None  # the event at which the next one opens

    @property
    def shares(self) -> dict[str, float]:
        """The share of each row of the table in the time recorded so far; they add up to 1."""
        seconds = self._spent.seconds
        return {row: seconds[row] / seconds.total() for row in self._spent.rows()} if self._windows else {}

    @property
    def hints(self) -> list[str]:
        """What the figures say can be made faster, in sentences."""
        return self._spent.hints()

    def table(self) -> str:
        """The share of data loading, of the parts of the step and of each handler, and the hints, as text.

        A row's time is without that of rows within it: a part of the step without the handlers of its moments.
        """
        if not self._windows:
            return "Profiler has recorded nothing yet."
        spent = self._spent
        names = {row: row if len(row) <= _WIDEST else f"{row[: _WIDEST - 26]}…{row[-25:]}" for row in spent.rows()}
        width = max(map(len, names.values()))
        windows = ", ".join(f"{window.first} to {window.last}" for window in self._windows)
        lines = [f"iterations {windows}: {1e3 * spent.seconds.total() / spent.iterations:.3f} ms each"]
        lines += [f"{'':{width}}   share  ms an iteration"]
        lines += [
            f"{names[row]:{width}}  {100 * share:5.1f}%  {1e3 * spent.seconds[row] / spent.iterations:15.3f}"
            for row, share in self.shares.items()
        ]
        return "\n".join([*lines, *self.hints])

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        self._close(engine)
        self._stop_waiting(engine)

    def begin(self, engine: IgniteEngine) -> None:
        """Forget the run before, and wait for the first window of this one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._close(engine)  # an interrupted run that was given up may have left one
        self.traces, self._windows, self._spent, self._ended = [], [], _Spent(), False
        self._stop_waiting(engine)
        self._wait(engine, self.wait)

    def cut_short(self, engine: IgniteEngine) -> None:
        """Write the window that is open; an interrupted run that goes on has its next one later."""
        if self._recorder is not None:
            self._close(engine)
            if not engine.should_terminate:
                self._wait(engine, max(self.wait, 1))

    def end(self, engine: IgniteEngine) -> None:
        """Write what is recorded, and print the table."""
        if self._ended:  # a stock engine fires EXCEPTION_RAISED twice
            return
        self._ended = True
        self._close(engine)
        self._stop_waiting(engine)
        if self._windows and rank() == 0:
            print(self.table())  # noqa: T201 - what it is for
        elif not self._windows:
            engine.logger.warning(
                "%r has recorded nothing: the run ended at iteration %d, before its first window. Make wait smaller.",
                self,
                engine.state.iteration,
            )

    def end_with_error(self, engine: IgniteEngine, error: BaseException) -> None:
        """Do the same in a run that an error ends."""
        self.end(engine)

    def open_window(self, engine: IgniteEngine) -> None:
        """Begin to warm up, at the end of an iteration."""
        self._stop_waiting(engine)
        self._recorder = _Recorder(engine, self.warmup, self.active, partial(self._close, engine, True))

    def _wait(self, engine: IgniteEngine, iterations: int) -> None:
        if self.repeat and len(self._windows) >= self.repeat:
            return
        if iterations == 0:
            self.open_window(engine)
            return
        # Of this number no smaller multiple is still to come; `every` is a comparison, `once` a call of a filter.
        self._waiting = Events.ITERATION_COMPLETED(every=engine.state.iteration + iterations)
        subscribe(engine, self._waiting, self.open_window, Phase.SAVE)

    def _stop_waiting(self, engine: IgniteEngine) -> None:
        if self._waiting is not None:
            engine.remove_event_handler(self.open_window, self._waiting)
            self._waiting = None

    def _close(self, engine: IgniteEngine, wait_for_next: bool = False) -> None:
        """End the window that is open, keep what it recorded, and go on to wait for the next one."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.stop()
        window = _Window(recorder.opened_at + self.warmup + 1, engine.state.iteration)
        if window.first <= window.last:
            self._keep(recorder, window)
        if wait_for_next:
            self._wait(engine, self.wait)

    def _keep(self, recorder: _Recorder, window: _Window) -> None:
        of_rank = f",rank={rank()}" if world_size() > 1 else ""
        trace = self.directory / f"iterations={window.first}-{window.last}{of_rank}.json"
        recorder.profile.export_chrome_trace(str(trace))
        if trace.exists():
            self.traces.append(trace)
        else:  # torch only writes a line to stderr
            warnings.warn(
                f"The trace {trace} could not be written; the table has its figures all the same.", stacklevel=2
            )
        self._windows.append(window)
        self._spent.add(recorder.profile.events(), recorder.rows, window.last - window.first + 1)


class _Window(NamedTuple):
    """The iterations that were recorded, both included."""

    first: int
    last: int


class _Recorder(Around):
    """One window: the profiler of torch, and the ranges that name what an engine does meanwhile.

    Attributes:
        profile: torch's profiler.
        iterations: completed since the window was opened.
        opened_at: the iteration after which that was.
        rows: the row of the table to which each range belongs.
    """

    def __init__(self, engine: IgniteEngine, warmup: int, active: int, done: Callable[[], None]) -> None:
        super().__init__()
        self.opened_at = engine.state.iteration
        self.iterations = 0
        self.rows = {part: part for _, part, _ in PARTS}
        self._length = warmup + active
        self._done = done
        schedule = torch.profiler.schedule(wait=0, warmup=warmup, active=active, repeat=1)
        self.profile = torch.profiler.profile(schedule=schedule)
        self.profile.start()
        self.stand_around(engine)

    def stop(self) -> None:
        """Take all ranges away, and end the recording."""
        self.step_aside()
        self.profile.stop()

    def begin(self, kind: Kind, name: str, engine: Any) -> record_function:
        if kind == "handler":
            self.rows[name] = name
        range_of_torch = record_function(name)
        range_of_torch.__enter__()
        return range_of_torch

    def end(self, begun: record_function) -> None:
        begun.__exit__(None, None, None)

    def before_event(self, event: Any, engine: Any) -> None:
        if not self._open and event in (Events.GET_BATCH_STARTED, Events.ITERATION_STARTED):
            number = engine.state.iteration + (event == Events.GET_BATCH_STARTED)
            self.open_range("part", f"iteration {number}", engine)

    def after_event(self, event: Any, engine: Any) -> None:
        if event == Events.ITERATION_COMPLETED:
            self.close_to(0)
            self.iterations += 1
            self.profile.step()
            if self.iterations == self._length:
                self._done()

    def is_told(self, handler: Callable[..., Any]) -> bool:
        return not isinstance(getattr(handler, "__self__", None), Profiler)


class _Spent:
    """Where the time of the recorded iterations went.

    Attributes:
        seconds: by row of the table, without that of rows within.
        iterations: how many.
        waits: how often an operator waited for the device, by its name.
        waited: the seconds of that.
        busy: seconds in which the device had work.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.iterations = 0
        self.waits: Counter[str] = Counter()
        self.waited: Counter[str] = Counter()
        self.busy = 0.0

    def add(self, events: Iterable[Any], rows: dict[str, str], iterations: int) -> None:
        """Add one window: what torch's profiler recorded, and the row to which each range of ours belongs."""
        self.iterations += iterations
        on_device: list[tuple[float, float]] = []
        row_of: dict[int, str] = {}  # by the identity of an event
        for event in events:  # by their beginnings, so that those around an event come before it
            begin, end = event.time_range.start / 1e6, event.time_range.end / 1e6
            if event.device_type.name != "CPU":
                if not event.is_user_annotation:
                    on_device.append((begin, end))
                continue
            around = _first_of(row_of, event)
            row = _row(event.name, around, rows)
            if row is not None:
                row_of[id(event)] = row
                self.seconds[row] += end - begin
                if around is not None:
                    self.seconds[around] -= end - begin
            if event.name.endswith(_WAITS):
                waiting = _operator_around(event)
                self.waits[waiting] += 1
                self.waited[waiting] += end - begin
        self.busy += _length_of_union(on_device)

    def rows(self) -> list[str]:
        """The rows of the table: the parts in their order, the handlers by their time, and the rest."""
        parts = [part for _, part, _ in (*PARTS[:1], *PARTS[2:], PARTS[1]) if part in self.seconds]
        handlers = [row for row, _ in self.seconds.most_common() if row not in {*parts, REST}]
        return [*parts, *handlers, REST]

    def hints(self) -> list[str]:
        """What to do about what takes a large part of the time."""
        total, hints = self.seconds.total(), []
        if self.seconds[DATA] > _LARGE * total:
            hints.append(
                f"Data loading takes {self.seconds[DATA] / total:.0%} of the time: attach Prefetch, give the "
                "DataLoader more num_workers, or keep data that fits into memory in a TensorLoader."
            )
        if self.busy < (1 - _LARGE) * total:  # else it is waited for in any case, here or later
            hints += [
                f"{operator} waits for the device {self.waits[operator] / self.iterations:.1f} times an iteration, "
                f"{waited / total:.0%} of the time, and the device has work for {self.busy / total:.0%}: keep values "
                "such as the loss on the device, and read them (item(), cpu(), print) every so many iterations."
                for operator, waited in self.waited.most_common()
                if waited > _LARGE * total
            ]
        return hints


def _row(name: str, around: str | None, rows: dict[str, str]) -> str | None:
    """The row to which the time of an event belongs, if not to that around it."""
    if name.startswith(_STEP_OF_TORCH):
        return REST
    if around in {STEP, FORWARD}:
        named_by_torch = (part for prefix, part in _NAMED_BY_TORCH.items() if name.startswith(prefix))
        return rows.get(name) or next(named_by_torch, None)
    return rows.get(name)


def _first_of(row_of: dict[int, str], event: Any) -> str | None:
    """The row of the innermost event around this one that has one."""
    around = event.cpu_parent
    while around is not None and id(around) not in row_of:
        around = around.cpu_parent
    return None if around is None else row_of[id(around)]


def _operator_around(event: Any) -> str:
    """The operator that the user's code called: ``aten::item``, not what it calls in turn."""
    name = event.name
    while (event := event.cpu_parent) is not None and event.name.startswith("aten::"):
        name = event.name
    return str(name)


def _length_of_union(intervals: list[tuple[float, float]]) -> float:
    """How long at least one of the intervals lasts."""
    length, until = 0.0, -math.inf
    for begin, end in sorted(intervals):
        length += max(0.0, end - max(begin, until))
        until = max(until, end)
    return length
