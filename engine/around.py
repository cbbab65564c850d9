"""Stands around every event and every handler of an engine for a while: what Timeline, Trace and Profiler are made of.

Before and after that time there is nothing of it in the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import STEP_EVENT_ATTRIBUTES, Events, StepEvents
from camshaft.engine.overview import describe_function
from camshaft.engine.phases import Phase, subscribe
from camshaft.engine.training_step import TrainingStep

__all__ = ["BACKWARD", "DATA", "FORWARD", "OPTIMIZER", "PARTS", "STEP", "Around", "Kind"]

Kind = Literal["part", "event", "handler"]
"""A part of an iteration, an event with all its handlers, or one handler."""

DATA, FORWARD, BACKWARD, OPTIMIZER, STEP = "data loading", "forward", "backward", "optimizer step", "step"

PARTS: tuple[tuple[Any, str, Any], ...] = (
    (Events.GET_BATCH_STARTED, DATA, Events.GET_BATCH_COMPLETED),
    (Events.ITERATION_STARTED, STEP, Events.ITERATION_COMPLETED),
    (StepEvents.FORWARD_STARTED, FORWARD, StepEvents.FORWARD_COMPLETED),
    (StepEvents.BACKWARD_STARTED, BACKWARD, StepEvents.BACKWARD_COMPLETED),
    (StepEvents.OPTIMIZER_STEP_STARTED, OPTIMIZER, StepEvents.OPTIMIZER_STEP_COMPLETED),
)
"""The parts of an iteration, each from the last handler of one event to the first handler of another."""

_BEGUN_BY = {begun_by: part for begun_by, part, _ in PARTS}
_ENDED_BY = {ended_by: part for _, part, ended_by in PARTS}
# At these, whatever an error or terminate() has left open ends.
_BEGIN_ANEW = (Events.GET_BATCH_STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED)
_WITH_ARGUMENTS = (Events.EXCEPTION_RAISED, Events.TERMINATE_SINGLE_EPOCH)  # which their handlers are called with


class Around:
    """Tells a subclass what an engine does, while it stands around it, as ranges of time within each other.

    Several may stand around one engine, and come and go in any order.

    Example:
        >>> from camshaft.engine import Engine
        >>> class Print(Around):
        ...     def begin(self, kind, name, engine):
        ...         print(engine.state.iteration, kind, name)
        ...
        ...     def end(self, begun):
        ...         pass
        >>> engine, around = Engine(lambda engine, batch: None), Print()
        >>> around.stand_around(engine)
        >>> state = engine.run([0], epoch_length=1)
        0 event EPOCH_STARTED
        0 event GET_BATCH_STARTED
        0 part data loading
        0 event GET_BATCH_COMPLETED
        1 event ITERATION_STARTED
        1 part step
        1 event ITERATION_COMPLETED
        1 event EPOCH_COMPLETED
        1 event COMPLETED
        >>> around.step_aside()
    """

    def __init__(self) -> None:
        self._stands = False
        self._open: list[tuple[str, Any]] = []  # the name of each range, and what begin() has given for it
        self._undo = ExitStack()

    # ------------------------------------------------------------------------------------------------ for subclasses

    def begin(self, kind: Kind, name: str, engine: Any) -> Any:
        """A range begins; what this returns is given to :meth:`end`."""
        raise NotImplementedError

    def end(self, begun: Any) -> None:
        """A range ends: the last one that has begun."""
        raise NotImplementedError

    def before_event(self, event: Any, engine: Any) -> None:
        """Called before the range of an event begins."""

    def after_event(self, event: Any, engine: Any) -> None:
        """Called after the range of an event has ended."""

    def is_told(self, handler: Callable[..., Any]) -> bool:
        """Whether a handler has a range of its own."""
        return True

    # ------------------------------------------------------------------------------------------------ standing around

    def stand_around(self, engine: Any) -> None:
        """Tell what an engine, Camshaft's or a stock one, does from now on."""
        self._stands = True
        if hasattr(engine, "_subscribing_phase"):  # a Camshaft engine
            self._stand_around_subscribers(engine)
        else:
            self._stand_around_entries(engine)

    def step_aside(self) -> None:
        """End all ranges; the engine is as it was."""
        self.close_to(0)
        self._stands = False
        self._undo.close()

    def open_range(self, kind: Kind, name: str, engine: Any) -> None:
        """Begin a range within those that are open."""
        self._open.append((name, self.begin(kind, name, engine)))

    def close_to(self, depth: int) -> None:
        """End the innermost ranges until so many are open."""
        while len(self._open) > depth:
            self.end(self._open.pop()[1])

    def _close(self, name: str | None) -> None:
        """End the range of this name and those within; nothing if there is none, as after an error."""
        depths = [depth for depth, (open_name, _) in enumerate(self._open) if open_name == name]
        if depths:
            self.close_to(depths[-1])

    def _stand_around_subscribers(self, engine: Any) -> None:
        for subscribers in list(engine._event_handlers.values()):
            for subscriber in (*subscribers.prompt, *subscribers.late):
                if self._is_to_be_told(subscriber.function):
                    subscriber.function = _Told(self, engine, subscriber.function)
                    self._undo.callback(self._let_go_of, subscriber)
        listened_to = [event for event, subscribers in engine._event_handlers.items() if subscribers]
        always = (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED)
        for event in dict.fromkeys([*always, *_events_of_parts(engine), *listened_to]):
            if event not in _WITH_ARGUMENTS:
                self._subscribe(engine, event, _Edge(self._before, event), Phase.CHECK)
                self._subscribe(engine, event, _Edge(self._after, event), Phase.SAVE)

    def _let_go_of(self, subscriber: Any) -> None:
        subscriber.function = _without(self, subscriber.function)

    def _stand_around_entries(self, engine: Any) -> None:
        """The same on a stock Ignite engine, which calls the entries of a list that it finds at each event."""
        for event, entries in engine._event_handlers.items():
            for index, (function, args, kwargs) in enumerate(entries):
                if event != Events.EXCEPTION_RAISED and self._is_to_be_told(function):
                    entries[index] = (_Told(self, engine, function), args, kwargs)
        for event in _events_of_parts(engine):
            if event in STEP_EVENT_ATTRIBUTES:  # not fired where nobody listens
                self._subscribe(engine, event, _Edge(_do_nothing, event), Phase.CHECK)
        engine._fire_event = _Fired(self, engine, engine._fire_event)
        self._undo.callback(self._let_go_of_entries, engine)

    def _let_go_of_entries(self, engine: Any) -> None:
        for entries in engine._event_handlers.values():
            for index, (function, args, kwargs) in enumerate(entries):
                if isinstance(function, _Told):
                    entries[index] = (_without(self, function), args, kwargs)
        fire = _without(self, engine._fire_event)
        if isinstance(fire, _Fired):
            engine._fire_event = fire
        else:
            del engine._fire_event

    def _subscribe(self, engine: IgniteEngine, event: Any, function: Callable[..., Any], phase: Phase) -> None:
        subscribe(engine, event, function, phase)
        self._undo.callback(engine.remove_event_handler, function, event)

    def _is_to_be_told(self, function: Any) -> bool:
        handler = _handler_of(function)
        return not isinstance(getattr(handler, "__self__", handler), (Around, _Edge)) and self.is_told(handler)

    # ------------------------------------------------------------------------------------------------ what they tell

    def _before(self, event: Any, engine: Any) -> None:
        """The first at every event."""
        if self._stands:
            self._close(_ENDED_BY.get(event))
            if event in _BEGIN_ANEW:
                self.close_to(0)
            self.before_event(event, engine)
        if self._stands:
            self.open_range("event", event.name, engine)

    def _after(self, event: Any, engine: Any) -> None:
        """The last at every event."""
        if self._stands:
            self._close(event.name)
            if event in _BEGUN_BY:
                self.open_range("part", _BEGUN_BY[event], engine)
            self.after_event(event, engine)

    def _call(self, name: str, engine: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a handler in a range of its name; ranges that an error leaves open within end with it."""
        if not self._stands:
            return function(*args, **kwargs)
        depth = len(self._open)
        self.open_range("handler", name, engine)
        try:
            return function(*args, **kwargs)
        finally:
            self.close_to(depth)


class _Told:
    """A handler in its range; ``_parent`` is how Ignite finds the handler when it is to be removed."""

    __slots__ = ("around", "engine", "function", "name")

    def __init__(self, around: Around, engine: Any, function: Callable[..., Any]) -> None:
        self.around = around
        self.engine = engine
        self.function = function
        self.name = describe_function(_handler_of(function))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.around._call(self.name, self.engine, self.function, *args, **kwargs)

    def _parent(self) -> Any:
        return _handler_of(self.function)

    def __repr__(self) -> str:
        return self.name


class _Edge:
    """What is called first or last at an event."""

    __slots__ = ("__weakref__", "event", "method")  # Ignite keeps a weak reference

    def __init__(self, method: Callable[..., None], event: Any) -> None:
        self.method = method
        self.event = event

    def __call__(self, engine: Any) -> None:
        self.method(self.event, engine)


class _Fired:
    """A stock engine's ``_fire_event`` in its range."""

    __slots__ = ("around", "engine", "function")

    def __init__(self, around: Around, engine: Any, function: Callable[..., None]) -> None:
        self.around = around
        self.engine = engine
        self.function = function

    def __call__(self, event: Any, *args: Any, **kwargs: Any) -> None:
        if event == Events.EXCEPTION_RAISED:
            self.function(event, *args, **kwargs)
            return
        self.around._before(event, self.engine)
        self.function(event, *args, **kwargs)
        self.around._after(event, self.engine)


def _without(around: Around, function: Any) -> Any:
    """What is called where ``around`` no longer stands; others may stand within it or around it."""
    if not isinstance(function, (_Told, _Fired)):
        return function
    if function.around is around:
        return function.function
    function.function = _without(around, function.function)
    return function


def _handler_of(function: Any) -> Any:
    """The handler itself, behind a filter of Ignite's or a range."""
    return getattr(function, "_parent", lambda: function)()


def _events_of_parts(engine: Any) -> list[Any]:
    """The events between which the parts of an iteration are; those of the step where its handlers are attached."""
    has_moments = isinstance(engine._process_function, TrainingStep)
    return [event for event in (*_BEGUN_BY, *_ENDED_BY) if has_moments or event not in STEP_EVENT_ATTRIBUTES]


def _do_nothing(event: Any, engine: Any) -> None:
    pass
