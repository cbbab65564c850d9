"""A run that pauses or ends inside an epoch goes on: in one program, among coroutines, in threads, in a notebook."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average

from camshaft.handlers import CSVLogger, Metrics
from tests.interop.same import assert_same
from tests.interop.training import Training, batches


def test_a_run_interrupted_in_every_second_iteration_is_the_run(outcome_of) -> None:
    def program(engine_class, directory):
        whole, paused = Training(engine_class), Training(engine_class)
        paused.model.load_state_dict(whole.model.state_dict())
        torch.manual_seed(1)
        whole.trainer.run(batches(), max_epochs=3)
        pauses = paused.note(Events.INTERRUPT, lambda: paused.trainer.state.iteration)
        paused.trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda: paused.trainer.interrupt())
        torch.manual_seed(1)
        runs = 0
        while paused.trainer.state.iteration < 18 or paused.trainer.last_event_name != Events.COMPLETED:
            paused.trainer.run(batches(), max_epochs=3)
            runs += 1
        return whole.model.state_dict(), paused.model.state_dict(), pauses, runs

    whole, paused, pauses, runs = outcome_of(program)
    assert_same(paused, whole)
    assert pauses == list(range(2, 19, 2))
    assert runs == 10


def test_a_run_terminated_in_an_epoch_goes_on_with_the_next(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        events = Events.EPOCH_STARTED | Events.EPOCH_COMPLETED | Events.TERMINATE | Events.COMPLETED
        trainer = training.trainer
        fired = training.note(
            events, lambda: (trainer.last_event_name.name, trainer.state.epoch, trainer.state.iteration)
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), lambda: trainer.terminate())
        first = trainer.run(batches(), max_epochs=3).iteration
        second = trainer.run(batches(), max_epochs=3).iteration
        return first, second, fired

    first, second, fired = outcome_of(program)
    assert first == 8
    assert second > 8
    assert ("TERMINATE", 2, 8) in fired
    assert fired[-1][0] == "COMPLETED"


def test_handlers_of_ours_go_on_with_an_interrupted_run(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        for handler in (Metrics(mean=Average()), CSVLogger(directory, every=2)):
            handler.attach(training.trainer)
        training.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: training.trainer.interrupt())
        training.trainer.run(batches(), max_epochs=1)
        at_the_pause = training.trainer.state.iteration, dict(training.trainer.state.metrics)
        training.trainer.run(batches(), max_epochs=1)
        lines = (directory / "metrics.csv").read_text().splitlines()
        return at_the_pause, training.trainer.state.metrics, [line.split(",")[0] for line in lines]

    at_the_pause, metrics, iterations = outcome_of(program)
    assert at_the_pause == (3, {})
    assert list(metrics) == ["mean"]
    assert iterations == ["iteration", "2", "4", "6", "6"]  # the last one is the epoch's


# ------------------------------------------------------------------------------------------------------- coroutines


def test_two_runs_take_turns_in_one_event_loop(outcome_of) -> None:
    """Each pauses after every iteration and lets the other one train."""

    def program(engine_class, directory):
        order: list[tuple[str, int]] = []

        async def train(name: str, training: Training) -> None:
            trainer = training.trainer
            trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: trainer.interrupt())
            while trainer.state.iteration < 6:
                trainer.run(batches(3), max_epochs=2)
                order.append((name, trainer.state.iteration))
                await asyncio.sleep(0)

        async def main() -> None:
            await asyncio.gather(train("a", Training(engine_class)), train("b", Training(engine_class)))

        asyncio.run(main())
        return order

    assert outcome_of(program) == [(name, iteration) for iteration in range(1, 7) for name in "ab"]


def test_a_coroutine_interrupts_a_run_in_a_thread_and_lets_it_go_on(outcome_of) -> None:
    def program(engine_class, directory):
        async def main() -> tuple[list[int], int, bool]:
            loop = asyncio.get_running_loop()
            reached, go_on = asyncio.Event(), threading.Event()

            def step(engine: Any, batch: Any) -> int:
                if engine.state.iteration == 3:
                    loop.call_soon_threadsafe(reached.set)
                    go_on.wait(30)
                return batch

            engine = engine_class(step)
            seen: list[int] = []
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.iteration))
            running = asyncio.create_task(asyncio.to_thread(engine.run, range(5), max_epochs=2))
            await reached.wait()
            engine.interrupt()
            go_on.set()
            paused_at = (await running).iteration
            state = await asyncio.to_thread(engine.run, range(5), max_epochs=2)
            return seen, paused_at, state is engine.state

        return asyncio.run(main())

    assert outcome_of(program) == (list(range(1, 11)), 3, True)


def test_a_coroutine_terminates_a_run_in_a_thread(outcome_of) -> None:
    def program(engine_class, directory):
        async def main() -> tuple[int, list[str]]:
            loop = asyncio.get_running_loop()
            reached, go_on = asyncio.Event(), threading.Event()

            def step(engine: Any, batch: Any) -> None:
                if engine.state.iteration == 3:
                    loop.call_soon_threadsafe(reached.set)
                    go_on.wait(30)

            engine = engine_class(step)
            ended: list[str] = []
            for event in (Events.TERMINATE, Events.COMPLETED):
                engine.add_event_handler(event, ended.append, event.name)
            running = asyncio.create_task(asyncio.to_thread(engine.run, range(5), max_epochs=2))
            await reached.wait()
            engine.terminate()
            go_on.set()
            return (await running).iteration, ended

        return asyncio.run(main())

    assert outcome_of(program) == (3, ["TERMINATE", "COMPLETED"])


# --------------------------------------------------------------------------------------------------------- notebooks

# What a person runs in a notebook one after the other; `engine_class` is there from the start.
CELLS = [
    """
