import pytest
import torch
from ignite.metrics import Average
from torch import nn
from torch.utils.data import DataLoader

from camshaft.engine import Events
from camshaft.handlers import EMA, Evaluate, Metrics, SanityCheck

FOUR_BATCHES = [torch.ones(2, 1)] * 4


@pytest.fixture
def program(engine_class, engine_of):
    """A trainer with validation, and what it and the evaluator have seen, in order."""

    def make(*handlers, data=FOUR_BATCHES, **options):
        model, seen = nn.Linear(1, 1), []

        def evaluation_step(engine, batch):
            seen.append("validation")
            return model(batch).mean()

        evaluator = engine_of(evaluation_step, Metrics(output=Average()))
        evaluate = Evaluate(evaluator, data, **options)
        trainer = engine_of(lambda engine, batch: seen.append("training"), evaluate, *handlers)
        return trainer, evaluate, seen

    return make


def test_validation_is_tried_before_training(program):
    trainer, _, seen = program(SanityCheck())
    trainer.run([0])
    assert seen == ["validation", "training", *["validation"] * 4]


def test_so_many_batches_are_tried(program):
    trainer, _, seen = program(SanityCheck(3))
    trainer.run([0])
    assert seen.index("training") == 3


def test_no_more_batches_are_tried_than_there_are(program):
    trainer, _, seen = program(SanityCheck(30))
    trainer.run([0])
    assert seen.index("training") == 4


def test_data_without_length_is_not_begun_anew(program):
    class Stream:
        def __iter__(self):
            yield from [torch.ones(1, 1)] * 2

    trainer, evaluate, seen = program(SanityCheck(3), data=Stream())
    trainer.run([0])
    assert seen == ["validation"] * 2 + ["training"] + ["validation"] * 2
    assert isinstance(evaluate.data, Stream)


def test_metrics_and_counters_are_as_they_were(program):
    trainer, evaluate, _ = program(SanityCheck())
    state = evaluate.evaluator.state
    at_start = []

    @trainer.on(Events.EPOCH_STARTED(once=1))
    def note():
        at_start.append((dict(trainer.state.metrics), state.iteration, state.epoch, dict(state.metrics), state.output))

    trainer.run([0])
    assert at_start == [({}, 0, 0, {}, None)]
    assert evaluate.produced_at("val_output") == 1


def test_random_numbers_are_as_they_were(program):
    def drawn(*handlers):
        torch.manual_seed(0)
        loader = DataLoader(torch.ones(8, 1), shuffle=True, generator=torch.Generator().manual_seed(1))
        trainer, _, _ = program(*handlers, data=loader)
        trainer.run([0], max_epochs=2)
        return torch.rand(1), torch.rand(1, generator=loader.generator)

    assert drawn(SanityCheck()) == drawn()


def test_an_error_in_validation_shows_before_training(program):
    trainer, _, seen = program(SanityCheck(), data=[torch.ones(1, 7)])
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.run([0])
    assert "training" not in seen


def test_after_an_error_the_validation_has_its_data_again(program):
    trainer, evaluate, _ = program(SanityCheck(), data=[torch.ones(1, 7)] * 3)
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.run([0])
    assert (len(evaluate.data), evaluate.epoch_length) == (3, None)


def test_a_run_that_goes_on_is_not_checked_again(program):
    trainer, _, seen = program(SanityCheck())
    trainer.load_state_dict({"iteration": 1, "max_epochs": 2, "epoch_length": 1})
    trainer.run([0], max_epochs=2)
    assert seen[0] == "training"


def test_moving_averages_are_tried_too(engine_of):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    evaluator = engine_of(lambda engine, batch: seen.append(model(batch).item()))

    def step(engine, batch):
        model(batch).sum().backward()
        optimizer.step()

    ema = EMA(model)
    engine = engine_of(step, ema, Evaluate(evaluator, [torch.ones(1)], ema=ema), SanityCheck())
    engine.run([torch.ones(1)])
    assert len(seen) == 2


def test_without_validation_it_is_refused(engine_of):
    with pytest.raises(ValueError, match="no Evaluate is attached"):
        engine_of(lambda engine, batch: None, SanityCheck()).run([0])


def test_at_least_one_batch_is_tried():
    with pytest.raises(ValueError, match="batches=0"):
        SanityCheck(0)
