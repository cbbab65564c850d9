"""What is added to an error that ends a run: which handler raised it, and where the run was.

A note (PEP 678) stands below the error in its traceback, which stays as it is. Python has them from 3.11 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camshaft.engine import overview
from camshaft.engine.events import Events

if TYPE_CHECKING:
    from camshaft.engine.engine import Engine
    from camshaft.engine.subscribers import Subscriber

__all__ = ["note_handler", "note_position"]


def note_handler(error: Exception, subscriber: Subscriber) -> None:
    """Name the handler that raised, the event that it was called for and its phase."""
    try:
        name = overview.describe_function(subscriber.function)
    except Exception:  # noqa: BLE001 - a handler's repr() must not hide its error
        name = type(subscriber.function).__name__
    event = getattr(subscriber.event, "name", subscriber.event)
    _add(error, f"Raised by the handler {name} at {event}, in phase {subscriber.phase.name}.")


def note_position(error: Exception, engine: Engine, began: int | None) -> None:
    """Tell the epoch, iteration and batch that an engine had come to.

    Args:
        error: what ends its run.
        engine: the engine.
        began: the iteration at which the epoch began, if one has.
    """
    state = engine.state
    name = getattr(engine._process_function, "__name__", type(engine._process_function).__name__)
    where = f"epoch {state.epoch}, iteration {state.iteration}"
    if began is not None:
        fetches = engine.last_event_name in (Events.GET_BATCH_STARTED, Events.DATALOADER_STOP_ITERATION)
        batch = state.iteration - began + fetches
        total = f" of {state.epoch_length}" if state.epoch_length else ""
        where += f", while batch {batch}{total} was fetched" if fetches else f", batch {batch}{total} of the epoch"
    _add(error, f"The engine of {name} was in {where}.")


def _add(error: Exception, note: str) -> None:
    add_note: Any = getattr(error, "add_note", None)
    if add_note is not None:
        add_note(note)
