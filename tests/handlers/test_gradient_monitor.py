import logging

import pytest
import torch
from torch import nn

from camshaft.engine import Engine, Events
from camshaft.handlers import GradientAccumulation, GradientClipping, GradientMonitor, OptimizerStep


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.body(x)


def training(*handlers, lr=0.01, engine_class=Engine):
    model = Net()
    engine = engine_class(lambda engine, batch: model(batch).square().mean())
    for handler in (OptimizerStep(torch.optim.SGD(model.parameters(), lr=lr)), *handlers):
        handler.attach(engine)
    return engine, model


BATCHES = [torch.arange(6.0).reshape(2, 3) / 6 + i / 10 for i in range(20)]


def test_the_norm_of_each_layer_is_in_the_metrics(engine_class):
    engine, model = training(GradientMonitor(), lr=0.0, engine_class=engine_class)
    metrics = engine.run(BATCHES[:1]).metrics
    model(BATCHES[0]).square().mean().backward()
    first = model.body[0]
    assert list(metrics) == ["gradient_norm/model", "gradient_norm/body.0", "gradient_norm/body.2"]
    expected = torch.cat([first.weight.grad.flatten(), first.bias.grad]).norm()
    torch.testing.assert_close(metrics["gradient_norm/body.0"], expected)
    torch.testing.assert_close(metrics["gradient_norm/model"], model.scale.grad.abs())


def test_norms_are_those_before_clipping():
    def norm(*handlers):
        engine, _ = training(*handlers, GradientMonitor())
        return engine.run(BATCHES[:1]).metrics["gradient_norm/body.0"]

    assert norm(GradientClipping(1e-6)) == norm()


def test_norms_are_those_of_the_whole_group_of_micro_batches():
    engine, _ = training(GradientAccumulation(2), GradientMonitor(), lr=0.0)
    norms = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: norms.append(engine.state.metrics.get("gradient_norm/model"))
    )
    engine.run(BATCHES[:4])
    assert norms[0] is None
    assert norms[1] is norms[2]
    assert norms[1] != norms[3]


def test_a_layer_without_gradient_for_so_many_steps_is_named_once(caplog):
    monitor = GradientMonitor(dead=4, every=5)
    engine, model = training(monitor)
    model.scale.data.zero_()  # so that no gradient comes to the body
    model.scale.requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        engine.run(BATCHES[:10], max_epochs=2)
    assert monitor.dead_layers == {"body.0": 4, "body.2": 4}
    assert caplog.text.count("GradientMonitor") == 1
    assert "'body.2' (optimizer step 4)" in caplog.text


def test_a_layer_that_is_not_used_is_dead():
    monitor = GradientMonitor(dead=3)
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    engine = Engine(lambda engine, batch: model["used"](batch).mean())
    engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)), monitor)
    engine.run(BATCHES)
    assert monitor.dead_layers == {"unused": 3}


def test_zeros_that_are_not_on_end_are_no_death():
    monitor = GradientMonitor(dead=3)
    engine, _ = training(monitor)
    engine.run([0 * BATCHES[0], 0 * BATCHES[0], BATCHES[0]] * 4)
    assert monitor.dead_layers == {}


def test_a_layer_whose_gradients_leap_is_named_with_the_step(caplog):
    monitor = GradientMonitor(exploding=50)
    engine, _ = training(monitor, lr=0.0)
    with caplog.at_level(logging.WARNING):
        engine.run([*BATCHES[:15], 1e4 * BATCHES[15], *BATCHES[:3]])
    assert monitor.exploding_layers["body.0"] == 16
    assert "'body.0' (optimizer step 16)" in caplog.text


def test_a_gradient_that_is_not_finite_is_named_from_the_first_step():
    monitor = GradientMonitor()
    engine, _ = training(monitor)
    engine.run([torch.full((2, 3), torch.nan), BATCHES[0]])
    assert set(monitor.exploding_layers.values()) == {1}


def test_it_looks_only_every_so_many_steps(caplog):
    engine, _ = training(GradientMonitor(every=5))
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(len(caplog.records)))
    with caplog.at_level(logging.WARNING):
        engine.run([torch.full((2, 3), torch.nan)] * 6)
    assert seen == [0, 0, 0, 0, 1, 1]


def test_each_optimizer_of_a_gan_has_its_layers():
    one, other = nn.Linear(3, 1), nn.Linear(3, 1)
    first, second = (OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)) for model in (one, other))

    def step(engine, batch):
        first(one(batch).mean())
        second(other(batch).mean())

    engine = Engine(step).attach(first, second, GradientMonitor())
    assert list(engine.run(BATCHES[:2]).metrics) == ["gradient_norm/one", "gradient_norm/other"]


def test_the_weights_are_the_same_with_it_and_without():
    engine, model = training(GradientMonitor())
    engine.run(BATCHES)
    other_engine, other_model = training()
    other_engine.run(BATCHES)
    assert torch.equal(model.body[0].weight, other_model.body[0].weight)


def test_without_optimizer_step_it_is_refused(engine_of):
    with pytest.raises(ValueError, match=r"needs an OptimizerStep on the same engine"):
        engine_of(lambda engine, batch: None, GradientMonitor()).run([0])


@pytest.mark.parametrize("name", ["dead", "exploding", "every"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        GradientMonitor(**{name: 0})
