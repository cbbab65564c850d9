"""terminate(), terminate_epoch() and interrupt() from every event, with and without a run after them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ignite.engine import Engine as IgniteEngine

from camshaft.engine import Engine, Events
from tests.conformance.recorder import Recorder, compare

# Those that a plain run of 3 epochs over data that is shorter than an epoch fires.
FIRED = [
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.GET_BATCH_STARTED,
    Events.DATALOADER_STOP_ITERATION,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.COMPLETED,
]
REQUESTS: dict[str, Callable[[Any], None]] = {
    "terminate": lambda engine: engine.terminate(),
    "terminate, skip COMPLETED": lambda engine: engine.terminate(skip_completed=True),
    "terminate_epoch": lambda engine: engine.terminate_epoch(),
    "terminate_epoch, skip EPOCH_COMPLETED": lambda engine: engine.terminate_epoch(skip_epoch_completed=True),
    "interrupt": lambda engine: engine.interrupt(),
    "interrupt and terminate": lambda engine: (engine.interrupt(), engine.terminate()),
    "interrupt and terminate_epoch": lambda engine: (engine.interrupt(), engine.terminate_epoch()),
    "terminate and terminate_epoch": lambda engine: (engine.terminate(), engine.terminate_epoch()),
    "should_terminate set": lambda engine: setattr(engine, "should_terminate", True),
    "should_terminate_single_epoch set": lambda engine: setattr(engine, "should_terminate_single_epoch", True),
    "should_interrupt set": lambda engine: setattr(engine, "should_interrupt", True),
}


def at_occurrence(number: int, engine: Any, event: Any, action: Callable[[Any], Any]) -> None:
    """Do ``action`` when ``event`` fires for the ``number``-th time."""
    occurrences = iter(range(1, 1000))
    engine.add_event_handler(event, lambda engine, *_, **__: action(engine) if next(occurrences) == number else None)


@pytest.mark.parametrize("occurrence", [1, 2, 4])
@pytest.mark.parametrize("event", FIRED, ids=lambda event: event.name)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_from_any_event_ends_or_pauses_the_run_where_ignite_does(request_, event, occurrence) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        at_occurrence(occurrence, engine, event, request_)
        for _ in range(3):
            recorder.run(engine, range(2), max_epochs=3, epoch_length=3)

    compare(program)


@pytest.mark.parametrize("later", [Events.TERMINATE, Events.TERMINATE_SINGLE_EPOCH, Events.INTERRUPT])
@pytest.mark.parametrize("first", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("second", REQUESTS.values(), ids=REQUESTS)
def test_a_request_from_a_handler_of_the_end_that_another_one_brought(first, second, later) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        at_occurrence(4, engine, Events.ITERATION_COMPLETED, first)
        at_occurrence(1, engine, later, second)
        for _ in range(3):
            recorder.run(engine, range(3), max_epochs=3)

    compare(program)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_from_the_step(request_) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine(lambda engine, batch: request_(engine) if batch == 1 else batch)
        for _ in range(3):
            recorder.run(engine, range(3), max_epochs=2)

    compare(program)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_from_the_data(request_) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()

        class Data:
            def __len__(self) -> int:
                return 3

            def __iter__(self):
                yield 0
                request_(engine)
                yield 1
                yield 2

        for _ in range(3):
            recorder.run(engine, Data(), max_epochs=2)

    compare(program)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("event", [Events.ITERATION_STARTED, Events.ITERATION_COMPLETED], ids=lambda event: event.name)
def test_a_request_in_a_run_without_data(request_, event) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        at_occurrence(2, engine, event, request_)
        for _ in range(3):
            recorder.run(engine, max_epochs=2, epoch_length=3)

    compare(program)


@pytest.mark.parametrize("event", FIRED, ids=lambda event: event.name)
def test_a_run_interrupted_at_every_occurrence_of_an_event(event) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.add_event_handler(event, lambda: engine.interrupt())
        for _ in range(12):
            recorder.run(engine, range(2), max_epochs=2, epoch_length=3)

    compare(program)


def test_an_interrupted_run_goes_on_with_a_larger_max_epochs() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        at_occurrence(4, engine, Events.ITERATION_COMPLETED, lambda engine: engine.interrupt())
        recorder.run(engine, range(3), max_epochs=2)
        recorder.run(engine, range(3), max_epochs=4)

    compare(program)


def test_an_interrupted_run_keeps_its_data_whatever_it_is_given_to_go_on_with() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        at_occurrence(2, engine, Events.ITERATION_COMPLETED, lambda engine: engine.interrupt())
        recorder.run(engine, [0, 1, 2], max_epochs=2)
        recorder.run(engine, [10, 11, 12], max_epochs=2)

    assert any("('batch', 2)" in str(entry) for entry in compare(program))


def test_an_interrupted_run_goes_on_with_data_that_was_set_meanwhile() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        at_occurrence(2, engine, Events.ITERATION_COMPLETED, lambda engine: engine.interrupt())
        recorder.run(engine, [0, 1, 2], max_epochs=2)
        engine.set_data([10, 11, 12])
        recorder.run(engine, max_epochs=2)

    compare(program)


def test_interrupting_is_refused_where_it_is_switched_off() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.interrupt_resume_enabled = False
        at_occurrence(2, engine, Events.ITERATION_COMPLETED, lambda engine: engine.interrupt())
        recorder.run(engine, range(3), max_epochs=2)

    compare(program)


@pytest.mark.parametrize("request_", list(REQUESTS.values())[:4], ids=list(REQUESTS)[:4])
def test_a_request_where_interrupting_is_switched_off(request_) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.interrupt_resume_enabled = False
        at_occurrence(4, engine, Events.ITERATION_COMPLETED, request_)
        for _ in range(3):
            recorder.run(engine, range(3), max_epochs=3)

    compare(program)


@pytest.mark.parametrize("engine_class", [IgniteEngine, Engine])
def test_two_engines_take_turns_within_an_event_loop(engine_class) -> None:
    seen = []

    async def run_in_turns(name: str) -> None:
        engine = engine_class(lambda engine, batch: seen.append(f"{name}{batch}"))
        engine.add_event_handler(Events.ITERATION_COMPLETED, engine.interrupt)
        while engine.state.iteration < 3:
            engine.run(range(3))
            await asyncio.sleep(0)
        assert engine.run(range(3)).times["COMPLETED"]  # not before

    async def main() -> None:
        await asyncio.gather(run_in_turns("a"), run_in_turns("b"))

    asyncio.run(main())
    assert seen == ["a0", "b0", "a1", "b1", "a2", "b2"]
