import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Events, StepEvents
from camshaft.handlers import GradientAccumulation, OptimizerStep


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def make_data(batches, batch_size=5):
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(batch_size, 3, generator=generator), torch.randint(2, (batch_size,), generator=generator))
        for _ in range(batches)
    ]


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def loss_step(model):
    return lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1])


def trained_by_hand(groups):
    """A model that made one optimizer step for each group of batches, on the mean of their losses."""
    model = make_model()
    optimizer = adamw(model)
    for group in groups:
        for x, y in group:
            (F.cross_entropy(model(x), y) / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def assert_equal_bits(model, other):
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def assert_close(model, other):
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)


def test_whole_groups_end_in_the_same_bits_as_a_hand_written_loop(engine_of):
    data, model = make_data(8), make_model()
    engine = engine_of(loss_step(model), GradientAccumulation(4), OptimizerStep(adamw(model)))
    assert engine.run(data, max_epochs=2).optimizer_step == 4
    assert_equal_bits(model, trained_by_hand([data[:4], data[4:]] * 2))


@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_last_incomplete_group_is_divided_by_its_own_number(engine_of, left, length):
    data, model = make_data(4 + left), make_model()
    engine = engine_of(loss_step(model), GradientAccumulation(4), OptimizerStep(adamw(model)))
    state = engine.run(data if length == "known" else iter(data), max_epochs=1)
    assert (state.iteration, state.optimizer_step) == (4 + left, 2)
    assert_equal_bits(model, trained_by_hand([data[:4], data[4:]]))


def test_a_last_group_of_three_of_four_agrees_up_to_rounding(engine_of):
    data, model = make_data(7), make_model()
    engine_of(loss_step(model), GradientAccumulation(4), OptimizerStep(adamw(model))).run(data)
    assert_close(model, trained_by_hand([data[:4], data[4:]]))


def test_each_epoch_begins_a_new_group(engine_of):
    data, model = make_data(5), make_model()
    engine = engine_of(loss_step(model), GradientAccumulation(4), OptimizerStep(adamw(model)))
    assert engine.run(data, max_epochs=3).optimizer_step == 6
    assert_equal_bits(model, trained_by_hand([data[:4], data[4:]] * 3))


def test_terminating_an_epoch_steps_the_group_under_way(engine_of):
    data, model = make_data(8), make_model()
    engine = engine_of(loss_step(model), GradientAccumulation(4), OptimizerStep(adamw(model)))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), engine.terminate_epoch)
    assert engine.run(data, max_epochs=1).optimizer_step == 2
    assert_equal_bits(model, trained_by_hand([data[:4], data[4:6]]))


@pytest.mark.parametrize("how", ["max_iters", "terminate"])
def test_ending_the_run_within_an_epoch_steps_the_group_under_way(engine_of, how):
    data, model = make_data(8), make_model()
    engine = engine_of(loss_step(model), GradientAccumulation(4), OptimizerStep(adamw(model)))
    if how == "terminate":
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), lambda engine: engine.terminate())
    engine.run(data, **({"max_iters": 6} if how == "max_iters" else {"max_epochs": 1}))
    assert engine.state.optimizer_step == 2
    assert_equal_bits(model, trained_by_hand([data[:4], data[4:6]]))


def test_a_skipped_batch_does_not_count_in_its_group(engine_of):
    data, model = make_data(5), make_model()

    def step(engine, batch):
        return None if batch is data[1] else loss_step(model)(engine, batch)

    engine = engine_of(step, GradientAccumulation(4), OptimizerStep(adamw(model)))
    assert engine.run(data).optimizer_step == 1
    assert_equal_bits(model, trained_by_hand([[data[0], *data[2:]]]))


def test_the_loss_in_the_output_is_that_of_the_batch_not_scaled(engine_of):
    data, model = make_data(4), make_model()
    losses = [loss_step(model)(None, batch).detach() for batch in data]
    engine, outputs = engine_of(loss_step(model), GradientAccumulation(4), OptimizerStep(adamw(model))), []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: outputs.append(engine.state.output))
    engine.run(data)
    assert torch.equal(torch.stack(outputs), torch.stack(losses))


