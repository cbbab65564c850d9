"""Who is called when an event fires: one list an event, compiled when a handler is added, not when it fires."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from camshaft.engine.error_notes import note_handler
from camshaft.engine.events import Events, State, every_of
from camshaft.engine.phases import Phase

if TYPE_CHECKING:
    from camshaft.engine.engine import Engine

__all__ = ["Subscriber", "Subscribers", "SubscribersByEvent"]

# What Ignite keeps, and what its own handlers find in `engine._event_handlers`: handler, positional, keyword arguments.
Entry = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Subscriber:
    """One handler of one event: how to call it, in which phase, and how long it has taken so far.

    Attributes:
        entry: what Ignite's code sees of it.
        event: the event it was added to, with its filter.
        phase: where it stands among the subscribers of its event.
        function: what is called when its turn has come: the handler, or the handler behind its filter.
        every: it fires when the event's count is a multiple of this; 0 for always.
        takes_engine: ``function`` wants the engine first.
        bare: ``function`` wants nothing else.
        seconds: time spent in it during the present run.
    """

    __slots__ = ("bare", "entry", "event", "every", "function", "phase", "seconds", "takes_engine")

    def __init__(self, entry: Entry, phase: Phase, engine: weakref.ref[Engine], event: Any = None) -> None:
        handler, args, kwargs = entry
        self.entry = entry
        self.event = event
        self.phase = phase
        self.every = every_of(event)
        self.function = handler._parent() if self.every else handler  # type: ignore[attr-defined]
        self.takes_engine = bool(args) and args[0] is engine
        self.bare = not kwargs and len(args) == self.takes_engine
        self.seconds = 0.0

    def call(self, engine: Engine, event_args: tuple[Any, ...], event_kwargs: dict[str, Any]) -> None:
        """Call it with the event's and its own arguments, as Ignite does: the keywords of the event are kept."""
        _, args, kwargs = self.entry
        kwargs.update(event_kwargs)
        self.bare = self.bare and not kwargs
        if not (args and isinstance(args[0], weakref.ref)):
            self.function(*event_args, *args, **kwargs)
            return
        target = args[0]()
        if target is None:
            raise RuntimeError("Engine reference not resolved. Cannot execute event handler.")
        self.function(target, *event_args, *args[1:], **kwargs)


