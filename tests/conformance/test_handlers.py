"""How handlers are added, called and removed: signatures, arguments, weak references, changes while an event fires."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import pytest

from camshaft.engine import Events
from tests.conformance.recorder import Recorder, compare

EVENTS = [
    Events.STARTED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.COMPLETED,
]


class Listener:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def method(self, engine: Any) -> None:
        self.recorder.note("method", engine)

    def alone(self) -> None:
        self.recorder.note("alone")

    def __call__(self, engine: Any, *extra: Any) -> None:
        self.recorder.note(("called", extra), engine)

    @staticmethod
    def static(engine: Any, recorder: Recorder) -> None:
        recorder.note("static", engine)

    @classmethod
    def of_class(cls, recorder: Recorder) -> None:
        recorder.note("class")


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_a_handler_gets_the_engine_if_its_signature_binds_with_it(event) -> None:
    def program(recorder: Recorder) -> None:
        engine, listener = recorder.engine(), Listener(recorder)
        engine.add_event_handler(event, listener.method)
        engine.add_event_handler(event, listener.alone)
        engine.add_event_handler(event, listener)
        engine.add_event_handler(event, listener, 1, 2)
        engine.add_event_handler(event, listener.static, recorder)
        engine.add_event_handler(event, Listener.of_class, recorder)
        engine.add_event_handler(event, lambda first=None: recorder.note(("default", first is engine)))
        engine.add_event_handler(event, lambda *, key: recorder.note(("keyword", key)), key=3)
        engine.add_event_handler(event, functools.partial(recorder.note, "partial"))
        engine.add_event_handler(event, lambda *args: recorder.note(("any", [arg is engine for arg in args])), 4)
        recorder.run(engine, range(2), max_epochs=2)

    compare(program)


def test_a_handler_that_cannot_be_called_so_is_refused() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        for arguments in [(), (1, 2, 3)]:
            with recorder.outcome("adding"):
                engine.add_event_handler(Events.STARTED, lambda engine, one: None, *arguments)
        with recorder.outcome("an unknown keyword"):
            engine.add_event_handler(Events.STARTED, lambda engine: None, key=1)
        recorder.run(engine, range(1))

    compare(program)


@pytest.mark.parametrize("step", [None, lambda engine: None, lambda engine, batch, more: None, lambda: None])
def test_a_step_that_cannot_be_called_so_is_refused(step) -> None:
    def program(recorder: Recorder) -> None:
        with recorder.outcome("making an engine"):
            recorder.engine_class(step)

    compare(program)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_a_handler_added_while_its_event_fires_still_fires(event) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()

        @engine.on(event)
        def add(engine: Any) -> None:
            if engine.state.iteration < 3:
                engine.add_event_handler(event, lambda engine: recorder.note("added", engine))

        engine.add_event_handler(event, lambda: recorder.note("last"))
        recorder.run(engine, range(2), max_epochs=2)

    compare(program)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_a_handler_removed_while_its_event_fires_still_fires_that_once(event) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()

        def later(engine: Any) -> None:
            recorder.note("later", engine)

        @engine.on(event)
        def remove(engine: Any) -> None:
            if engine.has_event_handler(later, event):
                engine.remove_event_handler(later, event)

        engine.add_event_handler(event, later)
        recorder.run(engine, range(2), max_epochs=2)

    assert "later" in str(compare(program))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_a_handler_added_after_another_was_removed_in_the_same_firing_waits_for_the_next(event) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()

        @engine.on(event)
        def replace_myself(engine: Any) -> None:
            recorder.note("old", engine)
            engine.remove_event_handler(replace_myself, event)
            engine.add_event_handler(event, lambda engine: recorder.note("new", engine))

        recorder.run(engine, range(2), max_epochs=2)

    compare(program)


@pytest.mark.parametrize("filtered", [False, True])
def test_a_handler_attached_twice_is_called_twice_and_removed_twice(filtered) -> None:
    event = Events.ITERATION_COMPLETED(every=2) if filtered else Events.ITERATION_COMPLETED

    def program(recorder: Recorder) -> None:
        engine = recorder.engine()

        def twice(engine: Any) -> None:
            recorder.note("twice", engine)

        engine.add_event_handler(Events.ITERATION_COMPLETED, twice)
        handle = engine.add_event_handler(event, twice)
        recorder.run(engine, range(2))
        handle.remove()
        recorder.note(engine.has_event_handler(twice))
        recorder.run(engine, range(2))

    assert compare(program).count(False) == 1


def test_a_handle_removes_in_a_with_statement_and_by_itself() -> None:
    def program(recorder: Recorder) -> None:
        engine, listener = recorder.engine(), Listener(recorder)
        with engine.add_event_handler(Events.EPOCH_COMPLETED | Events.ITERATION_STARTED(every=2), listener.alone):
            recorder.run(engine, range(2))
        handle = engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), listener.method)
        recorder.run(engine, range(2))
        handle.remove()
        handle.remove()
        recorder.run(engine, range(2))

    compare(program)


def test_what_is_not_there_cannot_be_removed() -> None:
    def program(recorder: Recorder) -> None:
        engine, listener = recorder.engine_class(lambda engine, batch: None), Listener(recorder)
        with recorder.outcome("an event without handlers"):
            engine.remove_event_handler(listener.alone, Events.COMPLETED)
        engine.add_event_handler(Events.COMPLETED, listener.method)
        with recorder.outcome("another handler"):
            engine.remove_event_handler(listener.alone, Events.COMPLETED)
        for handler, event in [(listener.method, Events.COMPLETED), (listener.method, None), (listener.alone, None)]:
            recorder.note(engine.has_event_handler(handler, event))

    compare(program)


def test_keywords_of_an_event_reach_handlers_and_stay_with_them() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.add_event_handler(Events.TERMINATE_SINGLE_EPOCH, lambda engine, **kwargs: recorder.note(kwargs))
        engine.add_event_handler(Events.TERMINATE_SINGLE_EPOCH, lambda iter_counter: recorder.note(iter_counter))
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch())
        engine.add_event_handler(Events.COMPLETED, lambda engine: engine.fire_event(Events.TERMINATE_SINGLE_EPOCH))
        recorder.run(engine, range(4), max_epochs=2)

    compare(program)


def test_events_fired_inside_the_step_and_inside_handlers() -> None:
    def program(recorder: Recorder) -> None:
        def step(engine: Any, batch: Any) -> Any:
            engine.fire_event("inner")
            engine.fire_event(Events.EPOCH_COMPLETED)
            return batch

        engine = recorder.engine(step)
        engine.register_events("inner", "innermost")
        engine.add_event_handler("inner", lambda engine: engine.fire_event("innermost"))
        engine.add_event_handler("innermost", lambda engine: recorder.note("innermost", engine))
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: engine.fire_event(Events.DATALOADER_STOP_ITERATION)
        )
        recorder.run(engine, range(2), max_epochs=2)

    compare(program)


def test_an_engine_run_by_a_handler_of_another() -> None:
    def program(recorder: Recorder) -> None:
        inner = recorder.engine(name="inner ")
        inner.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: inner.terminate())
        outer = recorder.engine(name="outer ")
        outer.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: recorder.run(inner, "abc"))
        outer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: recorder.run(inner, "defg"))
        recorder.run(outer, range(2), max_epochs=4)

    compare(program)


def test_a_handler_may_hold_an_object_that_only_the_engine_keeps_alive() -> None:
    def program(recorder: Recorder) -> None:
        engine, listener = recorder.engine(), Listener(recorder)
        engine.add_event_handler(Events.STARTED, listener.method)
        engine.add_event_handler(Events.COMPLETED(once=1), listener.method)
        alive = weakref.ref(listener)
        del listener
        gc.collect()
        recorder.note(alive() is not None)
        recorder.run(engine, range(1))

    assert compare(program)[0] is True


def test_a_weak_reference_to_something_else_is_called_up_as_well() -> None:
    def program(recorder: Recorder) -> None:
        engine, listener = recorder.engine(), Listener(recorder)
        engine.add_event_handler(
            Events.STARTED, lambda target: recorder.note(type(target).__name__), weakref.ref(listener)
        )
        recorder.run(engine, range(1))
        del listener
        gc.collect()
        recorder.run(engine, range(1))

    compare(program)


def test_handlers_put_into_the_lists_of_an_engine_directly_fire_at_once_where_they_stand() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()

        @engine.on(Events.STARTED)
        def insert(engine: Any) -> None:
            entries = engine._event_handlers[Events.STARTED]
            entries.append((lambda: recorder.note("appended"), (), {}))
            handler, args, kwargs = entries[-2]
            entries[-2] = (lambda: recorder.note("replaced"), (), {})
            engine._event_handlers[Events.COMPLETED].insert(0, (handler, args, kwargs))
            engine._event_handlers[Events.EPOCH_COMPLETED].extend([(handler, args, kwargs)])

        engine.add_event_handler(Events.STARTED, lambda: recorder.note("original"))
        recorder.run(engine, range(1))

    assert "appended" in compare(program)
