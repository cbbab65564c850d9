"""What is Camshaft's own of the engine; what it shares with Ignite's is compared in tests/conformance."""

from __future__ import annotations

import gc
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from ignite.engine import Engine as IgniteEngine
from ignite.handlers import BasicTimeProfiler, HandlersTimeProfiler

from camshaft.engine import Engine, EventEnum, Events, StepEvents
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers import OptimizerStep, TimeLimit


def do_nothing(engine: Any, batch: Any) -> None:
    pass


def failing_step(engine: Any, batch: Any) -> None:
    raise ValueError("in the step")


def functions_shown(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


# ------------------------------------------------------------------------------------------------ tracebacks


def test_between_run_and_the_step_stand_three_frames_each_once() -> None:
    engine = Engine(failing_step)
    with pytest.raises(ValueError, match="in the step") as caught:
        engine.run([0])
    shown = functions_shown(caught.value)
    assert shown[1:] == ["run", "_internal_run", "_loop", "_epoch", "failing_step"]
    assert caught.value.__context__ is None


def test_between_run_and_a_step_that_handlers_wrap_stand_four_frames() -> None:
    model = torch.nn.Linear(1, 1)
    engine = Engine(failing_step).attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
    with pytest.raises(ValueError, match="in the step") as caught:
        engine.run([0])
    shown = functions_shown(caught.value)
    assert shown[1:] == ["run", "_internal_run", "_loop", "_epoch", "__call__", "failing_step"]


def test_between_run_and_the_step_of_a_resumed_run_stand_no_more_frames() -> None:
    engine = Engine(failing_step)
    engine.load_state_dict({"iteration": 2, "epoch_length": 2, "max_epochs": 1})
    with pytest.raises(ValueError, match="in the step") as caught:
        engine.run([0, 1], max_epochs=2)
    assert functions_shown(caught.value)[1:] == ["run", "_internal_run", "_loop", "_epoch", "failing_step"]


def test_between_run_and_a_handler_of_an_iteration_stand_four_frames() -> None:
    engine = Engine(do_nothing)

    @engine.on(Events.ITERATION_COMPLETED(every=1))
    def failing_handler() -> None:
        raise ValueError("in the handler")

    with pytest.raises(ValueError, match="in the handler") as caught:
        engine.run([0])
    assert functions_shown(caught.value)[1:] == ["run", "_internal_run", "_loop", "_epoch", "fire", "failing_handler"]


# ------------------------------------------------------------------------------------------------ attach


class NamesItself:
    """Has what attach() needs, and belongs to nobody."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, lambda engine: engine.state.metrics.update(attached=True))


def test_a_step_that_does_not_take_an_engine_and_a_batch_is_refused_in_ignites_words_and_told_what_it_takes() -> None:
    with pytest.raises(
        ValueError, match=r"'process_function': takes parameters \['batch'\].* A step takes \(engine, batch"
    ):
        Engine(lambda batch: None)  # type: ignore[misc, arg-type]


def test_attach_takes_several_handlers_and_returns_the_engine() -> None:
    engine = Engine(do_nothing)
    limit = TimeLimit(60)
    assert engine.attach(limit, NamesItself()) is engine
    assert engine.handlers == [limit]
    assert engine.run([0]).metrics == {"attached": True}


@pytest.mark.parametrize("wrong", [print, NamesItself, None, "TimeLimit"], ids=str)
def test_attach_refuses_what_is_no_handler_and_attaches_nothing_then(wrong) -> None:
    engine = Engine(do_nothing)
    with pytest.raises(TypeError, match=r"attach\(\) takes handlers, objects with a method attach\(engine\), but got "):
        engine.attach(TimeLimit(60), wrong)
    assert engine.handlers == []


# ------------------------------------------------------------------------------------------------ running


def test_a_run_within_itself_is_refused_and_the_run_around_it_can_be_handled() -> None:
    engine, told = Engine(lambda engine, batch: engine.run([0])), []
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: told.append(str(error)))
    engine.run([0, 1], max_epochs=2)
    assert len(told) == 2
    assert all(
        message.startswith("run() was called by a handler or by the step of the same engine") for message in told
    )


def test_another_run_starts_after_one_that_failed_at_its_very_start() -> None:
    engine = Engine(do_nothing)
    with engine.add_event_handler(Events.STARTED, failing_step, None), pytest.raises(ValueError, match="in the step"):
        engine.run([0, 1])
    assert engine.run([0, 1]).iteration == 2


def test_an_interrupted_run_whose_state_a_handler_loaded_goes_on_in_its_epoch() -> None:
    batches: list[int] = []
    engine = Engine(lambda engine, batch: batches.append(batch))
    engine.add_event_handler(
        Events.STARTED, lambda: engine.load_state_dict({"iteration": 3, "epoch_length": 3, "max_epochs": 2})
    )
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: engine.interrupt())
    engine.run(range(3), max_epochs=2)
    engine.run(range(3), max_epochs=2)
    assert batches == [0, 1, 2]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["completed", "interrupted and completed", "failed", "handled an error"])
def test_an_engine_is_freed_by_counting_references_alone(how) -> None:
    class Listener:
        def method(self, engine: Any) -> None:
            pass

    with without_garbage_collection():
        engine = Engine(failing_step if how in ("failed", "handled an error") else do_nothing)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), do_nothing, None)
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda engine, count: True), lambda: None)
        engine.add_event_handler(Events.STARTED | Events.COMPLETED, Listener().method)
        engine.add_event_handler(StepEvents.FORWARD_COMPLETED, Listener().method)
        engine.attach(TimeLimit(60))
        if how == "handled an error":
            engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
        if how == "interrupted and completed":
            engine.add_event_handler(Events.ITERATION_STARTED(once=1), lambda engine: engine.interrupt())
            engine.run(range(3))
        try:
            engine.run(range(3))
        except ValueError:
            assert how == "failed"
        alive = weakref.ref(engine)
        del engine
        assert alive() is None


# ------------------------------------------------------------------------------------------------ events


def test_a_subclass_that_fires_events_in_its_own_way_sees_them_all() -> None:
    class Counting(Engine):
        fired = 0

        def _fire_event(self, *args: Any, **kwargs: Any) -> None:
            self.fired += 1
            super()._fire_event(*args, **kwargs)

    engine = Counting(do_nothing)
    engine.run(range(3))
    assert engine.fired == 2 + 2 + 3 * 4  # of the run, of the epoch, of each iteration


def test_a_moment_of_the_step_brings_its_training_step_when_someone_listens_to_it() -> None:
    engine, moments = Engine(do_nothing), []
    assert not isinstance(engine._process_function, TrainingStep)
    for event in (StepEvents.FORWARD_STARTED, StepEvents.FORWARD_COMPLETED(every=2)):
        engine.add_event_handler(event, lambda engine, name: moments.append((name, engine.state.iteration)), event.name)
    assert isinstance(engine._process_function, TrainingStep)
    engine.run(range(3))
    assert moments == [
        ("FORWARD_STARTED", 1), ("FORWARD_STARTED", 2), ("FORWARD_COMPLETED", 2), ("FORWARD_STARTED", 3)
    ]  # fmt: skip


def test_a_moment_of_the_step_is_the_last_event_while_it_fires() -> None:
    engine, last = Engine(do_nothing), []
    engine.add_event_handler(StepEvents.FORWARD_STARTED, lambda engine: last.append(engine.last_event_name))
    engine.run([0])
    assert last == [StepEvents.FORWARD_STARTED]


def test_an_event_of_the_users_own_with_the_name_of_a_moment_of_the_step_leaves_the_step_alone() -> None:
    class Own(EventEnum):
        FORWARD_STARTED = "mine"

    engine, fired = Engine(lambda engine, batch: engine.fire_event(Own.FORWARD_STARTED)), []
    engine.register_events(*Own)
    engine.add_event_handler(Own.FORWARD_STARTED, lambda: fired.append("once"))
    engine.run([0])
    assert fired == ["once"]


# ------------------------------------------------------------------------------------------------ Ignite's profilers


@pytest.mark.parametrize("profiler_class", [BasicTimeProfiler, HandlersTimeProfiler])
def test_ignites_profilers_measure_the_same_as_on_ignites_engine(profiler_class, capsys) -> None:
    def measured(engine_class: type[IgniteEngine]) -> tuple[list[Any], Any]:
        engine, ran = engine_class(do_nothing), []
        engine.add_event_handler(Events.STARTED | Events.COMPLETED, lambda engine: ran.append("end"))
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda: ran.append("iteration"))
        profiler = profiler_class()
        profiler.attach(engine)
        engine.run(range(4), max_epochs=2)
        engine.state.max_epochs = None
        engine.run(range(4), max_epochs=1)
        results = profiler.get_results()
        profiler.print_results(results)
        shape = [row[0] for row in results] if isinstance(results, list) else sorted(results)
        return ran, shape

    ours, ignites = measured(Engine), measured(IgniteEngine)
    assert ours == ignites
    assert ours[0].count("iteration") == 6


# ------------------------------------------------------------------------------------------------ cost


def calls_of(function: Callable[[], Any]) -> Counter[str]:
    """How often each Python function is called meanwhile: what takes time, on a machine as busy as may be."""
    counted: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            counted[f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"] += 1

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted


def calls_of_an_iteration(engine: Engine, data: Callable[[int], Any] = range) -> Counter[str]:
    """What two iterations call beyond what one calls."""
    engine.run(data(2))
    short, long = calls_of(lambda: engine.run(data(1))), calls_of(lambda: engine.run(data(2)))
    long.subtract(short)
    return +long


def test_an_iteration_calls_the_step_and_nothing_else() -> None:
    assert calls_of_an_iteration(Engine(do_nothing)) == {"test_engine.do_nothing": 1}


def test_an_iteration_with_a_handler_calls_one_function_more_than_the_handler() -> None:
    engine = Engine(do_nothing)

    @engine.on(Events.ITERATION_COMPLETED)
    def handler() -> None:
        pass

    assert calls_of_an_iteration(engine) == {
        "test_engine.do_nothing": 1,
        "subscribers.fire": 1,
        "test_engine.handler": 1,
    }


def test_handlers_whose_turn_has_not_come_are_not_called() -> None:
    engine = Engine(do_nothing)
    for _ in range(10):
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=100), lambda: None)
    assert calls_of_an_iteration(engine) == {"test_engine.do_nothing": 1, "subscribers.fire": 1}


def test_the_optimizer_step_calls_a_dozen_functions_beside_torchs() -> None:
    model = torch.nn.Linear(1, 1)
    engine = Engine(lambda engine, batch: model(batch).mean())
    engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
    calls = calls_of_an_iteration(engine, lambda number: [torch.ones(1, 1)] * number)
    ours = {name: count for name, count in calls.items() if name.startswith(("training_step.", "optimizer_step."))}
    assert ours["optimizer_step.update"] == 1
    assert sum(ours.values()) <= 12


def test_a_run_of_one_iteration_calls_no_more_functions_than_ignites() -> None:
    ours, theirs = Engine(do_nothing), IgniteEngine(do_nothing)
    assert calls_of(lambda: ours.run([0])).total() <= calls_of(lambda: theirs.run([0])).total()
