"""Exceptions from the step, handlers and data, with and without handlers of EXCEPTION_RAISED."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from camshaft.engine import Events
from tests.conformance.recorder import Recorder, compare

WHERE = [event for event in Events if event is not Events.EXCEPTION_RAISED]
ERRORS = [ValueError("a value"), StopIteration("the end"), KeyError("a key"), AssertionError()]


def provoke_all_events(engine: Any) -> None:
    """Let a run of range(2) with epochs of 3 fire even those events that only requests bring."""
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: engine.interrupt())
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: engine.terminate_epoch())
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=9), lambda: engine.terminate())


@pytest.mark.parametrize("handled", [False, True], ids=["uncaught", "handled"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("event", WHERE, ids=lambda event: event.name)
def test_an_error_in_a_handler_of_any_event(event, error, handled) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        provoke_all_events(engine)
        occurrences = iter(range(1, 100))

        @engine.on(event)
        def fail(*_: Any, **__: Any) -> None:
            if next(occurrences) in (1, 3):
                raise error

        if handled:
            engine.add_event_handler(
                Events.EXCEPTION_RAISED, lambda engine, error: recorder.note(("told", repr(error)), engine)
            )
        for _ in range(4):
            recorder.run(engine, range(2), max_epochs=4, epoch_length=3)

    compare(program)


def _from_step(engine: Any, fail: Callable[[], None]) -> Any:
    engine.add_event_handler(Events.COMPLETED, lambda: None)
    step = engine._process_function

    def failing_step(engine: Any, batch: Any) -> Any:
        fail()
        return step(engine, batch)

    engine._process_function = failing_step
    return range(3)


def _from_data(engine: Any, fail: Callable[[], None]) -> Any:
    class Data:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[int]:
            for number in range(3):
                fail()
                yield number

    return Data()


def _from_beginning_of_data(engine: Any, fail: Callable[[], None]) -> Any:
    class Data:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[int]:
            fail()
            return iter(range(3))

    return Data()


@pytest.mark.parametrize("handled", [False, True], ids=["uncaught", "handled"])
@pytest.mark.parametrize("error", [*ERRORS, GeneratorExit("closed")], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("source", [_from_step, _from_data, _from_beginning_of_data])
@pytest.mark.parametrize("when", [1, 2, 5])
def test_an_error_in_the_step_or_in_the_data(source, error, handled, when) -> None:
    if isinstance(error, GeneratorExit):
        handled = False  # see test_differences.py

    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        calls = iter(range(1, 100))

        def fail() -> None:
            if next(calls) == when:
                raise error

        data = source(engine, fail)
        if handled:
            engine.add_event_handler(
                Events.EXCEPTION_RAISED, lambda engine, error: recorder.note(("told", repr(error)), engine)
            )
        for _ in range(3):
            recorder.run(engine, data, max_epochs=3)

    compare(program)


def test_the_same_error_raised_again_is_handled_again() -> None:
    error = ValueError("the very same")

    def step(engine: Any, batch: Any) -> None:
        raise error

    def program(recorder: Recorder) -> None:
        engine = recorder.engine(step)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: recorder.note(repr(error), engine))
        recorder.run(engine, range(3), max_epochs=3)

    assert sum(entry[0] == "ValueError('the very same')" for entry in compare(program)) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda error: type(error).__name__)
def test_what_is_no_exception_goes_through_where_nothing_handles_it(error) -> None:
    def step(engine: Any, batch: Any) -> None:
        if engine.state.iteration == 2:
            raise error

    def program(recorder: Recorder) -> None:
        engine = recorder.engine(step)
        recorder.run(engine, range(3), max_epochs=2)
        recorder.run(engine, range(3), max_epochs=2)

    compare(program)


@pytest.mark.parametrize("request_", ["terminate", "terminate_epoch", "interrupt"])
def test_a_request_from_the_handler_of_an_error(request_) -> None:
    def step(engine: Any, batch: Any) -> None:
        if engine.state.iteration in (2, 5):
            raise ValueError(batch)

    def program(recorder: Recorder) -> None:
        engine = recorder.engine(step)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: getattr(engine, request_)())
        for _ in range(3):
            recorder.run(engine, range(3), max_epochs=3)

    compare(program)


def test_handlers_of_errors_may_take_less_than_they_are_offered() -> None:
    def step(engine: Any, batch: Any) -> None:
        raise ValueError("a value")

    def program(recorder: Recorder) -> None:
        engine = recorder.engine(step)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: recorder.note(("error alone", repr(error))))
        engine.add_event_handler(
            Events.EXCEPTION_RAISED,
            lambda engine, error, extra, key: recorder.note((repr(error), extra, key)),
            1,
            key=2,
        )
        with recorder.outcome("none at all"):
            engine.add_event_handler(Events.EXCEPTION_RAISED, lambda: None)
        recorder.run(engine, [0])

    compare(program)
