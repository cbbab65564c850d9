import io

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from camshaft.engine import Engine, Events
from camshaft.handlers import AMP, Evaluate, GradientAccumulation, LRScheduler, OptimizerStep

BATCH = torch.ones(4, 2), torch.zeros(4, 1)


def make(lr=1.0):
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def loss_step(model):
    return lambda engine, batch: F.mse_loss(model(batch[0]), batch[1])


def halving(optimizer):
    return ExponentialLR(optimizer, gamma=0.5)


def lr_of(optimizer):
    return optimizer.param_groups[0]["lr"]


class TestPerEpoch:
    def test_steps_once_an_epoch_by_default(self, engine_of):
        model, optimizer = make()
        engine_of(loss_step(model), LRScheduler(halving(optimizer)), OptimizerStep(optimizer)).run(
            [BATCH] * 4, max_epochs=3
        )
        assert lr_of(optimizer) == 0.5**3

    def test_steps_after_the_last_group_of_the_epoch(self, engine_of):
        model, optimizer = make()
        handlers = LRScheduler(halving(optimizer)), GradientAccumulation(3), OptimizerStep(optimizer)
        engine = engine_of(loss_step(model), *handlers)
        used = []
        optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(lr_of(optimizer)))
        engine.run([BATCH] * 4, max_epochs=2)
        assert used == [1.0, 1.0, 0.5, 0.5]

    def test_works_on_an_engine_whose_step_steps_its_optimizer_itself(self):
        model, optimizer = make()
        trainer = create_supervised_trainer(model, optimizer, F.mse_loss)
        LRScheduler(halving(optimizer)).attach(trainer)
        trainer.run([BATCH] * 4, max_epochs=3)
        assert lr_of(optimizer) == 0.5**3


class TestPerStep:
    def test_steps_after_each_optimizer_step_and_not_after_each_micro_batch(self, engine_of):
        model, optimizer = make()
        handlers = LRScheduler(halving(optimizer), per="step"), GradientAccumulation(2), OptimizerStep(optimizer)
        engine_of(loss_step(model), *handlers).run([BATCH] * 5)
        assert lr_of(optimizer) == 0.5**3  # 2 whole groups and a last of 1

    def test_reads_its_value_before_the_next_step_of_the_optimizer(self, engine_of):
        model, optimizer = make()
        engine = engine_of(loss_step(model), LRScheduler(halving(optimizer), per="step"), OptimizerStep(optimizer))
        used = []
        optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(lr_of(optimizer)))
        engine.run([BATCH] * 3)
        assert used == [1.0, 0.5, 0.25]

    def test_counts_iterations_of_a_step_that_steps_its_optimizer_in_each(self):
        model, optimizer = make()
        trainer = create_supervised_trainer(model, optimizer, F.mse_loss)
        LRScheduler(halving(optimizer), "step").attach(trainer)
        trainer.run([BATCH] * 4)
        assert lr_of(optimizer) == 0.5**4

    def test_counts_optimizer_steps_of_a_step_that_accumulates_gradients_itself(self):
        model, optimizer = make()
        trainer = create_supervised_trainer(model, optimizer, F.mse_loss, gradient_accumulation_steps=2)
        LRScheduler(halving(optimizer), per="step").attach(trainer)
        trainer.run([BATCH] * 4)
        assert lr_of(optimizer) == 0.5**2

    def test_follows_only_its_own_optimizer(self, engine_of):
        often, optimizer_often = make()
        seldom, optimizer_seldom = make()
        step_often, step_seldom = OptimizerStep(optimizer_often), OptimizerStep(optimizer_seldom)

        def step(engine, batch):
            step_often(loss_step(often)(engine, batch))
            if engine.state.iteration % 3 == 0:
                step_seldom(loss_step(seldom)(engine, batch))

        schedules = [LRScheduler(halving(optimizer), per="step") for optimizer in (optimizer_often, optimizer_seldom)]
        engine_of(step, *schedules, step_often, step_seldom).run([BATCH] * 6)
        assert (lr_of(optimizer_often), lr_of(optimizer_seldom)) == (0.5**6, 0.5**2)

    def test_does_not_count_steps_that_are_skipped_for_an_overflow_nor_warns_of_them(self, engine_of):
        model, optimizer = make(lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125, backoff_factor=2.0**-120)
        amp = AMP("fp16", scaler=scaler)
        handlers = LRScheduler(halving(optimizer), per="step"), amp, OptimizerStep(optimizer)
        engine = engine_of(loss_step(model), *handlers)
        engine.run([BATCH] * 3)
        assert lr_of(optimizer) == 1e-3 * 0.5**2  # the first overflowed

    def test_with_skipped_batches_counts_the_others(self, engine_of):
        model, optimizer = make()

        def step(engine, batch):
            return None if engine.state.iteration == 1 else loss_step(model)(engine, batch)

        engine_of(step, LRScheduler(halving(optimizer), per="step"), OptimizerStep(optimizer)).run([BATCH] * 3)
        assert lr_of(optimizer) == 0.5**2

    def test_leaves_the_optimizer_alone_after_it_is_detached(self, engine_of):
        model, optimizer = make()
        schedule = LRScheduler(halving(optimizer), per="step")
        engine = engine_of(loss_step(model), schedule, OptimizerStep(optimizer))
        schedule.detach(engine)
        engine.run([BATCH] * 3)
        assert lr_of(optimizer) == 1.0
        assert not optimizer._optimizer_step_post_hooks