from ignite.engine import Events
seen = []
engine = engine_class(lambda engine, batch: batch)

@engine.on(Events.ITERATION_COMPLETED)
def look(engine):
    seen.append((engine.state.epoch, engine.state.iteration))
    if engine.state.iteration in (2, 5):
        engine.interrupt()
""",
    "state = engine.run(range(4), max_epochs=2)",
    "first = list(seen)",
    """
@engine.on(Events.ITERATION_COMPLETED)  # a thought that came in the pause
def look_too(engine):
    seen.append("too")
""",
    "state = engine.run(range(4), max_epochs=2)",
    "second = list(seen)",
    "state = engine.run(range(4), max_epochs=2)",
    "engine.run(range(4), max_epochs=3)  # one more epoch, please",
    """
def broken(engine):
    raise ValueError("a typing error")

engine.add_event_handler(Events.ITERATION_STARTED, broken)
""",
    "engine.run(range(4), max_epochs=4)",
    "engine.remove_event_handler(broken, Events.ITERATION_STARTED)",
    "iterations = state.iteration",
]
RAISING_CELL = 9


def run_plainly(cells: list[str], names: dict[str, Any]) -> list[int]:
    """Run the cells as a notebook does: those that raise are noted, and the next may be run all the same."""
    raised = []
    for number, cell in enumerate(cells):
        try:
            exec(compile(cell, f"cell {number}", "exec"), names)
        except ValueError:
            raised.append(number)
    return raised


def run_in_ipython(cells: list[str], names: dict[str, Any]) -> list[int]:
    from IPython.core.interactiveshell import InteractiveShell  # noqa: PLC0415
    from traitlets.config import Config  # noqa: PLC0415

    shell = InteractiveShell(user_ns=names, config=Config(HistoryManager={"enabled": False}))
    results = [shell.run_cell(cell, silent=True) for cell in cells]
    assert all(isinstance(result.error_in_exec, (ValueError, type(None))) for result in results)
    assert all(result.error_before_exec is None for result in results)
    return [number for number, result in enumerate(results) if result.error_in_exec is not None]


@pytest.mark.parametrize("shell", ["plain", "ipython"])
def test_the_cells_of_a_notebook_pause_and_go_on(outcome_of, shell, tmp_path, monkeypatch) -> None:
    if shell == "ipython" and importlib.util.find_spec("IPython") is None:
        pytest.skip("IPython is not installed: `make interop` does so")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for prompt in ("ps1", "ps2", "ps3"):  # by these a program is told from a session; IPython leaves them behind
        monkeypatch.setattr(sys, prompt, "", raising=False)

    def program(engine_class, directory):
        names: dict[str, Any] = {"engine_class": engine_class}
        raised = (run_plainly if shell == "plain" else run_in_ipython)(CELLS, names)
        return raised, names["first"], names["second"], names["seen"], names["iterations"]

    raised, first, second, seen, iterations = outcome_of(program)
    assert raised == [RAISING_CELL]
    assert first == [(1, 1), (1, 2)]
    assert second == [*first, (1, 3), "too", (1, 4), "too", (2, 5), "too"]
    assert seen[-2:] == [(3, 12), "too"]
    assert iterations == 13  # in which the error was raised
