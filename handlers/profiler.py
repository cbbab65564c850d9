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
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from ignite.engine import Engine as IgniteEngine
from torch.profiler import record_function

from camshaft.engine.distributed import rank, world_size
from camshaft.engine.events import STEP_EVENT_ATTRIBUTES, Events, StepEvents
from camshaft.engine.overview import describe_function
from camshaft.engine.phases import Phase, subscribe
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.handler import Handler, On

if TYPE_CHECKING:
    from camshaft.engine.subscribers import Subscriber

__all__ = ["Profiler"]

DATA, FORWARD, BACKWARD, OPTIMIZER, STEP = "data loading", "forward", "backward", "optimizer step", "step"
REST = "engine and the rest"

# The parts of an iteration, each from the last handler of one event to the first handler of another.
_PARTS: tuple[tuple[Any, str, Any], ...] = (
    (Events.GET_BATCH_STARTED, DATA, Events.GET_BATCH_COMPLETED),
    (Events.ITERATION_STARTED, STEP, Events.ITERATION_COMPLETED),
    (StepEvents.FORWARD_STARTED, FORWARD, StepEvents.FORWARD_COMPLETED),
    (StepEvents.BACKWARD_STARTED, BACKWARD, StepEvents.BACKWARD_COMPLETED),
    (StepEvents.OPTIMIZER_STEP_STARTED, OPTIMIZER, StepEvents.OPTIMIZER_STEP_COMPLETED),
)
_BEGUN_BY = {begun_by: part for begun_by, part, _ in _PARTS}
_ENDED_BY = {ended_by: part for _, part, ended_by in _PARTS}
_BEGIN_ANEW = (Events.GET_BATCH_STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED)  # whatever was left open before
_WITH_ARGUMENTS = (Events.EXCEPTION_RAISED, Events.TERMINATE_SINGLE_EPOCH)  # which their handlers are called with

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


