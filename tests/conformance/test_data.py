"""Where batches come from: lists, iterators, data without a length, none at all, new data in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from camshaft.engine import Events
from tests.conformance.recorder import Recorder, compare


class Lengthless:
    """Can be iterated again and again, but has no length."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


KINDS = {
    "list": lambda: [0, 1, 2],
    "iterator": lambda: iter([0, 1, 2]),
    "without length": lambda: Lengthless(0, 1, 2),
    "generator": lambda: (number for number in range(3)),
    "loader": lambda: DataLoader(range(6), batch_size=2, collate_fn=list),
    "stream": lambda: DataLoader(Stream(), batch_size=None),
    "nothing": lambda: None,
    "empty": list,
    "empty without length": Lengthless,
    "empty iterator": lambda: iter([]),
    "a number": lambda: 3,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epoch_length", [None, 1, 2, 3, 5])
@pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_epochs": 3}, {"max_iters": 2}, {"max_iters": 7}, {}])
def test_data_of_every_kind_with_every_limit(kind, epoch_length, limit) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine(max_steps=20)
        data = KINDS[kind]()
        recorder.run(engine, data, epoch_length=epoch_length, **limit)
        recorder.run(engine, data, epoch_length=epoch_length, **limit)

    compare(program)


@pytest.mark.parametrize(
    "event",
    [event for event in Events if event not in (Events.EXCEPTION_RAISED, Events.TERMINATE, Events.INTERRUPT)],
    ids=lambda event: event.name,
)
@pytest.mark.parametrize("epoch_length", [None, 2, 5])
def test_data_set_while_an_event_fires(event, epoch_length) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        occurrences = iter(range(1, 100))
        engine.add_event_handler(
            event, lambda *_, **__: engine.set_data([10, 11, 12]) if next(occurrences) == 2 else None
        )
        recorder.run(engine, range(4), max_epochs=3, epoch_length=epoch_length)

    compare(program)


def test_data_set_in_a_step_of_a_run_that_began_without() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine(lambda engine, batch: engine.set_data([10, 11, 12]) if batch is None else batch)
        recorder.run(engine, max_epochs=2, epoch_length=4)

    compare(program)


def test_data_set_before_the_run() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.set_data([10, 11, 12])
        recorder.run(engine, [0, 1, 2], max_epochs=2)

    compare(program)


def test_max_iters_in_the_middle_of_an_epoch_terminates_without_its_completion() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        recorder.run(engine, range(3), max_iters=4)
        recorder.run(engine, range(3), max_iters=8)
        recorder.run(engine, range(3), max_iters=8)

    names = [entry[0] for entry in compare(program)]
    assert names.count("TERMINATE") == 3
    assert names[names.index("TERMINATE") - 1] == "ITERATION_COMPLETED"


def test_a_batch_replaced_at_the_start_of_its_iteration_reaches_the_step() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        for event in (Events.GET_BATCH_COMPLETED, Events.ITERATION_STARTED):
            engine.add_event_handler(event, lambda engine: setattr(engine.state, "batch", 2 * engine.state.batch))
        recorder.run(engine, [1, 2, 3])

    assert ("output", 12) in compare(program)[-1][1]


@pytest.mark.parametrize("attribute", ["iteration", "epoch", "epoch_length", "max_epochs", "max_iters", "output"])
def test_a_state_that_a_handler_changes(attribute) -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: setattr(engine.state, attribute, 5))
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=3), lambda engine: setattr(engine.state, attribute, 7))
        recorder.run(engine, range(4), max_epochs=4)

    compare(program)


def test_an_iterator_that_ends_before_the_run_is_done_ends_its_epochs_with_a_warning() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        recorder.run(engine, iter(range(5)), max_epochs=3, epoch_length=3)

    assert any("warned" in entry for entry in compare(program))


def test_a_loader_whose_epochs_are_cut_short() -> None:
    def program(recorder: Recorder) -> None:
        engine = recorder.engine()
        engine.add_event_handler(Events.ITERATION_STARTED(every=3), lambda engine: engine.terminate_epoch())
        recorder.run(
            engine,
            DataLoader(range(8), batch_size=2, shuffle=True, collate_fn=list, generator=_generator()),
            max_epochs=3,
        )

    compare(program)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
