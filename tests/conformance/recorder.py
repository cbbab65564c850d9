"""Runs one program on Ignite's engine and on ours, and records everything that can be observed of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ignite.engine import Engine as IgniteEngine

from camshaft.engine import Engine, Events

__all__ = ["Recorder", "TooLong", "compare", "record"]

Program = Callable[["Recorder"], None]

# Recording EXCEPTION_RAISED would handle the exception; a program that wants it recorded says so.
WATCHED_EVENTS = [event for event in Events if event is not Events.EXCEPTION_RAISED]


class TooLong(BaseException):
    """Ends a program that would run for ever."""


class Recorder:
    """Makes the engines of one program, runs them, and writes down what happens.

    Args:
        engine_class: Ignite's engine or ours.
        watched: whether handlers on all events record these. Without them a program shows only what its own step and
            handlers note, and the engine takes the paths of events to which nobody listens.
    """

    def __init__(self, engine_class: type[IgniteEngine], watched: bool = True) -> None:
        self.engine_class = engine_class
        self.watched = watched
        self.record: list[Any] = []
        self.engines: list[IgniteEngine] = []
        self._ended = False

    def engine(
        self, step: Callable[[Any, Any], Any] | None = None, name: str = "", max_steps: int = 100
    ) -> IgniteEngine:
        """An engine whose step is recorded, then does ``step``; at most ``max_steps`` times."""
        steps = iter(range(max_steps))
        epochs = iter(range(max_steps))

        def recorded_step(engine: Any, batch: Any) -> Any:
            self.note(name + "step", engine)
            self._go_on(steps)
            return batch if step is None else step(engine, batch)

        engine = self.engine_class(recorded_step)
        self.engines.append(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self._go_on(epochs))
        if self.watched:
            for event in WATCHED_EVENTS:
                engine.add_event_handler(event, lambda engine, event=event, **_: self.note(name + event.name, engine))
        return engine

    def note(self, what: Any, engine: IgniteEngine | None = None) -> None:
        """Write down ``what``, and the state that the engine is in."""
        if not self._ended:
            self.record.append(what if engine is None else (what, _seen(engine)))

    def _go_on(self, allowed: Iterator[int]) -> None:
        if next(allowed, None) is None:
            self.note("too long")
            self._ended = True  # with what comes of it
            raise TooLong

    def run(self, engine: IgniteEngine, *args: Any, **kwargs: Any) -> Any:
        """Run the engine, and write down how that ended."""
        with self.outcome("run", engine):
            return engine.run(*args, **kwargs)
        loop = engine._internal_run_generator
        if loop is not None and loop.gi_frame is None:  # it failed; Ignite's next run would do nothing
            engine._internal_run_generator = None
        return None

    @contextmanager
    def outcome(self, what: str, engine: IgniteEngine | None = None) -> Iterator[None]:
        """Write down what a block raises, and what it warns of; it does not raise then."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
                self.note(f"{what} returned", engine)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is what the program does
                self.note((what, "raised", type(error).__name__, _sense(error)), engine)
        for warning in caught:
            self.note((what, "warned", warning.category.__name__, _sense(warning.message)))


def record(program: Program, engine_class: type[IgniteEngine], watched: bool = True) -> list[Any]:
    """What is seen of ``program`` on one engine."""
    recorder = Recorder(engine_class, watched)
    program(recorder)
    for engine in recorder.engines:  # Ignite's would tell these handlers that their interrupted run is dropped
        engine._event_handlers.pop(Events.EXCEPTION_RAISED, None)
        engine._internal_run_generator = None
    return recorder.record


def compare(program: Program) -> list[Any]:
    """Run ``program`` on both engines, with all events recorded and with none; returns what was seen of it."""
    for watched in (False, True):
        ours, ignites = record(program, Engine, watched), record(program, IgniteEngine, watched)
        assert ours == ignites, _first_difference(ours, ignites)
        assert ours, "a program of which nothing is seen compares nothing"
    return ours


def _seen(engine: IgniteEngine) -> tuple[Any, ...]:
    state = engine.state
    return (
        getattr(engine.last_event_name, "name", engine.last_event_name),
        f"epoch {state.epoch}/{state.max_epochs}",
        f"iteration {state.iteration}/{state.max_iters} of {state.epoch_length}",
        ("batch", state.batch),
        ("output", state.output),
        {name: seconds if not seconds else "some" for name, seconds in state.times.items()},
        (engine.should_terminate, engine.should_terminate_single_epoch, engine.should_interrupt),
    )


def _sense(error: Any) -> str:
    """How a message begins: that much is the same where we explain more."""
    return " ".join(re.sub("0x[0-9a-f]+", "0x…", str(error)).split()[:8]).rstrip(":.")


def _first_difference(ours: list[Any], ignites: list[Any]) -> str:
    here = next(
        (i for i, (a, b) in enumerate(zip(ours, ignites, strict=False)) if a != b), min(len(ours), len(ignites))
    )
    before = "\n".join(f"    both: {entry}" for entry in ours[max(0, here - 8) : here])
    shown = [entries[here] if here < len(entries) else "nothing" for entries in (ours, ignites)]
    return f"from entry {here} on they differ:\n{before}\n    ours: {shown[0]}\n  Ignite: {shown[1]}"
