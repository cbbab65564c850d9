import pytest
import torch
from torch.utils.data import DataLoader

from camshaft.engine import Engine, Events
from camshaft.handlers import Checkpoint, Evaluate, Overfit


@pytest.fixture
def seen():
    return []


@pytest.fixture
def trainer(engine_of, seen):
    return engine_of(lambda engine, batch: seen.append(batch), Overfit(2))


def test_every_epoch_has_the_same_first_batches(trainer, seen):
    trainer.run(range(10), max_epochs=3)
    assert seen == [0, 1] * 3


def test_shuffled_batches_are_drawn_once(trainer, seen):
    trainer.run(DataLoader(range(100), batch_size=4, shuffle=True), max_epochs=3)
    batches = [batch.tolist() for batch in seen]
    assert batches == batches[:2] * 3


def test_they_are_the_first_that_the_loader_gives(trainer, seen):
    loader = DataLoader(range(100), batch_size=4, shuffle=True)
    torch.manual_seed(3)
    expected = next(iter(loader))
    torch.manual_seed(3)
    trainer.run(loader)
    assert torch.equal(seen[0], expected)


def test_data_shorter_than_asked_for_is_taken_whole(trainer, seen):
    trainer.run([7], max_epochs=3)
    assert seen == [7] * 3


def test_an_iterator_is_read_no_further(trainer, seen):
    numbers = iter(range(10))
    trainer.run(numbers, max_epochs=2, epoch_length=5)
    assert (seen, next(numbers)) == ([0, 1, 0, 1], 2)


def test_max_iters_is_kept(trainer, seen):
    trainer.run(range(10), max_iters=5)
    assert seen == [0, 1, 0, 1, 0]


def test_validation_keeps_its_data(engine_of, seen):
    model = torch.nn.Linear(1, 1)
    evaluator = engine_of(lambda engine, batch: seen.append(batch))
    engine_of(lambda engine, batch: None, Overfit(1), Evaluate(evaluator, [5, 6, 7], modules=[model])).run(range(10))
    assert seen == [5, 6, 7]


def test_a_run_that_is_resumed_has_the_batches_it_had(tmp_path):
    def program(seen):
        loader = DataLoader(range(100), batch_size=4, shuffle=True, generator=torch.Generator())
        return Engine(lambda engine, batch: seen.append(batch.tolist())).attach(
            Overfit(2), Checkpoint(tmp_path, model=torch.nn.Linear(1, 1))
        ), loader

    first, second = [], []
    engine, loader = program(first)

    @engine.on(Events.ITERATION_STARTED(once=4))
    def fail():
        raise KeyboardInterrupt

    loader.generator.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        engine.run(loader, max_epochs=4)
    engine, loader = program(second)
    loader.generator.manual_seed(2)
    engine.run(loader, max_epochs=4)
    assert [*first[:2], *second] == first[:2] * 4


def test_no_data_is_refused(trainer):
    with pytest.raises(ValueError, match="runs without data"):
        trainer.run(None, epoch_length=3)


def test_empty_data_is_refused(trainer):
    with pytest.raises(ValueError, match="the data has none"):
        trainer.run(iter([]), epoch_length=3)


def test_at_least_one_batch_is_taken():
    with pytest.raises(ValueError, match="batches=0"):
        Overfit(0)
