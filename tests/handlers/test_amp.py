import pytest
import torch
from ignite.engine import create_supervised_evaluator, create_supervised_trainer
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Engine, Events, StepEvents
from camshaft.handlers import AMP, Evaluate, GradientAccumulation, GradientClipping, OptimizerStep


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def make_data(batches=8):
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(5, 3, generator=generator), torch.randint(2, (5,), generator=generator)) for _ in range(batches)
    ]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def loss_step(model):
    return lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1])


def assert_equal_bits(model, other):
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, expected)


class TestBf16:
    def trained_by_hand(self):
        model = make_model()
        optimizer = sgd(model)
        for x, y in make_data():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return model

    def test_a_run_ends_in_the_same_bits_as_a_hand_written_loop(self, engine_of):
        model = make_model()
        engine_of(loss_step(model), AMP("bf16"), OptimizerStep(sgd(model))).run(make_data())
        assert_equal_bits(model, self.trained_by_hand())

    def test_it_goes_around_a_whole_step_of_ignite_that_does_its_own_backward(self):
        model = make_model()
        trainer = create_supervised_trainer(model, sgd(model), F.cross_entropy)
        AMP("bf16").attach(trainer)
        trainer.run(make_data())
        assert_equal_bits(model, self.trained_by_hand())

    def test_it_goes_around_the_step_of_an_evaluator(self, engine_of):
        model = make_model()
        engine = engine_of(lambda engine, batch: model(batch[0]).dtype, AMP("bf16"))
        assert engine.run(make_data()).output == torch.bfloat16

    def test_handlers_compute_outside_of_it(self, engine_of):
        model, seen = make_model(), []
        engine = engine_of(loss_step(model), AMP("bf16"), OptimizerStep(sgd(model)))
        for event in (Events.ITERATION_STARTED, *StepEvents, Events.ITERATION_COMPLETED):
            engine.add_event_handler(event, lambda: seen.append(torch.is_autocast_enabled("cpu")))
        engine.run(make_data(1))
        assert seen == [False] * 8

    def test_backward_by_hand_computes_outside_of_it(self, engine_of):
        model, seen = make_model(), []
        update = OptimizerStep(sgd(model))

        def step(engine, batch):
            loss = loss_step(model)(engine, batch)
            update(loss)
            seen.append(("after", torch.is_autocast_enabled("cpu")))

        engine = engine_of(step, AMP("bf16"), update)
        engine.add_event_handler(
            StepEvents.BACKWARD_STARTED, lambda: seen.append(("backward", torch.is_autocast_enabled("cpu")))
        )
        engine.run(make_data(1))
        assert seen == [("backward", False), ("after", True)]

    def test_it_has_no_state(self):
        assert AMP("bf16").state_dict() == {}


