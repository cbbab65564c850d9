from __future__ import annotations

import time
from typing import Any

import pytest

from camshaft.engine import Engine, Events, Phase
from camshaft.engine.phases import subscribe

ALL = tuple(Phase)
EVENT = Events.ITERATION_COMPLETED


def do_nothing(*_: Any) -> None:
    pass


def make_engine() -> Engine:
    return Engine(lambda engine, batch: None)


def subscribers_of(engine: Engine, event: Any = EVENT) -> Any:
    return engine._event_handlers[event]


def test_the_list_of_entries_is_in_firing_order_as_ignites_code_expects_it() -> None:
    engine = make_engine()
    functions = {phase: lambda: None for phase in ALL}
    for phase in reversed(ALL):
        subscribe(engine, EVENT, functions[phase], phase)
    assert subscribers_of(engine) == [(functions[phase], (), {}) for phase in ALL]


def test_a_handler_added_to_an_earlier_phase_while_the_event_fires_waits_for_the_next_time() -> None:
    engine, ran = make_engine(), []

    @engine.on(EVENT(once=1))
    def add() -> None:
        subscribe(engine, EVENT, lambda: ran.append("measure"), Phase.MEASURE)
        subscribe(engine, EVENT, lambda: ran.append("save"), Phase.SAVE)

    engine.run(range(2))
    assert ran == ["measure", "save"]


def test_entries_put_in_directly_take_the_phase_of_what_they_stand_before_or_replace() -> None:
    engine = make_engine()
    subscribe(engine, EVENT, do_nothing, Phase.MEASURE)
    subscribe(engine, EVENT, do_nothing, Phase.SAVE)
    entries = subscribers_of(engine)
    entries.insert(0, (lambda: None, (), {}))
    entries.append((lambda: None, (), {}))
    entries[1] = (lambda: None, (), {})
    phases = [subscriber.phase for subscriber in (*entries.prompt, *entries.late)]
    assert phases == [Phase.MEASURE, Phase.MEASURE, Phase.SAVE, Phase.SAVE]


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries.pop(),
        lambda entries: entries.remove(entries[1]),
        lambda entries: entries.__delitem__(1),
        lambda entries: entries.__setitem__(slice(None), entries[:1]),
    ],
)
def test_entries_taken_out_directly_fire_no_more(change) -> None:
    engine, ran = make_engine(), []
    engine.add_event_handler(EVENT, lambda: ran.append("first"))
    engine.add_event_handler(EVENT, lambda: ran.append("second"))
    change(subscribers_of(engine))
    engine.run([0])
    assert ran == ["first"]


def test_a_list_assigned_to_an_event_is_copied_into_the_one_that_the_loop_holds() -> None:
    engine, ran = make_engine(), []
    entries = subscribers_of(engine)

    @engine.on(EVENT(once=1))
    def assign() -> None:
        engine._event_handlers[EVENT] = [(lambda: ran.append("assigned"), (), {})]

    engine.add_event_handler(EVENT, ran.append, "old")
    engine.run(range(3))
    assert ran == ["old", "assigned", "assigned"]
    assert subscribers_of(engine) is entries


def test_the_time_of_each_subscriber_is_added_up_for_one_run() -> None:
    engine = make_engine()
    engine.add_event_handler(EVENT, lambda: time.sleep(0.002))
    engine.add_event_handler(EVENT, do_nothing)
    engine.run(range(5))
    slow, quick = subscribers_of(engine).prompt
    assert slow.seconds >= 5 * 0.002
    assert quick.seconds > 0
    slow.seconds = 1000.0  # as if the first run had been long
    engine.run(range(1))
    assert 0.002 <= slow.seconds < 1000


def test_a_subscriber_that_its_filter_holds_back_takes_no_time() -> None:
    engine = make_engine()
    engine.add_event_handler(EVENT(every=100), do_nothing)
    engine.run(range(5))
    assert subscribers_of(engine).prompt[0].seconds == 0


def test_the_event_of_a_list_is_the_registered_one_even_if_it_was_first_used_with_a_filter() -> None:
    engine, last = make_engine(), []
    engine.add_event_handler(EVENT(every=1), do_nothing)
    engine.add_event_handler(EVENT(every=2), lambda engine: last.append(engine.last_event_name))
    engine.run(range(2))
    assert last[0] is EVENT


def test_keywords_that_an_event_left_with_a_handler_are_given_to_it_from_then_on() -> None:
    engine, got = make_engine(), []
    engine.add_event_handler(Events.TERMINATE_SINGLE_EPOCH, lambda *_, **keywords: got.append(keywords))
    engine._fire_event(Events.TERMINATE_SINGLE_EPOCH)
    engine._fire_event(Events.TERMINATE_SINGLE_EPOCH, iter_counter=3)
    engine._fire_event(Events.TERMINATE_SINGLE_EPOCH)
    assert got == [{}, {"iter_counter": 3}, {"iter_counter": 3}]
