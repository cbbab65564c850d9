import pytest
import torch
from ignite.handlers import ModelCheckpoint
from torch import nn

from camshaft.engine import Events
from camshaft.handlers import Checkpoint, CSVLogger, Evaluate, FastDevRun, RunRecord


@pytest.fixture
def seen():
    return []


@pytest.fixture
def program(engine_of, seen, tmp_path):
    """An engine with validation and with handlers that write into ``tmp_path``."""

    def make(*handlers, at=Events.EPOCH_COMPLETED):
        model = nn.Linear(1, 1)
        evaluator = engine_of(lambda engine, batch: seen.append(("validation", batch)))
        return engine_of(
            lambda engine, batch: seen.append(("training", batch)),
            Checkpoint(tmp_path / "run", model=model),
            CSVLogger(tmp_path / "log.csv"),
            Evaluate(evaluator, range(9), modules=[model], at=at),
            *handlers,
            RunRecord(tmp_path / "run"),
        )

    return make


def test_one_batch_is_trained_on_and_one_validated(program, seen):
    program(FastDevRun()).run(range(100), max_epochs=50)
    assert seen == [("training", 0), ("validation", 0)]


def test_so_many_batches_are_run(program, seen):
    program(FastDevRun(2)).run(range(100), max_epochs=50)
    assert seen == [("training", 0), ("training", 1), ("validation", 0), ("validation", 1)]


def test_nothing_is_written(program, tmp_path):
    program(FastDevRun()).run(range(100))
    assert list(tmp_path.iterdir()) == []


def test_without_it_the_same_program_writes(program, tmp_path):
    program().run(range(3))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "log.csv"}


def test_a_validation_whose_time_has_not_come_is_run_at_the_end(program, seen):
    program(FastDevRun(), at=Events.EPOCH_COMPLETED(every=5)).run(range(100))
    assert seen == [("training", 0), ("validation", 0)]


def test_max_iters_is_cut_too(program, seen):
    program(FastDevRun()).run(range(100), max_iters=30)
    assert seen == [("training", 0), ("validation", 0)]


def test_data_shorter_than_asked_for_is_not_begun_anew(program, seen):
    program(FastDevRun(5)).run(range(2))
    assert seen[:3] == [("training", 0), ("training", 1), ("validation", 0)]


def test_all_handlers_are_attached_again_in_the_same_order(program):
    engine = program(FastDevRun())
    before = list(engine.handlers)
    engine.run(range(100))
    assert engine.handlers == before
    assert engine.has_event_handler(before[0].restore, Events.STARTED)


def test_they_are_attached_again_after_an_error(program):
    engine = program(FastDevRun())
    before = list(engine.handlers)

    @engine.on(Events.ITERATION_STARTED)
    def fail():
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        engine.run(range(100))
    assert engine.handlers == before


def test_detached_it_leaves_the_run_whole(program, seen):
    fast = FastDevRun()
    engine = program(fast)
    fast.detach(engine)
    engine.run(range(4))
    assert len(seen) == 4 + 9


def test_ignites_checkpoint_is_refused(engine_of, tmp_path):
    engine = engine_of(lambda engine, batch: None, FastDevRun())
    saver = ModelCheckpoint(tmp_path, require_empty=False)
    engine.add_event_handler(Events.EPOCH_COMPLETED, saver, {"model": torch.nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="ModelCheckpoint of Ignite is attached"):
        engine.run([0])


def test_at_least_one_batch_is_run():
    with pytest.raises(ValueError, match="batches=0"):
        FastDevRun(0)