class TestFp16:
    def test_a_run_ends_in_the_same_bits_as_a_hand_written_loop(self, engine_of):
        by_hand, model = make_model(), make_model()
        optimizer, scaler = sgd(by_hand), torch.amp.GradScaler("cpu")
        for x, y in make_data():
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(by_hand(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

        amp = AMP("fp16")
        engine_of(loss_step(model), OptimizerStep(sgd(model)), amp).run(make_data())
        assert_equal_bits(model, by_hand)
        assert amp.state_dict() == {"scalers": [scaler.state_dict()]}

    def test_accumulation_and_clipping_see_unscaled_gradients(self, engine_of):
        by_hand, model = make_model(), make_model()
        optimizer, scaler = sgd(by_hand), torch.amp.GradScaler("cpu")
        for i, (x, y) in enumerate(make_data()):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(by_hand(x), y)
            scaler.scale(loss / 4).backward()
            if i % 4 == 3:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

        handlers = GradientClipping(0.05), GradientAccumulation(4), AMP("fp16"), OptimizerStep(sgd(model))
        engine_of(loss_step(model), *handlers).run(make_data())
        assert_equal_bits(model, by_hand)

    def test_gradients_are_scaled_for_groups_of_the_present_run(self, engine_of):
        model, again = make_model(), make_model()
        accumulation, update = GradientAccumulation(4), OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        engine = engine_of(loss_step(model), AMP("fp16"), accumulation, update)
        engine.run(make_data(1))
        model.load_state_dict(again.state_dict())
        accumulation.detach(engine)
        engine.run(make_data(4))

        sgd = torch.optim.SGD(again.parameters(), lr=0.1)
        engine_of(loss_step(again), AMP("fp16"), OptimizerStep(sgd)).run(make_data(4))
        assert_equal_bits(model, again)

    def test_a_loss_in_half_precision_is_scaled_as_torch_does(self, engine_of):
        by_hand, model = make_model(), make_model()
        optimizer, scaler = sgd(by_hand), torch.amp.GradScaler("cpu", init_scale=2.0**14)
        for x, _ in make_data():
            with torch.autocast("cpu", dtype=torch.float16):
                loss = by_hand(x).mean()
            assert loss.dtype == torch.float16
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

        amp = AMP("fp16", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**14))
        engine_of(lambda engine, batch: model(batch[0]).mean(), amp, OptimizerStep(sgd(model))).run(make_data())
        assert_equal_bits(model, by_hand)

    def test_the_scale_grows_and_falls_back_and_a_step_that_overflowed_does_not_count(self, engine_of):
        model = make_model()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        amp, scales, completed = AMP("fp16", scaler=scaler), [], []

        def step(engine, batch):
            factor = float("inf") if engine.state.iteration == 3 else 1.0
            return loss_step(model)(engine, batch) * factor

        engine = engine_of(step, amp, OptimizerStep(sgd(model)))
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: scales.append(amp.state_dict()["scalers"][0]["scale"])
        )
        engine.add_event_handler(
            StepEvents.OPTIMIZER_STEP_COMPLETED, lambda: completed.append(engine.state.optimizer_step)
        )
        engine.run(make_data(5))
        assert scales == [8.0, 16.0, 8.0, 8.0, 16.0]
        assert completed == [1, 2, 3, 4]
        assert engine.state.optimizer_step == 4

    def test_a_schedule_attached_to_optimizer_steps_gives_no_warning_when_the_first_one_overflows(self, engine_of):
        model = make_model()
        optimizer = sgd(model)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

        def step(engine, batch):
            return loss_step(model)(engine, batch) * (float("inf") if engine.state.iteration == 1 else 1.0)

        engine = engine_of(step, AMP("fp16"), OptimizerStep(optimizer))
        engine.add_event_handler(StepEvents.OPTIMIZER_STEP_COMPLETED, lambda engine: schedule.step())
        engine.run(make_data(3))  # warnings are errors
        assert schedule.get_last_lr() == [0.1 * 0.5**2]

    def test_its_state_can_be_loaded_before_there_is_a_scaler(self, engine_of):
        model = make_model()
        kept = {"scalers": [torch.amp.GradScaler("cpu", init_scale=32.0).state_dict()]}
        amp = AMP("fp16")
        amp.load_state_dict(kept)
        engine_of(loss_step(model), amp, OptimizerStep(sgd(model))).run(make_data(1))
        assert amp.state_dict()["scalers"][0]["scale"] == 32.0

    def test_its_state_can_be_loaded_when_the_run_has_started(self, engine_of):
        model = make_model()
        kept = {"scalers": [torch.amp.GradScaler("cpu", init_scale=32.0).state_dict()]}
        amp = AMP("fp16")
        engine = engine_of(loss_step(model), amp, OptimizerStep(sgd(model)))
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: amp.load_state_dict(kept))
        engine.run(make_data(1))
        assert amp.state_dict()["scalers"][0]["scale"] == 32.0

    def test_an_evaluator_needs_no_optimizer_step(self, engine_of):
        model = make_model()
        evaluator = engine_of(lambda engine, batch: model(batch[0]).dtype, AMP("fp16"))
        trainer = Engine(lambda engine, batch: None).attach(Evaluate(evaluator, make_data()))
        trainer.run([0])
        assert evaluator.state.output == torch.float16

    def test_around_a_step_that_does_its_own_backward_it_is_refused_when_the_run_starts(self):
        model = make_model()
        trainer = create_supervised_trainer(model, sgd(model), F.cross_entropy)
        AMP("fp16").attach(trainer)
        with pytest.raises(ValueError, match=r"own the backward: attach OptimizerStep.*or use AMP\('bf16'\)"):
            trainer.run(make_data())


def test_an_evaluator_of_ignite_predicts_in_the_precision_asked_for():
    model = make_model()
    evaluator = create_supervised_evaluator(model, output_transform=lambda x, y, y_pred: y_pred.dtype)
    AMP("bf16").attach(evaluator)
    assert evaluator.run(make_data()).output == torch.bfloat16


def test_detaching_it_restores_the_precision_of_the_step(engine_of):
    model, amp = make_model(), AMP("fp16")
    dtypes = []

    def step(engine, batch):
        logits = model(batch[0])
        dtypes.append(logits.dtype)
        return F.cross_entropy(logits, batch[1])

    engine = engine_of(step, amp, OptimizerStep(sgd(model)))
    engine.run(make_data(1))
    amp.detach(engine)
    engine.run(make_data(1))
    assert dtypes == [torch.float16, torch.float32]


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'bf16' and 'fp16', not 'fp8'"):
        AMP("fp8")


def test_a_scaler_for_bf16_is_refused():
    with pytest.raises(ValueError, match=r"goes with AMP\('fp16'\)"):
        AMP("bf16", scaler=torch.amp.GradScaler("cpu"))


def test_two_on_one_engine_are_refused_when_the_run_starts(engine_of):
    engine = engine_of(lambda engine, batch: None, AMP("bf16"), AMP("bf16"))
    with pytest.raises(ValueError, match=r"2 AMP handlers.*keep one"):
        engine.run([0])
