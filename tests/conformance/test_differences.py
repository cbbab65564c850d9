"""Where our engine differs from Ignite's, and what of Ignite's surprising behaviour it keeps.

Each difference is asserted of both engines: when Ignite mends one of these, a test here says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ignite.engine import Engine as IgniteEngine
from ignite.engine import EventEnum

from camshaft.engine import Engine, Events

BOTH = pytest.mark.parametrize("engine_class", [IgniteEngine, Engine], ids=["ignite", "camshaft"])


def failing_at(iteration: int, error: BaseException) -> Callable[[Any, Any], None]:
    def step(engine: Any, batch: Any) -> None:
        if engine.state.iteration == iteration:
            raise error

    return step


# ---------------------------------------------------------------------------------------------- differences


def test_after_an_uncaught_exception_the_next_run_goes_on_where_ignites_does_nothing() -> None:
    def second_run(engine_class: type[IgniteEngine]) -> Any:
        engine = engine_class(failing_at(2, ValueError("once")))
        with pytest.raises(ValueError, match="once"):
            engine.run(range(3), max_epochs=3)
        state = engine.run(range(3), max_epochs=3)
        return state and (state.epoch, state.iteration)

    assert second_run(IgniteEngine) is None
    assert second_run(Engine) == (3, 6)


def test_it_goes_on_as_ignites_second_next_run_does() -> None:
    engine = IgniteEngine(failing_at(2, ValueError("once")))
    with pytest.raises(ValueError, match="once"):
        engine.run(range(3), max_epochs=3)
    assert engine.run(range(3), max_epochs=3) is None
    state = engine.run(range(3), max_epochs=3)
    assert (state.epoch, state.iteration) == (3, 6)


def test_an_exception_is_raised_after_the_handlers_of_exceptions_are_removed_where_ignite_loses_it() -> None:
    def run_without_the_handler(engine_class: type[IgniteEngine]) -> None:
        engine = engine_class(failing_at(1, ValueError("not lost")))
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None).remove()
        engine.run([0])

    run_without_the_handler(IgniteEngine)
    with pytest.raises(ValueError, match="not lost"):
        run_without_the_handler(Engine)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=lambda error: type(error).__name__)
def test_what_ends_the_program_goes_through_handlers_of_exceptions_where_ignite_swallows_it(error) -> None:
    def run_with_a_handler(engine_class: type[IgniteEngine]) -> list[BaseException]:
        engine = engine_class(failing_at(1, error))
        engine.add_event_handler(Events.EXCEPTION_RAISED, told.append)
        engine.run([0])
        return told

    told: list[BaseException] = []
    assert run_with_a_handler(IgniteEngine) == [error]
    with pytest.raises(type(error)):
        run_with_a_handler(Engine)
    assert told == [error, error], "each engine told its handler once"


def test_a_handler_that_raises_the_exception_again_is_called_once_where_ignite_calls_it_twice() -> None:
    def calls(engine_class: type[IgniteEngine]) -> int:
        engine, told = engine_class(failing_at(1, ValueError("again"))), []

        @engine.on(Events.EXCEPTION_RAISED)
        def raise_again(error: Exception) -> None:
            told.append(error)
            raise error

        with pytest.raises(ValueError, match="again"):
            engine.run([0])
        return len(told)

    assert calls(IgniteEngine) == 2
    assert calls(Engine) == 1


def test_an_exception_raised_by_a_handler_of_exceptions_is_raised_where_ignite_tells_that_handler_of_it() -> None:
    def told_of(engine_class: type[IgniteEngine]) -> list[str]:
        engine, told = engine_class(failing_at(1, ValueError("first"))), []

        @engine.on(Events.EXCEPTION_RAISED)
        def raise_another(error: Exception) -> None:
            told.append(str(error))
            if str(error) == "first":
                raise RuntimeError("second") from error

        try:
            engine.run([0])
        except RuntimeError as error:
            told.append(f"raised {error}")
        return told

    assert told_of(IgniteEngine) == ["first", "second"]
    assert told_of(Engine) == ["first", "raised second"]


def test_dropping_an_interrupted_run_tells_no_handler_where_ignite_tells_of_generator_exit() -> None:
    def told_of(engine_class: type[IgniteEngine]) -> list[type[BaseException]]:
        engine, told = engine_class(lambda engine, batch: engine.interrupt()), []
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: told.append(type(error)))
        engine.run(range(3))
        engine._internal_run_generator = None
        return told

    assert told_of(IgniteEngine) == [GeneratorExit]
    assert told_of(Engine) == []


def test_a_loaded_run_that_is_finished_stays_so_where_ignite_starts_it_again(caplog) -> None:
    def run_loaded(engine_class: type[IgniteEngine]) -> tuple[int, int]:
        engine = engine_class(lambda engine, batch: None)
        engine.load_state_dict({"iteration": 6, "epoch_length": 3, "max_epochs": 2})
        state = engine.run(range(3))
        return state.epoch, state.iteration

    assert run_loaded(IgniteEngine) == (1, 3)
    assert "finished (" not in caplog.text
    assert run_loaded(Engine) == (2, 6)
    assert "The loaded run is finished (epoch 2, iteration 6): nothing to do." in caplog.text


@BOTH
def test_a_loaded_run_that_is_finished_goes_on_with_a_larger_limit(engine_class) -> None:
    engine = engine_class(lambda engine, batch: None)
    engine.load_state_dict({"iteration": 6, "epoch_length": 3, "max_epochs": 2})
    state = engine.run(range(3), max_epochs=4)
    assert (state.epoch, state.iteration) == (4, 12)


def cut_short_then_saved(
    engine_class: type[IgniteEngine], save_at: int, cut_at: int = 2
) -> tuple[IgniteEngine, dict[str, Any]]:
    """An engine of 3 epochs of 4 iterations, the first cut short, and its state dict at an iteration."""
    saved: dict[str, Any] = {}
    engine = engine_class(lambda engine, batch: None)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=cut_at), lambda engine: engine.terminate_epoch())
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=save_at), lambda engine: saved.update(engine.state_dict()))
    engine.run(range(4), max_epochs=3)
    return engine, saved


@pytest.mark.parametrize("save_at", range(3, 10))
def test_the_state_after_a_cut_epoch_is_loaded_as_it_was_where_ignite_derives_another(save_at) -> None:
    def batches_after(engine_class: type[IgniteEngine]) -> tuple[list[Any], list[Any]]:
        _, saved = cut_short_then_saved(engine_class, save_at)
        seen: list[Any] = []
        resumed = engine_class(lambda engine, batch: seen.append((engine.state.epoch, engine.state.iteration)))
        resumed.load_state_dict(saved)
        resumed.run(range(4))
        uncut: list[Any] = []
        whole = engine_class(lambda engine, batch: uncut.append((engine.state.epoch, engine.state.iteration)))
        whole.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch())
        whole.run(range(4), max_epochs=3)
        return seen, uncut[save_at:]

    ours, without_a_break = batches_after(Engine)
    assert ours == without_a_break
    ignites, without_a_break = batches_after(IgniteEngine)
    assert ignites != without_a_break


def test_a_state_dict_has_ignites_entries_and_no_other_while_no_epoch_was_cut() -> None:
    def saved_by(engine_class: type[IgniteEngine]) -> list[Any]:
        engine, saved = engine_class(lambda engine, batch: None), []
        events = Events.EPOCH_STARTED | Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED | Events.COMPLETED
        engine.add_event_handler(events, lambda engine: saved.append(list(engine.state_dict().items())))
        engine.run(range(4), max_epochs=3)
        return saved

    assert saved_by(Engine) == saved_by(IgniteEngine)


def test_a_state_dict_with_our_entries_loads_into_ignites_engine() -> None:
    _, saved = cut_short_then_saved(Engine, save_at=4)
    assert saved == {
        "epoch_length": 4, "iteration": 4, "max_epochs": 3, "epochs_completed": 1, "epoch_position": 2
    }  # fmt: skip
    engine = IgniteEngine(lambda engine, batch: None)
    engine.load_state_dict(saved)
    assert (engine.state.iteration, engine.state.epoch) == (4, 1)


def test_a_state_loaded_after_a_cut_epoch_is_saved_as_it_was_loaded() -> None:
    _, saved = cut_short_then_saved(Engine, save_at=4)
    engine = Engine(lambda engine, batch: None)
    engine.load_state_dict(saved)
    assert dict(engine.state_dict()) == saved


def test_an_engine_with_a_cut_epoch_behind_it_starts_a_new_run_without_it() -> None:
    engine, _ = cut_short_then_saved(Engine, save_at=4)
    saved: list[Any] = []
    engine.add_event_handler(Events.STARTED, lambda engine: saved.append(dict(engine.state_dict())))
    engine.run(range(4), max_epochs=3)
    assert saved == [{"epoch_length": 4, "iteration": 0, "max_epochs": 3}]


def test_a_state_loaded_into_an_interrupted_run_takes_its_place_where_ignite_mixes_the_two() -> None:
    def seen_after_loading(engine_class: type[IgniteEngine]) -> list[Any]:
        seen: list[Any] = []
        engine = engine_class(lambda engine, batch: seen.append((engine.state.epoch, batch)))
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.interrupt())
        engine.run(range(3), max_epochs=5)
        engine.load_state_dict({"iteration": 9, "epoch_length": 3, "max_epochs": 4})
        del seen[:]
        engine.run(range(3))
        return seen

    assert seen_after_loading(IgniteEngine) == [(3, 2), (4, 0), (4, 1), (4, 2)]
    assert seen_after_loading(Engine) == [(4, 0), (4, 1), (4, 2)]


class Uncounted(EventEnum):
    EVENT = "of no attribute"


@pytest.mark.parametrize("event", [Events.TERMINATE, Events.INTERRUPT, Events.EXCEPTION_RAISED, Uncounted.EVENT])
def test_a_filter_with_nothing_to_count_is_refused_at_once_where_ignite_fails_when_it_fires(event) -> None:
    for engine_class in (IgniteEngine, Engine):
        engine = engine_class(lambda engine, batch: None)
        engine.register_events(*Uncounted)
        if engine_class is IgniteEngine:
            engine.add_event_handler(event(every=2), lambda *_: None)
            with pytest.raises(RuntimeError, match="Unknown event name"):
                engine.fire_event(event)
        else:
            with pytest.raises(ValueError, match=r"nothing to count: no attribute of engine\.state belongs to this"):
                engine.add_event_handler(event(every=2), lambda *_: None)


@pytest.mark.parametrize("caller", ["handler", "step"])
def test_a_run_within_the_same_run_is_refused_in_a_sentence(caller) -> None:
    for engine_class, message in (
        (IgniteEngine, "^generator already executing$"),
        (
            Engine,
            r"^run\(\) was called by a handler or by the step of the same engine while it runs\. Use another Engine",
        ),
    ):
        error = RuntimeError if engine_class is Engine else ValueError
        engine = engine_class(lambda engine, batch: engine.run([0]) if caller == "step" else None)
        if caller == "handler":
            engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: engine.run([0]))
        with pytest.raises(error, match=message):
            engine.run([0, 1], max_epochs=2)


# ---------------------------------------------------------------------------------------------- kept all the same


@BOTH
def test_filters_of_get_batch_see_the_iteration_before_its_increment(engine_class) -> None:
    engine, counts = engine_class(lambda engine, batch: None), []
    event = Events.GET_BATCH_STARTED(event_filter=lambda engine, count: counts.append(count))
    engine.add_event_handler(event, lambda: None)
    engine.run(range(3))
    assert counts == [0, 1, 2]


@BOTH
def test_the_end_of_the_data_is_told_within_the_next_epoch(engine_class) -> None:
    engine, events = engine_class(lambda engine, batch: None), []
    for event in (
        Events.EPOCH_COMPLETED,
        Events.EPOCH_STARTED,
        Events.DATALOADER_STOP_ITERATION,
        Events.GET_BATCH_STARTED,
    ):
        engine.add_event_handler(event, lambda name: events.append(name), event.name)
    engine.run(range(1), max_epochs=2)
    first, second = ["EPOCH_STARTED", "GET_BATCH_STARTED"], ["EPOCH_COMPLETED", "EPOCH_STARTED", "GET_BATCH_STARTED"]
    assert events == [*first, *second, "DATALOADER_STOP_ITERATION", "EPOCH_COMPLETED"]


@BOTH
def test_a_handler_added_while_its_event_fires_runs_and_one_removed_still_runs(engine_class) -> None:
    engine, ran = engine_class(lambda engine, batch: None), []

    def removed() -> None:
        ran.append("removed")

    @engine.on(Events.STARTED)
    def change(engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, lambda: ran.append("added"))
        engine.remove_event_handler(removed, Events.STARTED)

    engine.add_event_handler(Events.STARTED, removed)
    engine.run([0])
    assert ran == ["removed", "added"]


@BOTH
def test_removing_a_handler_that_is_attached_twice_removes_both(engine_class) -> None:
    engine, ran = engine_class(lambda engine, batch: None), []

    def twice() -> None:
        ran.append("twice")

    handle = engine.add_event_handler(Events.STARTED, twice)
    engine.add_event_handler(Events.STARTED, twice)
    handle.remove()
    engine.run([0])
    assert ran == []


@BOTH
def test_a_handler_gets_the_engine_if_its_signature_binds_with_it(engine_class) -> None:
    engine, got = engine_class(lambda engine, batch: None), []
    engine.add_event_handler(Events.STARTED, lambda anything=None: got.append(anything))
    engine.add_event_handler(Events.STARTED, lambda only: got.append(only), "extra")
    engine.run([0])
    assert got == [engine, "extra"]


@BOTH
def test_max_iters_in_mid_epoch_fires_terminate_and_completed_but_not_epoch_completed(engine_class) -> None:
    engine, events = engine_class(lambda engine, batch: None), []
    for event in (Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED):
        engine.add_event_handler(event, lambda engine, name: events.append((name, engine.state.iteration)), event.name)
    engine.run(range(3), max_iters=4)
    assert events == [("EPOCH_COMPLETED", 3), ("TERMINATE", 4), ("COMPLETED", 4)]


@BOTH
def test_data_that_is_set_takes_effect_at_the_next_batch(engine_class) -> None:
    batches: list[Any] = []
    engine = engine_class(lambda engine, batch: batches.append(batch))
    engine.add_event_handler(Events.ITERATION_STARTED(once=2), lambda engine: engine.set_data("abc"))
    engine.run(range(4))
    assert batches == [0, 1, "a", "b"]


@BOTH
def test_events_are_equal_by_name(engine_class) -> None:
    class Others(EventEnum):
        STARTED = "another"

    engine, ran = engine_class(lambda engine, batch: None), []
    engine.add_event_handler("STARTED", lambda: ran.append("by its name"))
    engine.add_event_handler(Others.STARTED, lambda: ran.append("by one of the same name"))
    engine.run([0])
    assert ran == ["by its name", "by one of the same name"]
