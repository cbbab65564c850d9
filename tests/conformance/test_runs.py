"""Runs after runs: finished, terminated, failed and loaded engines, and the arguments that run() refuses."""

from __future__ import annotations

from typing import Any

import pytest

from camshaft.engine import Events
from tests.conformance.recorder import Recorder, compare

ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"max_epochs": 1},
    {"max_epochs": 2},
    {"max_epochs": 5},
    {"max_epochs": 0},
    {"max_iters": 0},
    {"max_iters": 4},
    {"max_iters": 9},
    {"max_epochs": 2, "max_iters": 4},
    {"epoch_length": 2},
    {"epoch_length": 0},
    {"max_epochs": 4, "epoch_length": 3},
]


@pytest.mark.parametrize("second", ARGUMENTS, ids=str)
@pytest.mark.parametrize("first", ARGUMENTS, ids=str)
def test_one_run_after_another(first, second) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        recorder.run(engine, range(3), **first)
        recorder.run(engine, range(3), **second)
        recorder.run(engine, **second)

    compare(program)


@pytest.mark.parametrize("reset", ["max_epochs", "max_iters", "epoch_length", "all"])
@pytest.mark.parametrize("stopped_at", [None, 4])
def test_a_run_after_its_limits_were_reset(reset, stopped_at) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        if stopped_at is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=stopped_at), lambda: engine.interrupt())
        recorder.run(engine, range(3), max_epochs=2)
        for name in ("max_epochs", "max_iters", "epoch_length") if reset == "all" else (reset,):
            setattr(engine.state, name, None)
        recorder.run(engine, range(4), max_iters=7)
        recorder.run(engine, range(4), max_epochs=3)

    compare(program)


STATES: list[Any] = [
    {"iteration": 4, "epoch_length": 3, "max_epochs": 4},
    {"iteration": 6, "epoch_length": 3, "max_epochs": 4},
    {"iteration": 0, "epoch_length": None, "max_epochs": None},
    {"iteration": 0, "epoch_length": 3, "max_iters": 10},
    {"iteration": 5, "epoch_length": 3, "max_iters": 10},
    {"epoch": 2, "epoch_length": 3, "max_epochs": 4},
    {"epoch": 0, "epoch_length": 3, "max_epochs": None},
    {"epoch": 2, "epoch_length": None, "max_epochs": 4},
    {"epoch": 2, "iteration": 6, "epoch_length": 3, "max_epochs": 4},
    {"iteration": 4, "epoch_length": 0, "max_epochs": 4},
    {"iteration": 4, "epoch_length": 3},
    {"iteration": 4, "epoch_length": 3, "max_epochs": 4, "max_iters": 10},
    {"epoch_length": 3, "max_epochs": 4},
    {"iteration": 4, "max_epochs": 4},
    {"iteration": 9, "epoch_length": 3, "max_epochs": 2},
    [("iteration", 4)],
]


@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize("limit", [{}, {"max_epochs": 6}, {"max_iters": 12}], ids=str)
def test_a_loaded_state_goes_on_or_is_refused(state, limit) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        with recorder.outcome("loading", engine):
            engine.load_state_dict(state)
        recorder.run(engine, range(3), **limit)

    compare(program)


@pytest.mark.parametrize("event", list(Events)[:8], ids=lambda event: event.name)
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_iters": 8}], ids=str)
def test_the_state_saved_at_any_event_and_loaded_into_another_engine(event, limit) -> None:
    def program(recorder: Recorder) -> None:
        engine, other = recorder.engine(), recorder.engine(name="other ")
        saved: list[Any] = []

        @engine.on(event)
        def save(engine: Any, *_: Any) -> None:
            saved.append(dict(engine.state_dict()))

        recorder.run(engine, range(3), **limit)
        recorder.note(saved)
        if event not in (Events.COMPLETED, Events.EXCEPTION_RAISED):
            other.load_state_dict(saved[min(1, len(saved) - 1)])
            recorder.run(other, range(3))

    compare(program)


def test_keys_of_the_user_are_saved_and_loaded() -> None:
    def program(recorder: Recorder) -> None:
        engine, other = recorder.engine(), recorder.engine()
        engine.state_dict_user_keys.append("alpha")
        other.state_dict_user_keys.append("alpha")
        engine.state.alpha = 0.5
        recorder.run(engine, range(3))
        recorder.note(list(engine.state_dict().items()))
        with recorder.outcome("loading"):
            other.load_state_dict(engine.state_dict())
        recorder.note(other.state.alpha)
        with recorder.outcome("loading without the key"):
            other.load_state_dict({"iteration": 4, "epoch_length": 3, "max_epochs": 4})

    compare(program)


def test_a_state_set_by_hand_is_where_the_run_begins() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.state.max_epochs, engine.state.epoch_length = 4, 3
        engine.state.iteration, engine.state.epoch = 7, 2
        recorder.run(engine, range(3))

    compare(program)


def test_a_state_loaded_by_a_handler_of_the_start_is_where_the_run_begins() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.add_event_handler(
            Events.STARTED,
            lambda engine: engine.load_state_dict({"iteration": 4, "epoch_length": 3, "max_epochs": 4}),
        )
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=3), lambda engine: engine.interrupt())
        for _ in range(4):
            recorder.run(engine, range(3), max_epochs=4)

    compare(program)


def test_an_engine_made_by_a_class_of_the_users_own() -> None:
    def program(recorder: Recorder) -> None:
        class Loud(recorder.engine_class):  # type: ignore[misc, name-defined]
            def _fire_event(self, event_name: Any, *args: Any, **kwargs: Any) -> None:
                recorder.note(f"fires {event_name.name}")
                super()._fire_event(event_name, *args, **kwargs)
                recorder.note("fired", self)

        recorder.engine_class = Loud
        engine = recorder.engine()
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: engine.terminate_epoch())
        recorder.run(engine, range(3), max_epochs=2)

    compare(program)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "ERROR"])
def test_the_same_is_logged(level, caplog) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: engine.interrupt())
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: engine.terminate())
        caplog.clear()
        with caplog.at_level(level):
            recorder.run(engine, range(3), max_epochs=2)
            recorder.run(engine, range(3), max_epochs=2)
        recorder.note(
            [(entry.name, entry.levelname, entry.getMessage().split(" Time taken")[0]) for entry in caplog.records]
        )

    compare(program)
