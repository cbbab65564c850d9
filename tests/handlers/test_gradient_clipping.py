import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Events
from camshaft.handlers import GradientAccumulation, GradientClipping, OptimizerStep


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def make_data(batches=6):
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(5, 3, generator=generator), torch.randint(2, (5,), generator=generator)) for _ in range(batches)
    ]


def loss_step(model):
    return lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1])


def trained_by_hand(clip):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for x, y in make_data():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        clip(model.parameters())
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("clipping", "clip"),
    [
        (GradientClipping(0.1), lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1)),
        (
            GradientClipping(0.1, norm_type=float("inf")),
            lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1, float("inf")),
        ),
        (GradientClipping(max_value=0.02), lambda parameters: nn.utils.clip_grad_value_(parameters, 0.02)),
    ],
    ids=["norm", "largest element", "value"],
)
def test_a_run_ends_in_the_same_bits_as_a_hand_written_loop(engine_of, clipping, clip):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine_of(loss_step(model), OptimizerStep(optimizer), clipping).run(make_data())
    for parameter, expected in zip(model.parameters(), trained_by_hand(clip).parameters(), strict=True):
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("clipping", [GradientClipping(1e-3), GradientClipping(max_value=1e-3)], ids=["norm", "value"])
def test_the_norm_before_clipping_is_reported_as_a_tensor(engine_of, clipping):
    data, model = make_data(1), make_model()
    loss_step(model)(None, data[0]).backward()
    norm = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    engine = engine_of(loss_step(model), clipping, OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
    engine.run(data)
    assert torch.equal(engine.state.metrics["gradient_norm"], norm)


def test_only_whole_groups_of_micro_batches_are_clipped(engine_of):
    model, norms = make_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = engine_of(loss_step(model), GradientClipping(1.0), GradientAccumulation(3), OptimizerStep(optimizer))
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: norms.append(engine.state.metrics.get("gradient_norm"))
    )
    engine.run(make_data(6), max_epochs=1)
    assert [norm is None for norm in norms] == [True, True, False, False, False, False]
    assert norms[2] is norms[4] is not norms[5]


def test_a_parameter_without_a_gradient_is_left_alone(engine_of):
    model, unused = make_model(), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([*model.parameters(), unused], lr=0.1)
    for clipping in (GradientClipping(0.1), GradientClipping(max_value=0.1)):
        engine_of(loss_step(model), clipping, OptimizerStep(optimizer)).run(make_data())
    assert torch.equal(unused, torch.ones(2))


@pytest.mark.parametrize("limits", [{}, {"max_norm": 1.0, "max_value": 1.0}], ids=["no limit", "two limits"])
def test_anything_but_one_limit_is_refused(limits):
    with pytest.raises(ValueError, match="needs one limit, a norm or a value"):
        GradientClipping(**limits)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "1"])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ValueError, match="positive limit"):
        GradientClipping(limit)
    with pytest.raises(ValueError, match="positive limit"):
        GradientClipping(max_value=limit)


def test_around_a_step_that_does_its_own_backward_it_is_refused_when_the_run_starts():
    model = make_model()
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy)
    GradientClipping(1.0).attach(trainer)
    with pytest.raises(ValueError, match=r"needs an OptimizerStep.*let the step return the loss"):
        trainer.run(make_data())


def test_after_detaching_it_nothing_is_clipped(engine_of):
    model, clipping = make_model(), GradientClipping(1e-6)
    engine = engine_of(loss_step(model), clipping, OptimizerStep(torch.optim.AdamW(model.parameters(), lr=0.1)))
    clipping.detach(engine)
    assert engine.run(make_data()).metrics == {}
    for parameter, expected in zip(model.parameters(), trained_by_hand(lambda _: None).parameters(), strict=True):
        assert torch.equal(parameter, expected)