class TestAtAnEvent:
    def test_steps_there_and_only_there(self, engine_of):
        model, optimizer = make()
        schedule = LRScheduler(halving(optimizer), at=Events.ITERATION_COMPLETED(every=4))
        engine_of(loss_step(model), schedule, OptimizerStep(optimizer)).run([BATCH] * 9)
        assert lr_of(optimizer) == 0.5**2


def evaluator_giving(values):
    """An evaluator whose loss is the next of ``values`` each time that it runs."""
    evaluator, values = Engine(lambda engine, batch: None), iter(values)
    evaluator.add_event_handler(Events.COMPLETED, lambda engine: engine.state.metrics.update(loss=next(values)))
    return evaluator


class TestOnAPlateau:
    def rates(self, engine_of, values, at=Events.EPOCH_COMPLETED):
        """The learning rate in each of eight epochs, halved when the validation loss has not improved."""
        model, optimizer = make()
        schedule = LRScheduler(ReduceLROnPlateau(optimizer, factor=0.5, patience=0), monitor="val_loss")
        evaluate = Evaluate(evaluator_giving(values), [0], at=at, modules=[model])
        engine = engine_of(loss_step(model), schedule, OptimizerStep(optimizer), evaluate)
        used = []
        optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(lr_of(optimizer)))
        engine.run([BATCH], max_epochs=8)
        return used

    def test_steps_with_the_monitored_value(self, engine_of):
        values = [1.0, 0.9, 0.95, 0.8, 0.85, 0.8, 0.7, 0.6]
        assert self.rates(engine_of, values) == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.125, 0.125]

    def test_takes_no_value_twice(self, engine_of):
        rates = self.rates(engine_of, [1.0, 0.9, 1.0, 0.8], at=Events.EPOCH_COMPLETED(every=2))
        assert rates == [1.0] * 6 + [0.5] * 2

    def test_takes_the_values_of_a_new_run_of_the_same_engine(self, engine_of):
        model, optimizer = make()
        schedule = LRScheduler(ReduceLROnPlateau(optimizer, factor=0.5, patience=0), monitor="val_loss")
        evaluate = Evaluate(evaluator_giving([1.0, 2.0, 3.0]), [0], modules=[model])
        engine = engine_of(loss_step(model), schedule, OptimizerStep(optimizer), evaluate)
        rates = []
        for _ in range(3):  # each ends at the same iteration
            engine.run([BATCH])
            rates.append(lr_of(optimizer))
        assert rates == [1.0, 0.5, 0.25]

    def test_complains_after_the_first_epoch_of_a_value_that_nothing_produces(self, engine_of):
        model, optimizer = make()
        schedule = LRScheduler(ReduceLROnPlateau(optimizer), monitor="val_loss")
        engine = engine_of(loss_step(model), OptimizerStep(optimizer), schedule)
        with pytest.raises(ValueError, match=r"'val_loss' is monitored, but nothing .* There is: 'loss'"):
            engine.run([BATCH] * 3, max_epochs=2)
        assert engine.state.epoch == 1

    def test_refuses_to_be_without_a_name(self):
        with pytest.raises(ValueError, match="monitor='val_loss'"):
            LRScheduler(ReduceLROnPlateau(make()[1]))

    def test_refuses_to_step_in_the_middle_of_an_iteration(self):
        with pytest.raises(ValueError, match=r"at=Events.ITERATION_COMPLETED\(every=100\)"):
            LRScheduler(ReduceLROnPlateau(make()[1]), per="step", monitor="loss")


