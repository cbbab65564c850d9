"""The base of every handler: it says which events it listens to, when, in which phase, and can be attached."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from types import FunctionType, MethodType
from typing import Any, ClassVar, NamedTuple, TypeVar

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import STEP_EVENT_ATTRIBUTES, CallableEventWithFilter, Events, EventsList
from camshaft.engine.overview import describe_event, describe_function
from camshaft.engine.phases import Phase, events_in, subscribe
from camshaft.engine.training_step import TrainingStep

__all__ = ["Handler", "On", "handlers_of"]

AnyHandler = TypeVar("AnyHandler", bound="Handler")


class _Subscription(NamedTuple):
    event: Any
    phase: Phase
    method: str


class On(_Subscription):
    """One subscription of a handler: at ``event``, in ``phase``, its method ``method`` is called with the engine.

    Raises:
        TypeError: ``phase`` is no ``Phase``, or ``method`` no name.

    Example:
        >>> from camshaft.engine import Events, Phase
        >>> On(Events.EPOCH_COMPLETED, Phase.SAVE, "save").method
        'save'
    """

    __slots__ = ()

    def __new__(cls, event: Any, phase: Phase, method: str) -> On:
        given: Any = (phase, method)  # whatever their types should be
        if not isinstance(given[0], Phase):
            names = ", ".join(f"Phase.{each.name}" for each in Phase)
            raise TypeError(f"On(event, phase, method) takes one of {names}, but the phase is {phase!r}.")
        if not isinstance(given[1], str):
            raise TypeError(f'On(event, phase, method) takes the name of a method, as "tell", but it is {method!r}.')
        return super().__new__(cls, event, phase, method)


class Handler:
    """One engineering concern that is attached to an engine, Camshaft's or a stock Ignite one.

    A subclass declares ``listens`` (in the class, or in ``__init__`` where an argument chooses the event) and the
    methods named there. Where handlers can contradict each other, it overrides :meth:`check`; where it has state that a
    checkpoint should keep, :meth:`state_dict` and :meth:`load_state_dict`.

    Example:
        >>> from camshaft import Engine, Events
        >>> from camshaft.engine import Phase
        >>> class CountBatches(Handler):
        ...     listens = (On(Events.ITERATION_COMPLETED, Phase.MEASURE, "count"),)
        ...
        ...     def __init__(self, start=0):
        ...         self.batches = start
        ...
        ...     def count(self, engine):
        ...         self.batches += 1
        >>> counter = CountBatches(start=10)
        >>> state = Engine(lambda engine, batch: None).attach(counter).run([0, 1, 2])
        >>> counter.batches, counter
        (13, CountBatches(start=10))
    """

    listens: tuple[On, ...] = ()
    """The subscriptions of this handler."""

    alone: ClassVar[bool] = False
    """Whether an engine takes at most one handler of this class."""

    exchanges_gradients: ClassVar[bool] = False
    """Whether it brings the gradients of several processes together."""

    _call: inspect.BoundArguments | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        handler = super().__new__(cls)
        # For repr; __init__ says what is wrong with arguments that do not bind.
        with suppress(TypeError):
            handler._call = inspect.signature(cls.__init__.__get__(handler)).bind(*args, **kwargs)
        return handler

    def attach(self, engine: IgniteEngine) -> None:
        """Subscribe to the events of ``engine``.

        Args:
            engine: a Camshaft or an Ignite engine.

        Raises:
            ValueError: it is attached there already.
            TypeError: it defines one of ``state_dict`` and ``load_state_dict``, but not the other.
            AttributeError: ``listens`` names a method that it does not have.
        """
        listens: Any = self.listens
        if isinstance(listens, On):  # without a tuple around it
            self.listens = (listens,)
        _check_class(self)
        handlers = handlers_of(engine)
        if any(handler is self for handler in handlers):
            raise ValueError(f"{self!r} is attached to this engine already; attach it once.")
        if any(event in STEP_EVENT_ATTRIBUTES for on in self.listens for event in events_in(on.event)):
            TrainingStep.of(engine)  # what fires these
        handlers.append(self)
        if len(handlers) == 1:
            subscribe(engine, Events.STARTED, _check_handlers, Phase.CHECK)
        for on in self.listens:
            subscribe(engine, on.event, getattr(self, on.method), on.phase)
            if on.event == Events.EXCEPTION_RAISED:
                if engine.has_event_handler(raise_again, on.event):  # it is the last, so that all others are called
                    engine.remove_event_handler(raise_again, on.event)
                subscribe(engine, on.event, raise_again, Phase.SAVE)

    def detach(self, engine: IgniteEngine) -> None:
        """Undo :meth:`attach`.

        Args:
            engine: the engine it is attached to.

        Raises:
            ValueError: it is not.

        Example:
            >>> from camshaft import Engine
            >>> from camshaft.handlers import TimeLimit
            >>> engine, limit = Engine(lambda engine, batch: None), TimeLimit(60)
            >>> engine.attach(limit).handlers
            [TimeLimit(seconds=60)]
            >>> limit.detach(engine)
            >>> engine.handlers
            []
        """
        handlers = handlers_of(engine)
        if not any(handler is self for handler in handlers):
            raise ValueError(f"{self!r} is not attached to this engine.")
        handlers[:] = [handler for handler in handlers if handler is not self]
        for on in self.listens:
            for event in events_in(on.event):
                engine.remove_event_handler(getattr(self, on.method), event)
        if not handlers:
            engine.remove_event_handler(_check_handlers, Events.STARTED)

    def check(self, engine: IgniteEngine) -> None:
        """Refuse, when a run starts, what contradicts this handler; here, a second one where it must be ``alone``.

        Args:
            engine: its ``handlers_of(engine)`` are all that is attached.

        Raises:
            ValueError: a sentence that says what contradicts and what to do.
        """
        if self.alone:
            same = [handler for handler in handlers_of(engine) if type(handler) is type(self)]
            if len(same) > 1:
                raise ValueError(
                    f"{len(same)} {type(self).__name__} handlers are attached to one engine, {same[0]!r} and "
                    f"{same[1]!r}: keep one of them."
                )

    def produced_at(self, name: str) -> int | None:
        """The iteration at which this handler last set ``state.metrics[name]``: 0 if not yet, None if it never does.

        So that a value which is read each epoch but made every third is not taken for three values.
        """
        return None

    @property
    def ends_run_for_now(self) -> bool:
        """Whether it has ended the run by something that is not the run's: one that is resumed asks it again."""
        return False

    @property
    def has_ended_run(self) -> bool:
        """Whether it has ended the run for good, so that who asks why a run is finished can be told."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this handler: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(_as_written(self._call)) if self._call else ''})"


def handlers_of(engine: IgniteEngine) -> list[Handler]:
    """The Camshaft handlers attached to an engine, in order of attachment; the list itself, not a copy.

    Example:
        >>> from ignite.engine import Engine
        >>> from camshaft.handlers import TimeLimit
        >>> engine = Engine(lambda engine, batch: None)
        >>> TimeLimit(60).attach(engine)
        >>> handlers_of(engine)
        [TimeLimit(seconds=60)]
    """
    # Not by vars(engine): from then on Python would look up each of its attributes in a dict, in the loop, too.
    own: Any = engine
    if not hasattr(own, "handlers"):  # a stock engine
        own.handlers = []
    handlers: list[Handler] = own.handlers
    return handlers


def raise_again(engine: IgniteEngine, error: BaseException) -> None:
    """Raise an error that handlers of ours have seen, the last of all, unless a function of the user took care of it.

    To Ignite, whoever listens to EXCEPTION_RAISED and returns has taken care; our handlers only tidy up.
    """
    listeners = [entry[0] for entry in engine._event_handlers[Events.EXCEPTION_RAISED]]
    if all(
        function is raise_again or isinstance(getattr(function, "__self__", None), Handler) for function in listeners
    ):
        raise error


def _check_class(handler: Handler) -> None:
    """Refuse a handler whose class is not whole, before any of it is attached."""
    name = type(handler).__name__
    saves = type(handler).state_dict is not Handler.state_dict
    loads = type(handler).load_state_dict is not Handler.load_state_dict
    if saves and not loads:
        raise TypeError(
            f"{name} has a state_dict but no load_state_dict: a run that goes on would begin it anew. Define both."
        )
    if loads and not saves:
        raise TypeError(
            f"{name} has a load_state_dict but no state_dict: a checkpoint keeps nothing of it. Define both."
        )
    for on in handler.listens:
        if not hasattr(handler, on.method):
            events = " | ".join(event.name for event in events_in(on.event))
            raise AttributeError(f"{name} has no method {on.method!r}, which its listens names for {events}.")


def _check_handlers(engine: IgniteEngine) -> None:
    for handler in tuple(handlers_of(engine)):
        handler.check(engine)


def _as_written(call: inspect.BoundArguments) -> Iterator[str]:
    """The arguments of a call as one would write them, without those that are the default anyway."""
    for name, value in call.arguments.items():
        parameter = call.signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from map(_shorten, value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            yield from (f"{key}={_shorten(item)}" for key, item in value.items())
        elif not _same(value, parameter.default):
            yield _shorten(value) if parameter.kind is parameter.POSITIONAL_ONLY else f"{name}={_shorten(value)}"


def _same(value: Any, default: Any) -> bool:
    """Whether an argument is its default; of one type, because to Ignite an event equals a filtered one."""
    return value is default or (type(value) is type(default) and isinstance(value, _PLAIN) and bool(value == default))


_PLAIN = (bool, int, float, str, bytes, tuple, os.PathLike, Enum)
_LONGEST = 100  # characters of a string, or a path


def _shorten(value: Any) -> str:
    """A representation that fits in a line: modules, optimizers and loaders by their class alone."""
    if type(value) is tuple:
        return "(" + ", ".join(map(_shorten, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, list):
        return "[" + ", ".join(map(_shorten, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shorten(item)}" for key, item in value.items()) + "}"
    if isinstance(value, EventsList):
        return " | ".join(map(_shorten, value))
    return _shorten_single(value)


def _shorten_single(value: Any) -> str:
    if isinstance(value, (str, os.PathLike)):
        text = os.fsdecode(value)
        return repr(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, CallableEventWithFilter):
        return describe_event(value)
    if isinstance(value, (type, FunctionType, MethodType)):
        return describe_function(value)
    shown = repr(value)
    return shown if len(shown) <= 40 and "\n" not in shown and not shown.startswith("<") else type(value).__name__