class _Recorder:
    """One window: the profiler of torch, and the ranges that name what an engine does meanwhile.

    It puts them around everything attached to the engine and takes them away again, so that an engine that is not
    profiled has no trace of them.

    Attributes:
        profile: torch's profiler.
        iterations: completed since the window was opened.
        opened_at: the iteration after which that was.
        rows: the row of the table to which each range belongs.
    """

    def __init__(self, engine: IgniteEngine, warmup: int, active: int, done: Callable[[], None]) -> None:
        self.opened_at = engine.state.iteration
        self.iterations = 0
        self.rows = {part: part for _, part, _ in _PARTS}
        self._length = warmup + active
        self._done = done
        self._open: list[tuple[str, record_function]] = []  # each range within the one before
        self._undo = ExitStack()
        schedule = torch.profiler.schedule(wait=0, warmup=warmup, active=active, repeat=1)
        self.profile = torch.profiler.profile(schedule=schedule)
        self.profile.start()
        if hasattr(engine, "_subscribing_phase"):  # a Camshaft engine
            self._stand_around_subscribers(engine)
        else:
            self._stand_around_entries(engine)

    def stop(self) -> None:
        """Take all ranges away, and end the recording."""
        self._close_to(0)
        self._undo.close()
        self.profile.stop()

    def before(self, event: Any, engine: Any) -> None:
        """The first at every event."""
        self._end(_ENDED_BY.get(event))
        if event in _BEGIN_ANEW:
            self._close_to(0)
        if not self._open and event in (Events.GET_BATCH_STARTED, Events.ITERATION_STARTED):
            self._begin(f"iteration {engine.state.iteration + (event == Events.GET_BATCH_STARTED)}")
        self._begin(event.name)

    def after(self, event: Any, engine: Any) -> None:
        """The last at every event."""
        self._end(event.name)
        if event in _BEGUN_BY:
            self._begin(_BEGUN_BY[event])
        elif event == Events.ITERATION_COMPLETED:
            self._close_to(0)
            self.iterations += 1
            self.profile.step()
            if self.iterations == self._length:
                self._done()

    def call(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a handler in a range of its name; ranges that an error leaves open within end with it."""
        depth = len(self._open)
        self._begin(name)
        try:
            return function(*args, **kwargs)
        finally:
            self._close_to(depth)

    def _begin(self, name: str) -> None:
        range_of_torch = record_function(name)
        range_of_torch.__enter__()
        self._open.append((name, range_of_torch))

    def _end(self, name: str | None) -> None:
        """End the range of this name and those within; nothing if there is none, as after an error."""
        depths = [depth for depth, (open_name, _) in enumerate(self._open) if open_name == name]
        if depths:
            self._close_to(depths[-1])

    def _close_to(self, depth: int) -> None:
        while len(self._open) > depth:
            self._open.pop()[1].__exit__(None, None, None)

    def _stand_around_subscribers(self, engine: Any) -> None:
        for subscribers in list(engine._event_handlers.values()):
            for subscriber in (*subscribers.prompt, *subscribers.late):
                if self._is_to_be_named(subscriber.function):
                    subscriber.function = self._named(subscriber.function)
                    self._undo.callback(_give_back, subscriber)
        listened_to = [event for event, subscribers in engine._event_handlers.items() if subscribers]
        for event in dict.fromkeys([*_events_of_parts(engine), *listened_to]):
            if event not in _WITH_ARGUMENTS:
                self._subscribe(engine, event, partial(self.before, event), Phase.CHECK)
                self._subscribe(engine, event, partial(self.after, event), Phase.SAVE)

    def _stand_around_entries(self, engine: Any) -> None:
        """The same on a stock Ignite engine, which calls the entries of a list that it finds at each event."""
        for event, entries in engine._event_handlers.items():
            for index, (function, args, kwargs) in enumerate(entries):
                if event != Events.EXCEPTION_RAISED and self._is_to_be_named(function):
                    entries[index] = (self._named(function), args, kwargs)
        self._undo.callback(_put_back, engine)
        for event in _events_of_parts(engine):
            if event in STEP_EVENT_ATTRIBUTES:  # not fired where nobody listens
                self._subscribe(engine, event, _do_nothing, Phase.CHECK)
        fire = engine._fire_event

        def fire_in_range(event: Any, *args: Any, **kwargs: Any) -> None:
            if event == Events.EXCEPTION_RAISED:
                fire(event, *args, **kwargs)
                return
            self.before(event, engine)
            fire(event, *args, **kwargs)
            self.after(event, engine)

        engine._fire_event = fire_in_range
        self._undo.callback(vars(engine).pop, "_fire_event")

    def _subscribe(self, engine: IgniteEngine, event: Any, function: Callable[..., Any], phase: Phase) -> None:
        subscribe(engine, event, function, phase)
        self._undo.callback(engine.remove_event_handler, function, event)

    @staticmethod
    def _is_to_be_named(function: Any) -> bool:
        return not isinstance(getattr(function, "__self__", None), Profiler)

    def _named(self, function: Callable[..., Any]) -> _Named:
        named = _Named(self, function)
        self.rows[named.name] = named.name
        return named


class _Named:
    """A handler in its range; ``_parent`` is how Ignite finds the handler when it is to be removed."""

    __slots__ = ("function", "name", "recorder")

    def __init__(self, recorder: _Recorder, function: Callable[..., Any]) -> None:
        self.recorder = recorder
        self.function = function
        self.name = describe_function(getattr(function, "_parent", lambda: function)())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.recorder.call(self.name, self.function, *args, **kwargs)

    def _parent(self) -> Any:
        return getattr(self.function, "_parent", lambda: self.function)()

    def __repr__(self) -> str:
        return self.name


def _events_of_parts(engine: Any) -> list[Any]:
    """The events between which the parts of an iteration are; those of the step where its handlers are attached."""
    has_moments = isinstance(engine._process_function, TrainingStep)
    return [event for event in (*_BEGUN_BY, *_ENDED_BY) if has_moments or event not in STEP_EVENT_ATTRIBUTES]


def _do_nothing() -> None:
    pass


def _give_back(subscriber: Subscriber) -> None:
    """Call the handler itself again, unless an engine's timeline has come or gone meanwhile."""
    if isinstance(subscriber.function, _Named):
        subscriber.function = subscriber.function.function


def _put_back(engine: Any) -> None:
    for entries in engine._event_handlers.values():
        for index, (function, args, kwargs) in enumerate(entries):
            if isinstance(function, _Named):
                entries[index] = (function.function, args, kwargs)


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
        parts = [part for _, part, _ in (*_PARTS[:1], *_PARTS[2:], _PARTS[1]) if part in self.seconds]
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