class TestWeights:
    def batches_of_different_sizes(self):
        (x, y), *_ = make_data(1, 24)
        return (x, y), [(x[begin:end], y[begin:end]) for begin, end in ((0, 3), (3, 13), (13, 14), (14, 24))]

    @pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
    @pytest.mark.parametrize("group", [4, 8], ids=["whole group", "incomplete group"])
    def test_a_group_weighted_by_tokens_equals_one_big_batch(self, engine_of, as_tensor, group):
        whole, parts = self.batches_of_different_sizes()
        model = make_model()

        def step(engine, batch):
            tokens = torch.tensor(len(batch[0])) if as_tensor else len(batch[0])
            return {"loss": loss_step(model)(engine, batch), "tokens": tokens}

        gradients = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = engine_of(step, GradientAccumulation(group, weight="tokens"), OptimizerStep(optimizer))
        engine.add_event_handler(
            StepEvents.OPTIMIZER_STEP_STARTED,
            lambda: gradients.extend(parameter.grad.clone() for parameter in model.parameters()),
        )
        engine.run(parts, max_epochs=1)

        at_once = make_model()
        loss_step(at_once)(None, whole).backward()
        for gradient, parameter in zip(gradients, at_once.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-6)

    def test_each_group_has_its_own_total_weight(self, engine_of):
        _, parts = self.batches_of_different_sizes()
        model, again = make_model(), make_model()

        def step(engine, batch):
            return {"loss": loss_step(model)(engine, batch), "tokens": len(batch[0])}

        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        engine_of(step, GradientAccumulation(2, weight="tokens"), OptimizerStep(sgd)).run(parts)
        joined = [tuple(map(torch.cat, zip(*parts[begin : begin + 2], strict=True))) for begin in (0, 2)]
        engine_of(loss_step(again), OptimizerStep(torch.optim.SGD(again.parameters(), lr=0.1))).run(joined)
        assert_close(model, again)

    def test_called_by_hand_the_weight_is_passed_along(self, engine_of):
        whole, parts = self.batches_of_different_sizes()
        model, at_once = make_model(), make_model()
        update = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))

        def step(engine, batch):
            update(loss_step(model)(engine, batch), weight=len(batch[0]))

        engine_of(step, GradientAccumulation(4, weight="tokens"), update).run(parts)
        engine_of(loss_step(at_once), OptimizerStep(torch.optim.SGD(at_once.parameters(), lr=0.1))).run([whole])
        assert_close(model, at_once)

    @pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
    @pytest.mark.parametrize("group", [1, 2])
    def test_a_group_of_no_weight_at_all_makes_a_step_with_gradients_of_zero(self, engine_of, as_tensor, group):
        model, before = make_model(), make_model()
        weight = torch.tensor(0) if as_tensor else 0
        engine = engine_of(
            lambda engine, batch: {"loss": loss_step(model)(engine, batch), "tokens": weight},
            GradientAccumulation(group, weight="tokens"),
            OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)),
        )
        assert engine.run(make_data(2)).optimizer_step == 2 // group
        assert_equal_bits(model, before)

    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            (lambda loss: {"loss": loss, "words": 3}, r"'tokens'.*only \['loss', 'words'\]"),
            (lambda loss: loss, "'tokens'.*Return a mapping"),
        ],
        ids=["another key", "no mapping"],
    )
    def test_a_step_that_returns_no_weight_is_refused(self, engine_of, returned, words):
        model = make_model()
        engine = engine_of(
            lambda engine, batch: returned(loss_step(model)(engine, batch)),
            GradientAccumulation(4, weight="tokens"),
            OptimizerStep(adamw(model)),
        )
        with pytest.raises(ValueError, match=words):
            engine.run(make_data(1))

    def test_a_call_by_hand_without_the_weight_is_refused(self, engine_of):
        model = make_model()
        update = OptimizerStep(adamw(model))
        engine = engine_of(
            lambda engine, batch: update(loss_step(model)(engine, batch)),
            GradientAccumulation(4, weight="tokens"),
            update,
        )
        with pytest.raises(ValueError, match="pass weight="):
            engine.run(make_data(1))


class TestWhatIsRefused:
    @pytest.mark.parametrize("micro_batches", [0, -1, 2.0, True, "4"])
    def test_what_is_no_positive_integer_is_refused(self, micro_batches):
        with pytest.raises(ValueError, match=f"at least one micro-batch.*{micro_batches!r}"):
            GradientAccumulation(micro_batches)

    def test_without_an_optimizer_step_it_is_refused_when_the_run_starts(self, engine_of):
        engine = engine_of(loss_step(make_model()), GradientAccumulation(4))
        with pytest.raises(ValueError, match="needs an OptimizerStep"):
            engine.run(make_data(1))

    def test_around_a_step_that_does_its_own_backward_it_is_refused(self):
        model = make_model()
        trainer = create_supervised_trainer(model, adamw(model), F.cross_entropy)
        GradientAccumulation(4).attach(trainer)
        with pytest.raises(ValueError, match=r"OptimizerStep.*without its own backward"):
            trainer.run(make_data(1))

    def test_two_on_one_engine_are_refused_when_the_run_starts(self, engine_of):
        model = make_model()
        handlers = GradientAccumulation(4), GradientAccumulation(2), OptimizerStep(adamw(model))
        engine = engine_of(loss_step(model), *handlers)
        with pytest.raises(ValueError, match=r"2 GradientAccumulation handlers.*keep one"):
            engine.run(make_data(1))


def test_detaching_it_gives_a_step_for_each_batch_again(engine_of):
    data, model = make_data(8), make_model()
    accumulation = GradientAccumulation(4)
    engine = engine_of(loss_step(model), accumulation, OptimizerStep(adamw(model)))
    accumulation.detach(engine)
    assert engine.run(data).optimizer_step == 8
    assert_equal_bits(model, trained_by_hand([[batch] for batch in data]))
