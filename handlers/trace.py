"""Tells every event and handler call as it happens, with its time, over a few iterations.

While it waits it is one function behind a filter; within its iterations it stands around every event and handler;
after them it costs nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.timeline import Timeline
from camshaft.handlers.handler import Handler

if TYPE_CHECKING:
    from camshaft.engine.around import Kind
    from camshaft.engine.timeline import _Begun

__all__ = ["Trace"]


class Trace(Handler):
    """Writes a line for every event, every handler call and every part of an iteration, when it begins and as it ends.

    What hangs is the last line, without a time. ``engine.timeline()`` records the same to be drawn.

    Args:
        first: the iteration to begin with; a run that is beyond it already begins where it is.
        iterations: how many; what ends the epoch of the last one, such as a validation, belongs to it.
        file: where to write; the standard error unless given.

    Raises:
        ValueError: a number is less than 1.

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
        self._timeline: _WrittenTimeline | None = None

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        self._timeline = _WrittenTimeline(engine, self.first, self.iterations, self.file)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        if self._timeline is not None:
            self._timeline.leave(engine)
        self._timeline = None


class _WrittenTimeline(Timeline):
    """A timeline that is written line by line rather than kept."""

    def __init__(self, engine: IgniteEngine, first: int, iterations: int, file: TextIO | None) -> None:
        super().__init__(engine, first, iterations)
        self._file = file
        self._unfinished: tuple[str, int] | None = None  # the name and depth of what the last line has begun

    def __repr__(self) -> str:
        return f"Trace(first={self._first}, iterations={self._last - self._first + 1})"

    def begin(self, kind: Kind, name: str, engine: Any) -> _Begun:
        if self._unfinished is not None:
            self._write("\n")
        begun, depth = super().begin(kind, name, engine), len(self._open)
        self._write(_line(begun.at, begun.iteration, depth, name))
        self._unfinished = name, depth
        return begun

    def end(self, begun: _Begun) -> None:
        super().end(begun)
        span, depth = self.spans.pop(), len(self._open)
        if self._unfinished != (span.name, depth):
            self._write(_line(span.end, span.iteration, depth, f"{span.name} ends"))
        self._write(f"  {1e3 * (span.end - span.begin):.3f} ms\n")
        self._unfinished = None

    def _write(self, text: str) -> None:
        file = self._file or sys.stderr
        file.write(text)
        file.flush()


def _line(seconds: float, iteration: int, depth: int, name: str) -> str:
    return f"{1e3 * seconds:10.3f} ms iteration {iteration} {'  ' * depth}{name}"
