"""What is attached to an engine: each event with its subscribers in firing order, as text and as HTML."""

from __future__ import annotations

import html
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from camshaft.engine.events import CallableEventWithFilter, Events, StepEvents

if TYPE_CHECKING:
    from camshaft.engine.engine import Engine
    from camshaft.engine.subscribers import Subscriber

__all__ = ["as_html", "as_text", "describe_event", "describe_function"]

# In text a handler's representation is cut at this many characters, and further where the name of its method and a
# filter would make the table wider than 120.
_LONGEST_OWNER = 60
_WIDEST_CELL = 74

# As in the drawing of camshaft.engine.events; events of the user follow.
_ORDER: tuple[Any, ...] = (
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.GET_BATCH_STARTED,
    Events.DATALOADER_STOP_ITERATION,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    *StepEvents,
    Events.ITERATION_COMPLETED,
    Events.TERMINATE_SINGLE_EPOCH,
    Events.EPOCH_COMPLETED,
    Events.INTERRUPT,
    Events.TERMINATE,
    Events.COMPLETED,
    Events.EXCEPTION_RAISED,
)


class Row(NamedTuple):
    """One subscriber in the table."""

    event: str
    phase: str
    handler: str
    share: str


def as_text(engine: Engine) -> str:
    """The table as text, an event's name only on its first line."""
    lines = [Row("event", "phase", "handler", "time"), *_rows(engine, cut=True)]
    widths = [max(len(row[column]) for row in lines) for column in range(3)]
    rule = Row._make("-" * width for width in (*widths, 7))
    body, last_event = [], ""
    for row in (lines[0], rule, *lines[1:]):
        shown = row._replace(event="" if row.event == last_event else row.event)
        last_event = row.event
        cells = (shown[column].ljust(widths[column]) for column in range(3))
        body.append("  ".join([*cells, shown.share]).rstrip())
    return "\n".join([_headline(engine), *body])


def as_html(engine: Engine) -> str:
    """The table for notebooks."""
    header = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("event", "phase", "handler", "time"))
    rows = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell.strip())}</td>" for cell in row) + "</tr>"
        for row in _rows(engine, cut=False)
    )
    return (
        f"<p>{html.escape(_headline(engine))}</p><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _headline(engine: Engine) -> str:
    state = engine.state
    seconds = state.times.get(Events.COMPLETED.name)
    ran = f"; it ran for {seconds:.2f} s, to iteration {state.iteration}" if seconds else ""
    return f"{type(engine).__name__} of {describe_function(engine._process_function)}{ran}"


def _rows(engine: Engine, cut: bool) -> list[Row]:
    by_event = engine._event_handlers
    events = [*_ORDER, *(event for event in by_event if event not in _ORDER)]
    seconds = engine.state.times.get(Events.COMPLETED.name)
    return [
        Row(_name(event), subscriber.phase.name, _describe(subscriber, cut), _share(subscriber.seconds, seconds))
        for event in events
        if event in by_event
        for subscriber in (*by_event[event].prompt, *by_event[event].late)
    ]


def _share(seconds: float, of: float | None) -> str:
    return f"{100 * seconds / of:6.2f}%" if of else ""


def _describe(subscriber: Subscriber, cut: bool) -> str:
    event_filter = getattr(subscriber.event, "filter", None)
    filtered = f"  [{_describe_filter(event_filter)}]" if event_filter else ""
    owner, method = _owner_and_method(subscriber.function)
    if cut:
        owner = _cut(owner, min(_LONGEST_OWNER, _WIDEST_CELL - len(method) - len(filtered)))
    return owner + method + filtered


def _cut(shown: str, longest: int) -> str:
    """``shown`` without its last arguments, if it is too long: ``Checkpoint('runs/digits', …)``."""
    if len(shown) <= longest:
        return shown
    whole_arguments, comma, _ = shown[: longest - 2].rpartition(", ")
    return f"{whole_arguments}, …)" if comma else f"{shown[: longest - 2]}…)"


def _describe_filter(event_filter: Any) -> str:
    """``every=100`` for the filters that Ignite builds from numbers, else the name of the user's function."""
    code = event_filter.__code__ if hasattr(event_filter, "__code__") else None
    if code is None or not event_filter.__qualname__.startswith("CallableEventWithFilter."):
        return describe_function(event_filter)
    cells = zip(code.co_freevars, event_filter.__closure__, strict=True)
    values = {name.rstrip("_"): cell.cell_contents for name, cell in cells}
    order = ("once", "every", "after", "before")
    return ", ".join(f"{name}={values[name]}" for name in order if name in values and values[name] != float("inf"))


def describe_event(event: CallableEventWithFilter) -> str:
    """An event as it is written in code, with the filter that Ignite's own representation does not show.

    Example:
        >>> describe_event(Events.EPOCH_COMPLETED(every=5))
        'Events.EPOCH_COMPLETED(every=5)'
    """
    kinds = (kind.__name__ for kind in (Events, StepEvents) if event.name in kind.__members__)
    filtered = f"({_describe_filter(event.filter)})" if event.filter else ""
    return ".".join([*kinds, event.name]) + filtered


def describe_function(function: Any) -> str:
    """A name that a reader finds in the code: ``EarlyStopping(monitor='val_loss').decide``, ``training_step``.

    Example:
        >>> describe_function(describe_function)
        'describe_function'
    """
    return "".join(_owner_and_method(function))


def _owner_and_method(function: Any) -> tuple[str, str]:
    """The object with its arguments and ``.method``; for a function that is no method, nothing and its name."""
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, (type, ModuleType)) and hasattr(function, "__name__"):
        return _shown(owner), f".{function.__name__}"
    name = getattr(function, "__qualname__", None)
    return "", name.replace("<locals>.", "") if name else _shown(function)


def _shown(thing: Any) -> str:
    """An object as it represents itself or, where it does not, its class."""
    representation = repr(thing)
    return type(thing).__name__ if representation.startswith("<") else representation


def _name(event: Any) -> str:
    return str(getattr(event, "name", event))