class Subscribers(list[Entry]):
    """The subscribers of one event in firing order, as the list of entries that Ignite's own code expects.

    A handler that is added to the ``USER`` phase while the event fires still fires, and one that is removed still
    fires too (so it is in Ignite); any other change takes effect the next time. To that end there are two lists:
    ``prompt``, whose last phase is ``USER`` and to which such a handler is appended in place, and ``late``. Every other
    change makes them anew, so that a firing under way goes on over the lists it began with.
    """

    __slots__ = ("attribute", "engine", "event", "filtered", "late", "prompt")

    def __init__(self, event: Any, engine: weakref.ref[Engine]) -> None:
        super().__init__()
        self.event = event
        self.engine = engine
        self.attribute = ""  # what a filter counts
        self.filtered = False
        self.prompt: list[Subscriber] = []
        self.late: list[Subscriber] = []

    def fire(
        self, engine: Engine, event_args: tuple[Any, ...] = (), event_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Call every subscriber whose filter lets it, in order, and add up the time of each."""
        engine.last_event_name = self.event
        bare_event = not event_args and not event_kwargs
        count = getattr(engine.state, self.attribute) if self.filtered else 0
        begin = perf_counter()
        try:
            for subscribers in (self.prompt, self.late):
                for subscriber in subscribers:
                    if subscriber.every and count % subscriber.every:
                        continue
                    if not (subscriber.bare and bare_event):
                        subscriber.call(engine, event_args, event_kwargs or {})
                    elif subscriber.takes_engine:
                        subscriber.function(engine)
                    else:
                        subscriber.function()
                    end = perf_counter()
                    subscriber.seconds += end - begin
                    begin = end
                    if self.filtered:  # whoever was called may have changed it
                        count = getattr(engine.state, self.attribute)
        except Exception as error:
            if error not in event_args:  # else it is raised again by who was told of it
                note_handler(error, subscriber)
            raise

    def fire_from(self, engine: Engine, phase: Phase) -> None:
        """Fire the event for those of ``phase`` and later: what an earlier process did not come to."""
        rest = Subscribers(self.event, self.engine)
        rest.attribute, rest.filtered = self.attribute, self.filtered
        rest.prompt = [subscriber for subscriber in self.prompt if subscriber.phase >= phase]
        rest.late = [subscriber for subscriber in self.late if subscriber.phase >= phase]
        rest.fire(engine)

    def add(self, entry: Entry, phase: Phase, event: Any) -> None:
        """Add ``entry`` behind all of its phase and before all later ones; ``event`` tells its filter."""
        subscriber = Subscriber(entry, phase, self.engine, event)
        if phase == Phase.USER:
            super().insert(len(self.prompt), entry)
            self.prompt.append(subscriber)
        elif phase < Phase.USER:
            self._place(sorted([*self.prompt, subscriber], key=lambda subscriber: subscriber.phase), self.late)
        else:
            self._place(self.prompt, sorted([*self.late, subscriber], key=lambda subscriber: subscriber.phase))
        if subscriber.every:
            self.filtered = True
            self.attribute = State.event_to_attr[event]

    def drop(self, unwanted: Callable[[Callable[..., Any]], bool]) -> int:
        """Remove all whose handler is ``unwanted`` and tell how many they were."""
        before = len(self)
        prompt = [subscriber for subscriber in self.prompt if not unwanted(subscriber.entry[0])]
        self._place(prompt, [subscriber for subscriber in self.late if not unwanted(subscriber.entry[0])])
        return before - len(self)

    def _place(self, prompt: list[Subscriber], late: list[Subscriber]) -> None:
        self.prompt, self.late = prompt, late
        super().__setitem__(slice(None), [subscriber.entry for subscriber in (*prompt, *late)])

    def _adopt(self, replaced: Subscriber | None = None) -> None:
        """Make the subscribers anew from the entries, after someone changed these directly.

        What Ignite's profilers put in takes the phase of what it replaces or stands before.
        """
        known = {id(subscriber.entry): subscriber for subscriber in (*self.prompt, *self.late)}
        phase = max((subscriber.phase for subscriber in known.values()), default=Phase.USER)
        subscribers: list[Subscriber] = []
        for entry in reversed(self):
            newcomer_phase = replaced.phase if replaced else phase
            subscriber = known.get(id(entry)) or Subscriber(entry, newcomer_phase, self.engine)
            phase = subscriber.phase
            subscribers.insert(0, subscriber)
        self.prompt[:] = [subscriber for subscriber in subscribers if subscriber.phase <= Phase.USER]
        self.late[:] = [subscriber for subscriber in subscribers if subscriber.phase > Phase.USER]

    def __setitem__(self, index: Any, value: Any) -> None:
        replaced = [*self.prompt, *self.late][index] if isinstance(index, int) else None
        super().__setitem__(index, value)
        self._adopt(replaced)


def _adopting(name: str) -> Callable[..., Any]:
    change = getattr(list, name)

    @functools.wraps(change)
    def method(self: Subscribers, *args: Any, **kwargs: Any) -> Any:
        result = change(self, *args, **kwargs)
        self._adopt()
        return result

    return method


for _name in ("__delitem__", "__iadd__", "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"):
    setattr(Subscribers, _name, _adopting(_name))


class SubscribersByEvent(dict[Any, Subscribers]):
    """``engine._event_handlers``: the subscribers of each event, made when first asked for and never replaced.

    The loop holds on to the lists of its events, so a list that Ignite's code assigns is copied into the one there.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = weakref.ref(engine)

    def __missing__(self, event: Any) -> Subscribers:
        if type(event) is not Events:  # else it has no filter, and every run would look for it anew
            engine = self.engine()
            registered = engine._allowed_events if engine is not None else ()
            event = next((known for known in registered if known == event), event)  # the same without a filter
        subscribers = Subscribers(event, self.engine)
        super().__setitem__(event, subscribers)
        return subscribers

    def __setitem__(self, event: Any, entries: Iterable[Entry]) -> None:
        subscribers = self[event]
        subscribers.prompt, subscribers.late = [*subscribers.prompt], [*subscribers.late]  # a firing keeps the old ones
        subscribers[:] = entries
