import math

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Engine
from camshaft.handlers import GradientAccumulation, LRFinder, OptimizerStep
from camshaft.handlers.lr_finder import LearningRateCurve


def training(*handlers, engine_class=Engine, rates=None, groups=None):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(groups(model) if groups else model.parameters(), lr=0.01)

    def step(engine, batch):
        if rates is not None:
            rates.append([group["lr"] for group in optimizer.param_groups])
        return {"loss": (model(batch) - batch.square().sum(1, keepdim=True)).square().mean()}

    engine = engine_class(step)
    for handler in (OptimizerStep(optimizer), *handlers):
        handler.attach(engine)
    return engine, model, optimizer


DATA = list(torch.randn(8, 16, 4, generator=torch.Generator().manual_seed(0)))


def test_the_learning_rate_grows_by_a_factor_from_the_smallest_to_the_largest(engine_class):
    rates = []
    engine, _, _ = training(engine_class=engine_class, rates=rates)
    curve = LRFinder(1e-4, 1e-1, steps=4).run(engine, DATA)
    assert curve.results["lr"] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert rates == [[rate] for rate in curve.results["lr"]]


def test_it_may_grow_linearly():
    curve = LRFinder(0.1, 0.4, steps=4, growth="linear").run(training()[0], DATA)
    assert curve.results["lr"] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_first_loss_is_that_of_the_first_batch():
    engine, model, _ = training()
    curve = LRFinder(steps=3).run(engine, DATA)
    expected = (model(DATA[0]) - DATA[0].square().sum(1, keepdim=True)).square().mean()
    assert curve.results["loss"][0] == pytest.approx(expected.item())


def test_the_suggestion_trains_better_than_a_tenth_of_it_and_does_not_diverge():
    curve = LRFinder(1e-5, 10, steps=200).run(training()[0], DATA)

    def loss_with(rate):
        engine, _, optimizer = training()
        optimizer.param_groups[0]["lr"] = rate
        return engine.run(DATA, max_epochs=2).output["loss"].item()

    suggestion = curve.suggestion()
    assert loss_with(suggestion) < loss_with(suggestion / 10)


def test_it_ends_when_the_loss_grows():
    curve = LRFinder(1e-3, 1e6, steps=300).run(training()[0], DATA)
    losses = curve.results["loss"]
    assert 10 < len(losses) < 300
    assert not losses[-1] <= 4 * min(losses)


def test_told_never_to_stop_it_does_not():
    curve = LRFinder(1e-3, 1e6, steps=60, stop_at=None).run(training()[0], DATA)
    assert len(curve.results["loss"]) == 60
    assert curve.suggestion() is not None


def test_micro_batches_share_a_learning_rate_and_make_one_point():
    rates = []
    engine, model, _ = training(GradientAccumulation(2), rates=rates)
    curve = LRFinder(steps=4).run(engine, DATA)
    assert len(curve.results["lr"]) == 4
    assert [rate for (rate,) in rates] == [rate for rate in curve.results["lr"] for _ in range(2)]
    losses = [(model(x) - x.square().sum(1, keepdim=True)).square().mean().item() for x in DATA[:2]]
    assert curve.results["loss"][0] == pytest.approx(sum(losses) / 2)


def test_groups_of_parameters_keep_their_ratio():
    def groups(model):
        return [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.001}]

    rates = []
    LRFinder(steps=5).run(training(rates=rates, groups=groups)[0], DATA)
    assert [slow / fast for fast, slow in rates] == pytest.approx([0.1] * 5)


def test_data_shorter_than_the_steps_begins_again():
    assert len(LRFinder(steps=30).run(training()[0], DATA[:3]).results["lr"]) == 30


def test_model_optimizer_and_engine_are_as_they_were():
    engine, model, optimizer = training()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    LRFinder(steps=5, max_lr=0.1).run(engine, DATA)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (optimizer.param_groups[0]["lr"], engine.state.iteration, engine.state.optimizer_step) == (0.01, 0, 0)


def test_a_trainer_with_its_own_backward_is_tried_too():
    model = nn.Linear(4, 1)
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), F.mse_loss)
    curve = LRFinder(steps=5, max_lr=0.1).run(trainer, [(x, x[:, :1]) for x in DATA])
    assert len(curve.results["lr"]) == 5


def test_a_step_without_loss_is_refused():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(lambda engine, batch: {"score": 1.0, "with": optimizer is None})
    with pytest.raises(ValueError, match=r"no loss in what the step returned, only \['score'\]"):
        LRFinder().run(engine, DATA)


def test_noise_between_two_points_is_not_taken_for_learning():
    curve = LearningRateCurve()
    rates = [10 ** (-5 + step / 20) for step in range(100)]
    learnt = [10.0 - 3 / (1 + math.exp(-0.3 * (step - 70))) for step in range(100)]
    curve.results = {"lr": rates, "loss": [loss + 0.4 * (step % 2) for step, loss in enumerate(learnt)]}
    assert rates[65] < curve.suggestion() < rates[75]


def test_too_few_points_give_no_suggestion():
    curve = LearningRateCurve()
    curve.results = {"lr": [1.0, 2.0, 3.0], "loss": [3.0, math.nan, 1.0]}
    assert curve.suggestion() is None


def test_the_picture_has_named_axes_and_the_suggestion(tmp_path):
    curve = LRFinder(steps=40).run(training()[0], DATA)
    text = curve.plot(tmp_path / "learning_rate.svg").read_text()
    assert "Learning rate" in text
    assert f"{curve.suggestion():.2g}" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"min_lr": 1.0, "max_lr": 0.1}, "0 < min_lr < max_lr"),
        ({"min_lr": 0.0}, "0 < min_lr < max_lr"),
        ({"steps": 1}, "at least 2 steps"),
        ({"growth": "cubic"}, "not 'cubic'"),
    ],
    ids=["order", "zero", "steps", "growth"],
)
def test_what_makes_no_sense_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        LRFinder(**arguments)