SCHEDULERS = [
    lambda optimizer: StepLR(optimizer, 3),
    lambda optimizer: MultiStepLR(optimizer, [2, 5]),
    lambda optimizer: CosineAnnealingLR(optimizer, 10),
    lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=20),
    lambda optimizer: SequentialLR(optimizer, [LinearLR(optimizer), CosineAnnealingLR(optimizer, 9)], milestones=[3]),
    lambda optimizer: ChainedScheduler([LinearLR(optimizer), halving(optimizer)]),
]


class TestState:
    @pytest.mark.parametrize("make_scheduler", SCHEDULERS)
    def test_lets_a_schedule_go_on_to_the_bit(self, engine_of, make_scheduler):
        def run(iterations, state=None):
            model, optimizer = make(lr=0.1)
            schedule = LRScheduler(make_scheduler(optimizer), per="step")
            engine = engine_of(loss_step(model), schedule, OptimizerStep(optimizer))
            if state is not None:
                optimizer.load_state_dict(state["optimizer"])
                schedule.load_state_dict(state["schedule"])
            used = []
            optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(lr_of(optimizer)))
            engine.run([BATCH], max_iters=iterations)
            file = io.BytesIO()
            torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, file)
            file.seek(0)
            return used, torch.load(file, weights_only=True)

        first, state = run(4)
        assert first + run(6, state)[0] == run(10)[0]

    def test_keeps_the_best_value_of_a_plateau(self):
        def plateau():
            return LRScheduler(ReduceLROnPlateau(make()[1], patience=5), monitor="loss")

        schedule, resumed = plateau(), plateau()
        schedule.scheduler.step(0.3)
        schedule.scheduler.step(0.4)
        resumed.load_state_dict(schedule.state_dict())
        assert (resumed.scheduler.best, resumed.scheduler.num_bad_epochs) == (0.3, 1)


class TestContradictions:
    def test_a_monitor_without_a_plateau_is_refused(self):
        with pytest.raises(ValueError, match="StepLR follows a schedule and no value"):
            LRScheduler(StepLR(make()[1], 1), monitor="val_loss")

    def test_two_ways_to_say_when_are_refused(self):
        with pytest.raises(ValueError, match="per='step' goes with neither at="):
            LRScheduler(StepLR(make()[1], 1), per="step", at=Events.STARTED)

    def test_an_unknown_rhythm_is_refused(self):
        with pytest.raises(ValueError, match="per 'epoch' or per 'step', not per 'batch'"):
            LRScheduler(StepLR(make()[1], 1), per="batch")

    def test_what_is_no_scheduler_is_refused(self):
        with pytest.raises(TypeError, match=r"a scheduler of torch.optim.lr_scheduler, but got 0.1"):
            LRScheduler(0.1)

    def test_the_schedule_of_an_optimizer_that_nobody_steps_is_refused(self, engine_of):
        model, optimizer = make()
        engine = engine_of(loss_step(model), OptimizerStep(optimizer), LRScheduler(StepLR(make()[1], 1)))
        with pytest.raises(ValueError, match="an optimizer that no OptimizerStep on this engine steps"):
            engine.run([BATCH])

    def test_two_schedules_of_one_optimizer_at_one_event_are_refused(self, engine_of):
        model, optimizer = make()
        schedules = LRScheduler(StepLR(optimizer, 1)), LRScheduler(halving(optimizer))
        engine = engine_of(loss_step(model), OptimizerStep(optimizer), *schedules)
        with pytest.raises(ValueError, match="EPOCH_COMPLETED, where their order would matter"):
            engine.run([BATCH])

    def test_a_warm_up_per_step_and_a_plateau_per_epoch_go_together(self, engine_of):
        model, optimizer = make()
        warm_up = LRScheduler(LinearLR(optimizer, 0.5, total_iters=2), per="step")
        plateau = LRScheduler(ReduceLROnPlateau(optimizer, factor=0.5, patience=0), monitor="constant")
        engine = engine_of(loss_step(model), OptimizerStep(optimizer), plateau, warm_up)
        engine.state.metrics["constant"] = 1.0
        engine.run([BATCH] * 3, max_epochs=3)
        assert lr_of(optimizer) == pytest.approx(0.25)
