"""Tells every event and handler call as it happens, with its time, over a few iterations.

While it waits it is one function behind a filter; within its iterations it stands around every event and handler;
after them it costs nothing.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any, TextIO

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.engine import Engine
from camshaft.engine.timeline import Timeline
from camshaft.handlers.handler import Handler

if TYPE_CHECKING:
    from camshaft.engine.timeline import Kind

__all__ = ["Trace"]


class Trace(Handler):
    """Writes a line for every event, every handler call and every part of an iteration, when it begins and as it ends.

    What hangs is the last line, without a time. ``engine.timeline()`` records the same to be drawn.

    Args:
        first: the iteration to begin with; a run that is beyond it already begins where it is.
        iterations: how many; what ends the epoch of the last one, such as a validation, belongs to it.
        file: where to write; the standard error unless given.

    Raises:
        ValueError: a number is less than 1; on attaching, if the engine is a stock one of Ignite.

    Example:
        >>> import io, re
        >>> from camshaft import Engine, Events
        >>> def report(engine):
        ...     pass
        >>> engine, lines = Engine(lambda engine, batch: None), io.StringIO()
        >>> handle = engine.add_event_handler(Events.ITERATION_COMPLETED, report)
        >>> state = engine.attach(Trace(first=2, iterations=1, file=lines)).run(range(3))
        >>> print(re.sub(r" +[0-9.]+ ms", "", lines.getvalue()))
        iteration 1 GET_BATCH_STARTED
        iteration 1 data loading
        iteration 1 GET_BATCH_COMPLETED
        iteration 2 ITERATION_STARTED
        iteration 2 step
        iteration 2 ITERATION_COMPLETED
        iteration 2   report
        iteration 2 ITERATION_COMPLETED ends
        <BLANKLINE>
    """

    def __init__(self, first: int = 1, iterations: int = 1, *, file: TextIO | None = None) -> None:
        for name, number in (("first", first), ("iterations", iterations)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"Trace's {name} is a whole number of at least 1, but got {number!r}.")
        self.first = first
        self.iterations = iterations
        self.file = file
        self._told: _Told | None = None

    def attach(self, engine: IgniteEngine) -> None:
        if not isinstance(engine, Engine):
            raise ValueError(
                f"{self!r} stands around the handlers of camshaft.Engine, but this is a {type(engine).__module__}."
                f"{type(engine).__name__}. Import Engine from camshaft, which is the same otherwise."
            )
        super().attach(engine)
        self._told = _Told(engine, self.first, self.iterations, self.file)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        if self._told is not None:
            self._told.leave(engine)
        self._told = None


class _Told(Timeline):
    """A timeline that is written line by line rather than kept."""

    def __init__(self, engine: Engine, first: int, iterations: int, file: TextIO | None) -> None:
        super().__init__(engine, first, iterations)
        self._file = file
        self._unfinished: tuple[str, int] | None = None  # the name and depth of what the last line has begun

    def leave(self, engine: Any) -> None:
        """Stop, also before it has begun."""
        if self._waits:
            engine.remove_event_handler(self._begin_if_due, self._waiting_at[0])
            engine.remove_event_handler(self._begin_if_due, self._waiting_at[1])
            self._waits = False
        elif self._records:
            self._end()

    def _begin(self, kind: Kind, name: str, engine: Engine) -> None:
        if self._unfinished is not None:
            self._write("\n")
        depth = len(self._open)
        super()._begin(kind, name, engine)
        milliseconds = 1e3 * (perf_counter() - self._began_at)
        self._write(f"{milliseconds:10.3f} ms iteration {engine.state.iteration} {'  ' * depth}{name}")
        self._unfinished = name, depth

    def _close_to(self, depth: int) -> None:
        while len(self._open) > depth:
            _, name, _, iteration = self._open[-1]
            super()._close_to(len(self._open) - 1)
            took = 1e3 * (self.spans[-1].end - self.spans[-1].begin)
            if self._unfinished != (name, len(self._open)):
                milliseconds = 1e3 * self.spans[-1].end
                self._write(f"{milliseconds:10.3f} ms iteration {iteration} {'  ' * len(self._open)}{name} ends")
            self._write(f"  {took:.3f} ms\n")
            self._unfinished = None
        self.spans.clear()

    def _write(self, text: str) -> None:
        file = self._file or sys.stderr
        file.write(text)
        file.flush()
