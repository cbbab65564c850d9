from __future__ import annotations

import itertools
from typing import Any

import pytest
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import Average

from camshaft.engine import Engine, Events, Phase
from camshaft.engine.phases import events_in, subscribe, subscribing

BOTH = pytest.mark.parametrize("engine_class", [Engine, IgniteEngine], ids=["camshaft", "ignite"])


def test_the_phases_are_those_of_the_design_in_its_order() -> None:
    assert [phase.name for phase in Phase] == [
        "CHECK", "PREPARE", "RESTORE", "MEASURE", "EVALUATE", "USER", "DECIDE", "REPORT", "SAVE"
    ]  # fmt: skip


@BOTH
def test_handlers_fire_in_the_order_of_their_phases_whatever_the_order_of_attachment(engine_class) -> None:
    phases = [Phase.PREPARE, Phase.MEASURE, Phase.USER, Phase.DECIDE, Phase.SAVE]
    for order in itertools.permutations(phases):
        engine, fired = engine_class(lambda engine, batch: None), []
        for phase in order:
            subscribe(engine, Events.EPOCH_COMPLETED, fired.append, phase, phase)
        engine.run([0])
        assert fired == phases


@BOTH
def test_handlers_of_one_phase_fire_in_the_order_of_attachment(engine_class) -> None:
    engine, fired = engine_class(lambda engine, batch: None), []
    for number, phase in enumerate((Phase.REPORT, Phase.MEASURE, Phase.REPORT, Phase.MEASURE)):
        subscribe(engine, Events.STARTED, fired.append, phase, number)
    engine.run([0])
    assert fired == [1, 3, 0, 2]


def fired_with_plain_functions(engine_class: type[IgniteEngine]) -> list[str]:
    engine, fired = engine_class(lambda engine, batch: None), []
    engine.add_event_handler(Events.STARTED, fired.append, "plain 1")
    subscribe(engine, Events.STARTED, fired.append, Phase.SAVE, "save")
    engine.add_event_handler(Events.STARTED, fired.append, "plain 2")
    subscribe(engine, Events.STARTED, fired.append, Phase.PREPARE, "prepare")
    engine.run([0])
    return fired


def test_plain_functions_are_in_the_phase_of_users_on_our_engine() -> None:
    assert fired_with_plain_functions(Engine) == ["prepare", "plain 1", "plain 2", "save"]


def test_plain_functions_stay_where_ignite_puts_them_on_its_engine() -> None:
    assert fired_with_plain_functions(IgniteEngine) == ["plain 1", "prepare", "save", "plain 2"]


@BOTH
def test_whatever_is_attached_within_subscribing_is_in_its_phase(engine_class) -> None:
    engine, seen = engine_class(lambda engine, batch: float(batch)), []
    subscribe(engine, Events.EPOCH_COMPLETED, lambda: seen.append(engine.state.metrics["mean"]), Phase.REPORT)
    with subscribing(engine, Phase.MEASURE):
        Average().attach(engine, "mean")
    engine.run([1, 2, 3])
    assert seen == [2.0]


def test_the_phase_of_users_is_back_after_subscribing_even_if_that_failed() -> None:
    engine: Any = Engine(lambda engine, batch: None)
    with pytest.raises(ZeroDivisionError), subscribing(engine, Phase.SAVE):
        1 / 0  # noqa: B018
    assert engine._subscribing_phase is Phase.USER


@BOTH
def test_the_order_holds_after_a_handler_is_removed(engine_class) -> None:
    engine, fired = engine_class(lambda engine, batch: None), []

    def removed() -> None:
        fired.append("removed")

    subscribe(engine, Events.STARTED, fired.append, Phase.SAVE, "save")
    subscribe(engine, Events.STARTED, removed, Phase.MEASURE)
    engine.remove_event_handler(removed, Events.STARTED)
    subscribe(engine, Events.STARTED, fired.append, Phase.DECIDE, "decide")
    engine.run([0])
    assert fired == ["decide", "save"]


@BOTH
def test_a_subscription_to_several_events_with_filters_keeps_each(engine_class) -> None:
    engine, fired = engine_class(lambda engine, batch: None), []
    events = Events.STARTED | Events.ITERATION_COMPLETED(every=2)
    subscribe(engine, events, lambda engine: fired.append(engine.state.iteration), Phase.REPORT)
    engine.run(range(4))
    assert fired == [0, 2, 4]
    assert [event.name for event in events_in(events)] == ["STARTED", "ITERATION_COMPLETED"]
    assert events_in(Events.STARTED) == [Events.STARTED]
