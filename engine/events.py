"""What happens when: the events of a run (Ignite's) and the moments of one training step (ours).

A run of an :class:`~camshaft.engine.Engine`, with each event where it fires::

    STARTED
    for each epoch:
        EPOCH_STARTED
        for each iteration:
            GET_BATCH_STARTED
            batch = next(data)                       # DATALOADER_STOP_ITERATION, then anew, where the data ends early
            GET_BATCH_COMPLETED
            ITERATION_STARTED
                FORWARD_STARTED                      # from here the moments of a step: they exist once a handler
                loss = step(engine, batch)           # such as OptimizerStep is attached
                FORWARD_COMPLETED
                BACKWARD_STARTED
                loss.backward()
                BACKWARD_COMPLETED                   # gradients of this micro-batch are added
                when a group of micro-batches is whole:
                    OPTIMIZER_STEP_STARTED           # gradients are whole and unscaled: clip them, log their norm
                    optimizer.step()
                    OPTIMIZER_STEP_COMPLETED         # schedules, moving averages
                    optimizer.zero_grad()
            ITERATION_COMPLETED
        EPOCH_COMPLETED                              # a group left incomplete steps here, first of all
    COMPLETED

``terminate_epoch()`` adds TERMINATE_SINGLE_EPOCH, ``terminate()`` TERMINATE, ``interrupt()`` INTERRUPT, and an error
EXCEPTION_RAISED.
"""

from __future__ import annotations

from typing import Any

from ignite.engine.events import CallableEventWithFilter, EventEnum, Events, EventsList, RemovableEventHandle, State

__all__ = [
    "CallableEventWithFilter",
    "EventEnum",
    "Events",
    "EventsList",
    "RemovableEventHandle",
    "State",
    "STEP_EVENT_ATTRIBUTES",
    "StepEvents",
    "every_of",
]


class StepEvents(EventEnum):
    """The moments of one training step; the module's drawing shows where each fires.

    Filters count iterations in ``state.iteration`` for the forward and backward moments, and optimizer steps in
    ``state.optimizer_step`` for the two of the optimizer.

    Example:
        >>> StepEvents.OPTIMIZER_STEP_COMPLETED(every=100).name
        'OPTIMIZER_STEP_COMPLETED'
    """

    FORWARD_STARTED = "forward_started"
    FORWARD_COMPLETED = "forward_completed"
    BACKWARD_STARTED = "backward_started"
    BACKWARD_COMPLETED = "backward_completed"
    OPTIMIZER_STEP_STARTED = "optimizer_step_started"
    OPTIMIZER_STEP_COMPLETED = "optimizer_step_completed"


# The attribute of `engine.state` that a filter on each moment counts.
STEP_EVENT_ATTRIBUTES: dict[Any, str] = {
    StepEvents.FORWARD_STARTED: "iteration",
    StepEvents.FORWARD_COMPLETED: "iteration",
    StepEvents.BACKWARD_STARTED: "iteration",
    StepEvents.BACKWARD_COMPLETED: "iteration",
    StepEvents.OPTIMIZER_STEP_STARTED: "optimizer_step",
    StepEvents.OPTIMIZER_STEP_COMPLETED: "optimizer_step",
}

_EVERY_CODE = CallableEventWithFilter.every_event_filter(2).__code__


def every_of(event: Any) -> int:
    """The ``n`` of an event made by ``Events.X(every=n)``, else 0: it lets the engine compare instead of call.

    Example:
        >>> every_of(Events.ITERATION_COMPLETED(every=100)), every_of(Events.ITERATION_COMPLETED(once=100))
        (100, 0)
    """
    code = getattr(getattr(event, "filter", None), "__code__", None)
    if code is _EVERY_CODE and code.co_freevars == ("every",):
        return int(event.filter.__closure__[0].cell_contents)
    return 0
