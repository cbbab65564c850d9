"""The phases in which the handlers of one event fire, so that the order of attachment never matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from ignite.engine import Engine as IgniteEngine
from ignite.engine import EventsList

__all__ = ["Phase", "events_in", "subscribe", "subscribing"]


class Phase(IntEnum):
    """When, within one event, a handler fires: all of ``PREPARE`` before all of ``RESTORE``, and so on.

    Functions given to ``engine.on`` and Ignite's own handlers are in ``USER``, in the order of their attachment.
    Two handlers in one phase of one event must not depend on each other's order.

    Example:
        >>> [phase.name for phase in Phase]
        ['CHECK', 'PREPARE', 'RESTORE', 'MEASURE', 'EVALUATE', 'USER', 'DECIDE', 'REPORT', 'SAVE']
    """

    CHECK = 0  # refuses handlers that contradict each other, before anything happened
    PREPARE = 1  # makes the run or the batch ready: devices, sampler epochs, the step
    RESTORE = 2  # brings back what a checkpoint kept
    MEASURE = 3  # reads what happened: metrics, timers, moving averages of weights
    EVALUATE = 4  # runs another engine: validation
    USER = 5  # plain functions and Ignite's handlers
    DECIDE = 6  # changes the course: schedules, early stopping, the NaN guard
    REPORT = 7  # tells: loggers, progress bars
    SAVE = 8  # keeps: checkpoints, which see all of the above


def subscribe(engine: IgniteEngine, event: Any, function: Callable[..., Any], phase: Phase, *args: Any) -> None:
    """Let ``function`` fire at ``event`` in ``phase``, on a Camshaft engine or on a stock Ignite one.

    On a Camshaft engine the phase places it among all subscribers; on a stock engine among those that came here,
    while plain functions stay where Ignite put them.

    Args:
        engine: the engine that fires.
        event: an event, with or without a filter, or several joined by ``|``.
        function: called with the engine if its signature takes it, then with ``args``.
        phase: when to fire within the event.
        args: further positional arguments of ``function``.

    Example:
        >>> from camshaft.engine import Engine, Events
        >>> engine, fired = Engine(lambda engine, batch: None), []
        >>> subscribe(engine, Events.EPOCH_COMPLETED, lambda: fired.append("report"), Phase.REPORT)
        >>> subscribe(engine, Events.EPOCH_COMPLETED, lambda: fired.append("measure"), Phase.MEASURE)
        >>> state = engine.run([0])
        >>> fired
        ['measure', 'report']
    """
    with subscribing(engine, phase):
        engine.add_event_handler(event, function, *args)


@contextmanager
def subscribing(engine: IgniteEngine, phase: Phase) -> Iterator[None]:
    """Within this context whatever is added to ``engine``, by whomever, is added in ``phase``.

    So an Ignite handler or metric that only knows ``attach(engine)`` can be placed as well.

    Example:
        >>> from camshaft.engine import Engine
        >>> from ignite.metrics import Accuracy
        >>> engine = Engine(lambda engine, batch: batch)
        >>> with subscribing(engine, Phase.MEASURE):
        ...     Accuracy().attach(engine, "accuracy")
    """
    if hasattr(engine, "_subscribing_phase"):  # a Camshaft engine places them itself
        before, engine._subscribing_phase = engine._subscribing_phase, phase
        try:
            yield
        finally:
            engine._subscribing_phase = before
    else:
        present = {id(entry) for entries in engine._event_handlers.values() for entry in entries}
        yield
        for entries in engine._event_handlers.values():
            _place_newcomers(engine, entries, present, phase)


def _place_newcomers(engine: Any, entries: list[Any], present: set[int], phase: Phase) -> None:
    """Move the entries that were not ``present`` before the first of ours with a later phase.

    The phases are kept by function beside the entries, which Ignite makes anew whenever one is removed.
    """
    phases: dict[int, tuple[Phase, Any]] = engine.__dict__.setdefault("_phases_by_function", {})
    newcomers = [entry for entry in entries if id(entry) not in present]
    entries[:] = [entry for entry in entries if id(entry) in present]
    for newcomer in newcomers:
        later = (i for i, (function, *_) in enumerate(entries) if phases.get(id(function), (phase,))[0] > phase)
        entries.insert(next(later, len(entries)), newcomer)
        phases[id(newcomer[0])] = phase, newcomer[0]  # with the function, whose id is its own as long as it lives


def events_in(event: Any) -> list[Any]:
    """The single events of ``event``, which may be several joined by ``|``.

    Example:
        >>> from camshaft.engine import Events
        >>> [event.name for event in events_in(Events.STARTED | Events.COMPLETED)]
        ['STARTED', 'COMPLETED']
    """
    return list(event) if isinstance(event, EventsList) else [event]
