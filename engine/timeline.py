"""Which event and which handler ran when, over a few iterations: as a picture and as a Chrome trace.

Until it is asked for there is nothing of it in the engine. While it waits for its first iteration it is one handler
behind a filter; then it stands around every event and handler, and after the last iteration it takes itself away again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.around import BACKWARD, DATA, FORWARD, OPTIMIZER, STEP, Around, Kind
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase, subscribe

__all__ = ["Span", "Timeline"]

_MOST_HANDLERS = 16  # rows of the picture, those that took longest
_LONGEST_NAME = 44  # characters beside a row
_WIDTH = 8.0  # inches: 800 pixels
_ROW = 0.24  # inches
_DOTS_PER_INCH = 100
_COLOURS = {DATA: "C1", STEP: "0.8", FORWARD: "C0", BACKWARD: "C2", OPTIMIZER: "C3"}
_COLOUR_OF_EVENTS, _COLOUR_OF_HANDLERS = "0.35", "C4"


class Span(NamedTuple):
    """Something that ran from one moment to another.

    Attributes:
        kind: a ``"part"`` of an iteration, an ``"event"`` with all its handlers, or one ``"handler"``.
        name: of it.
        begin: seconds since the recording began.
        end: likewise.
        iteration: ``state.iteration`` at its beginning.
    """

    kind: Kind
    name: str
    begin: float
    end: float
    iteration: int


class Timeline(Around):
    """What :meth:`camshaft.Engine.timeline` records.

    Attributes:
        spans: what ran, in the order in which it ended; empty before the run has come to the first iteration.

    Example:
        >>> import tempfile
        >>> from camshaft.engine import Engine
        >>> def report(engine):
        ...     pass
        >>> engine = Engine(lambda engine, batch: None)
        >>> handle = engine.add_event_handler(Events.ITERATION_COMPLETED, report)
        >>> timeline = engine.timeline(first=2, iterations=1)
        >>> state = engine.run([0, 1, 2, 3])
        >>> [span.name for span in timeline.spans if span.kind != "event"]
        ['data loading', 'step', 'report']
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     trace = timeline.export(Path(directory) / "timeline.json")
        ...     len(json.loads(trace.read_text())["traceEvents"]) == len(timeline.spans)
        True
    """

    def __init__(self, engine: IgniteEngine, first: int, iterations: int) -> None:
        super().__init__()
        for name, number in (("first", first), ("iterations", iterations)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"A timeline's {name} is a whole number of at least 1, but got {number!r}.")
        self.spans: list[Span] = []
        self._first, self._last = first, first + iterations - 1
        self._began_at = 0.0
        self._waiting_at = Events.STARTED | Events.ITERATION_COMPLETED(every=max(1, first - 1))
        subscribe(engine, self._waiting_at, self._begin_if_due, Phase.SAVE)
        self._waits = True

    # ------------------------------------------------------------------------------------------------ what it is for

    def plot(self, picture: str | os.PathLike[str]) -> Path:
        """Draw it: a row for the parts of an iteration, one for the events, and one for each handler.

        Args:
            picture: the file to write; its ending chooses the format.

        Returns:
            Its path.

        Raises:
            ValueError: nothing was recorded.
        """
        # Without pyplot, which would choose a backend for the whole process.
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency
        from matplotlib.patches import Patch  # noqa: PLC0415

        self._check_recorded()
        took: dict[str, float] = {}
        for span in self.spans:
            if span.kind == "handler":
                took[span.name] = took.get(span.name, 0.0) + span.end - span.begin
        longest = sorted(took, key=took.__getitem__, reverse=True)[:_MOST_HANDLERS]
        handlers = [name for name in took if name in longest]  # in the order in which they ran first
        rows = {name: 2 + number for number, name in enumerate(handlers)}

        scale, unit = (1e3, "ms") if self._seconds < 10 else (1.0, "s")
        figure = Figure(figsize=(_WIDTH, 1.5 + _ROW * (2 + len(handlers))), layout="constrained")
        panel = figure.subplots()
        for span in sorted(self.spans, key=lambda span: span.begin):  # what is within comes later, and on top
            row = rows.get(span.name) if span.kind == "handler" else int(span.kind == "event")
            if row is None:
                continue
            colour = {"event": _COLOUR_OF_EVENTS, "handler": _COLOUR_OF_HANDLERS}.get(span.kind)
            colour = colour or _COLOURS[span.name]
            # With an edge, so that what is too short for a pixel is seen, too.
            bar = (scale * span.begin, scale * (span.end - span.begin))
            panel.broken_barh([bar], (row - 0.4, 0.8), facecolor=colour, edgecolor=colour, linewidth=0.6)
        labelled_until = 0.0
        for iteration, begin in self._beginnings():
            panel.axvline(scale * begin, color="0.6", linewidth=0.7, linestyle=":", zorder=0)
            if begin < labelled_until:  # the names would lie on each other
                continue
            labelled_until = begin + 0.1 * self._seconds
            panel.annotate(
                f"iteration {iteration}", (scale * begin, 1), (2, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", fontsize=7, color="0.3",
            )  # fmt: skip
        labels = ["parts of an iteration", "events", *map(_shortened, handlers)]
        panel.set_yticks(range(len(labels)), labels, fontsize=7)
        panel.set_ylim(len(labels) - 0.5, -0.5)
        panel.set_xlim(0, scale * self._seconds)
        panel.set_xlabel(f"time since the recording began ({unit})", fontsize=8)
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", alpha=0.3)
        drawn = {span.name for span in self.spans if span.kind == "part"}
        keys = [(name, colour) for name, colour in _COLOURS.items() if name in drawn]
        keys += [("an event with its handlers", _COLOUR_OF_EVENTS), ("a handler", _COLOUR_OF_HANDLERS)]
        patches = [Patch(color=colour, label=name) for name, colour in keys]
        figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
        figure.savefig(picture, dpi=_DOTS_PER_INCH)
        return Path(picture)

    def export(self, trace: str | os.PathLike[str]) -> Path:
        """Write it as a Chrome trace, for https://ui.perfetto.dev and chrome://tracing.

        Args:
            trace: the file to write.

        Returns:
            Its path.

        Raises:
            ValueError: nothing was recorded.
        """
        self._check_recorded()
        events = [
            {
                "name": span.name,
                "cat": span.kind,
                "ph": "X",  # a span, in microseconds
                "ts": 1e6 * span.begin,
                "dur": 1e6 * (span.end - span.begin),
                "pid": os.getpid(),
                "tid": 0,
                "args": {"iteration": span.iteration},
            }
            for span in sorted(self.spans, key=lambda span: (span.begin, -span.end))
        ]
        path = Path(trace)
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"<Timeline of iterations {self._first} to {self._last}, {len(self.spans)} spans>"

    @property
    def _seconds(self) -> float:
        return max(span.end for span in self.spans)

    def _check_recorded(self) -> None:
        if not self.spans:
            raise ValueError(
                f"Nothing was recorded: the engine has not come to iteration {self._first} since it was asked for. "
                "Call engine.timeline() before engine.run(), with a `first` that the run reaches."
            )

    def _beginnings(self) -> list[tuple[int, float]]:
        """Each iteration recorded, with the time at which its batch was asked for, or else its step began."""
        first_of: dict[int, float] = {}
        for span in self.spans:
            if span.kind == "event" and span.name in (Events.GET_BATCH_STARTED.name, Events.ITERATION_STARTED.name):
                iteration = span.iteration + (span.name == Events.GET_BATCH_STARTED.name)
                first_of[iteration] = min(span.begin, first_of.get(iteration, span.begin))
        return sorted(first_of.items())

    # ------------------------------------------------------------------------------------------------ recording

    def leave(self, engine: IgniteEngine) -> None:
        """Stop, also before it has begun."""
        if self._waits:
            self._stop_waiting(engine)
        else:
            self.step_aside()

    def begin(self, kind: Kind, name: str, engine: Any) -> _Begun:
        return _Begun(kind, name, perf_counter() - self._began_at, engine.state.iteration)

    def end(self, begun: _Begun) -> None:
        self.spans.append(Span(begun.kind, begun.name, begun.at, perf_counter() - self._began_at, begun.iteration))

    def before_event(self, event: Any, engine: Any) -> None:
        begins = {Events.GET_BATCH_STARTED: 1, Events.EPOCH_STARTED: 1, Events.ITERATION_STARTED: 0}
        if event in begins and engine.state.iteration + begins[event] > self._last:
            self.step_aside()

    def after_event(self, event: Any, engine: Any) -> None:
        if event == Events.COMPLETED:
            self.step_aside()

    def _begin_if_due(self, engine: IgniteEngine) -> None:
        iteration = engine.state.iteration
        if iteration + 1 < self._first or not self._waits:
            return
        self._stop_waiting(engine)
        self._last += iteration + 1 - self._first  # a run that goes on beyond its first one begins where it is
        self._first = iteration + 1
        self._began_at = perf_counter()
        self.stand_around(engine)

    def _stop_waiting(self, engine: IgniteEngine) -> None:
        self._waits = False
        for event in self._waiting_at:
            engine.remove_event_handler(self._begin_if_due, event)


class _Begun(NamedTuple):
    """A span that has not ended."""

    kind: Kind
    name: str
    at: float
    iteration: int


def _shortened(name: str) -> str:
    """A handler's name beside its row: without its arguments, where these make it long."""
    if len(name) <= _LONGEST_NAME:
        return name
    owner, bracket, rest = name.partition("(")
    method = rest.rpartition(").")[2] if bracket else ""
    short = f"{owner}(…).{method}" if method else name
    return short if len(short) <= _LONGEST_NAME else f"{short[: _LONGEST_NAME - 1]}…"
