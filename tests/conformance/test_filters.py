"""Filters on events: every, once, before, after, callables, several events joined by |, and custom events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from camshaft.engine import EventEnum, Events
from tests.conformance.recorder import Recorder, compare

FILTERED_EVENTS = [
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.COMPLETED,
]
FILTERS: list[dict[str, Any]] = [
    {"every": 1},
    {"every": 3},
    {"every": np.int64(2)},
    {"once": 4},
    {"once": [1, 3, 9]},
    {"before": 3},
    {"after": 3},
    {"before": 6, "after": 2},
    {"every": 2, "after": 3},
    {"every": 3, "before": 8, "after": 1},
    {"event_filter": lambda engine, count: count in (2, 5)},
    {"event_filter": lambda engine, count: bool(engine.state.batch)},
]


class Custom(EventEnum):
    HALFWAY = "halfway"
    DONE = "done"


@pytest.mark.parametrize("event", FILTERED_EVENTS, ids=lambda event: event.name)
@pytest.mark.parametrize("arguments", FILTERS, ids=lambda arguments: "-".join(arguments))
def test_a_filter_lets_the_same_firings_through(event, arguments) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.add_event_handler(event(**arguments), lambda engine: recorder.note("let through", engine))
        recorder.run(engine, range(4), max_epochs=4)

    compare(program)


def test_events_joined_by_a_bar_each_keep_their_filter() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        events = (
            Events.STARTED | Events.ITERATION_COMPLETED(every=3) | Events.EPOCH_COMPLETED(once=2) | Events.COMPLETED
        )
        handle = engine.add_event_handler(events, lambda engine, extra: recorder.note(extra, engine), "joined")
        recorder.run(engine, range(4), max_epochs=2)
        handle.remove()
        engine.state.max_epochs = None
        recorder.run(engine, range(4), max_epochs=1)

    assert sum(entry[0] == "joined" for entry in compare(program)) == 5


def test_a_filter_sees_what_an_earlier_handler_of_the_same_event_changed() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda engine: recorder.note("before", engine))

        @engine.on(Events.ITERATION_COMPLETED(once=3))
        def jump(engine: Any) -> None:
            engine.state.iteration = 4

        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda engine: recorder.note("after", engine))
        recorder.run(engine, range(6))

    compare(program)


def test_a_filtered_handler_added_to_an_event_without_filters_while_it_fires() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()

        @engine.on(Events.ITERATION_COMPLETED)
        def add(engine: Any) -> None:
            if engine.state.iteration in (3, 4):
                engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda: recorder.note("added"))

        recorder.run(engine, range(6))

    assert compare(program).count("added") > 1


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED, Custom.HALFWAY], ids=lambda event: event.name)
def test_a_filter_takes_the_signature_of_the_handler_behind_it(event) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine(lambda engine, batch: engine.fire_event(Custom.HALFWAY))
        engine.register_events(*Custom, event_to_attr={Custom.HALFWAY: "iteration"})
        engine.add_event_handler(event(every=2), lambda: recorder.note("nothing"))
        engine.add_event_handler(event(every=2), lambda engine: recorder.note("engine", engine))
        engine.add_event_handler(event(every=2), lambda engine, extra, key: recorder.note((extra, key)), "extra", key=1)
        engine.add_event_handler(event(every=2), lambda *args, **kwargs: recorder.note((len(args), kwargs)), 1, key=2)
        with recorder.outcome("too few parameters"):
            engine.add_event_handler(event(every=2), lambda engine: None, "extra")
        recorder.run(engine, range(4))

    compare(program)


def test_custom_events_count_the_attribute_that_they_were_registered_with() -> None:
    def program(recorder: Recorder) -> None:
        def step(engine: Any, batch: Any) -> None:
            engine.state.halves += 1
            engine.fire_event(Custom.HALFWAY)
            engine.fire_event("DONE")
            recorder.note(("last event", engine.last_event_name == "DONE"))

        engine = recorder.engine(step)
        engine.register_events(*Custom, event_to_attr={Custom.HALFWAY: "halves", Custom.DONE: "iteration"})
        recorder.note(("attribute made", engine.state.halves))
        engine.add_event_handler(Custom.HALFWAY(every=2), lambda engine: recorder.note("halfway", engine))
        engine.add_event_handler(Custom.DONE(once=3), lambda engine: recorder.note("done", engine))
        engine.add_event_handler(Events.STARTED | Custom.HALFWAY(after=2), lambda: recorder.note("either"))
        recorder.run(engine, range(3), max_epochs=2)

    compare(program)


def test_an_event_that_is_given_an_attribute_only_after_it_got_a_handler() -> None:
    class Late(EventEnum):
        EVENT = "of this test only"

    def program(recorder: Recorder) -> None:
        engine = recorder.engine(lambda engine, batch: engine.fire_event(Late.EVENT))
        engine.register_events(Late.EVENT)
        engine.add_event_handler(Late.EVENT, lambda: recorder.note("always"))
        engine.register_events(Late.EVENT, event_to_attr={Late.EVENT: "iteration"})
        engine.add_event_handler(Late.EVENT(every=2), lambda: recorder.note("every 2"))
        recorder.run(engine, range(4))

    assert compare(program).count("every 2") == 2


def test_events_of_the_users_own_that_bear_the_names_of_moments_of_a_step_are_theirs() -> None:
    class Backprop(EventEnum):
        FORWARD_STARTED = "forward_started"
        BACKWARD_COMPLETED = "backward_completed"

    def program(recorder: Recorder) -> None:
        def step(engine: Any, batch: Any) -> None:
            engine.fire_event(Backprop.FORWARD_STARTED)
            engine.fire_event(Backprop.BACKWARD_COMPLETED)

        engine = recorder.engine(step)
        engine.register_events(*Backprop)
        engine.add_event_handler(Backprop.FORWARD_STARTED, lambda engine: recorder.note("forward", engine))
        engine.add_event_handler(Backprop.BACKWARD_COMPLETED, lambda engine: recorder.note("backward", engine))
        recorder.run(engine, range(3))

    assert sum(entry[0] == "forward" for entry in compare(program)) == 3


def test_an_event_that_is_not_registered_is_refused() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        for name in ("HALFWAY", Custom.HALFWAY, Custom.HALFWAY(every=2), None):
            with recorder.outcome("adding"):
                engine.add_event_handler(name, lambda: None)
            with recorder.outcome("firing"):
                engine.fire_event(name)
        with recorder.outcome("registering a number"):
            engine.register_events(1)
        with recorder.outcome("attributes as a list"):
            engine.register_events(Custom.HALFWAY, event_to_attr=["iteration"])
        recorder.note([engine.has_registered_events(event) for event in (Events.STARTED, "STARTED", Custom.HALFWAY)])

    compare(program)
