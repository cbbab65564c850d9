"""Exact resume: whatever is attached, a run that was killed and started again ends in the same bits."""

import random

import ignite.handlers
import numpy as np
import pytest
import torch
import torchmetrics
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import Accuracy, Loss, RunningAverage
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from camshaft.engine import Engine, Events
from camshaft.handlers import (
    AMP,
    EMA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Evaluate,
    GradientAccumulation,
    GradientClipping,
    LRScheduler,
    Metrics,
    OptimizerStep,
    TimeLimit,
)
from tests.resumption import differences_after_kills, outcome_in, run

OFTEN = Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED


def data(samples=24):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 4, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


class Study:
    """A classifier with dropout, its loaders and its evaluator, for programs to attach handlers to."""

    def __init__(self, engine_class=Engine, lr=0.05):
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr)
        self.loader = DataLoader(data(), 4, shuffle=True)
        self.engine = engine_class(lambda engine, batch: F.cross_entropy(self.model(batch[0]), batch[1]))
        self.evaluator = Engine(lambda engine, batch: (self.model(batch[0]) + 0.01 * torch.randn(2), batch[1]))
        self.evaluator.attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)))
        self.validation = DataLoader(data(8), 4, shuffle=True)

    def checkpoint(self, directory, **options):
        return Checkpoint(directory, **{"at": OFTEN, "model": self.model, "optimizer": self.optimizer, **options})

    def attach(self, *handlers):
        for handler in handlers:
            handler.attach(self.engine)

    def run_with(self, **arguments):
        return self.engine, {"data": self.loader, "max_epochs": 2, **arguments}


def test_the_whole_of_training(tmp_path):
    def program(directory):
        study = Study()
        ema = EMA(study.model, decay=0.9)
        study.attach(
            OptimizerStep(study.optimizer),
            GradientAccumulation(4),  # 6 micro-batches an epoch: a group that is incomplete when it ends
            GradientClipping(0.5),
            ema,
            LRScheduler(torch.optim.lr_scheduler.ReduceLROnPlateau(study.optimizer, patience=0), monitor="val_loss"),
            Evaluate(study.evaluator, study.validation, ema=ema),
            EarlyStopping("val_accuracy", patience=2, restore_best=True),
            study.checkpoint(directory, monitor="val_accuracy"),
            CSVLogger(directory, every=2),
        )
        return study.run_with(max_epochs=4)

    assert differences_after_kills(program, tmp_path) == []


def test_an_overflow_of_the_gradient_scaler(tmp_path):
    def program(directory):
        study = Study()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=3)
        study.attach(
            AMP("fp16", scaler=scaler),
            GradientAccumulation(2),
            LRScheduler(torch.optim.lr_scheduler.StepLR(study.optimizer, 2), per="step"),
            OptimizerStep(study.optimizer),
            study.checkpoint(directory),
        )
        return study.run_with()

    assert differences_after_kills(program, tmp_path) == []


@pytest.mark.parametrize("swapped", [False, True], ids=["", "attached in another order"])
def test_two_optimizers_that_the_step_calls(tmp_path, swapped):
    attached = [0]

    def program(directory):
        study = Study()
        critic = nn.Linear(4, 1)
        critic_step = OptimizerStep(torch.optim.Adam(critic.parameters(), 0.01))
        model_step = OptimizerStep(study.optimizer)

        def step(engine, batch):
            critic_step(critic(batch[0]).square().mean())
            if engine.state.iteration % 2:
                model_step(F.cross_entropy(study.model(batch[0]) + critic(batch[0]), batch[1]))

        study.engine = Engine(step)
        checkpoint = study.checkpoint(directory, critic=critic, critic_optimizer=critic_step.optimizers[0])
        attached[0] += 1
        steps = [critic_step, model_step]
        study.attach(*(reversed(steps) if swapped and attached[0] % 2 else steps), GradientAccumulation(2), checkpoint)
        return study.run_with()

    assert differences_after_kills(program, tmp_path) == []


def test_a_validation_in_the_midst_of_an_epoch_and_values_that_are_read_later(tmp_path):
    def program(directory):
        study = Study()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(study.optimizer, patience=0)
        study.attach(
            OptimizerStep(study.optimizer),
            Evaluate(study.evaluator, study.validation, at=Events.ITERATION_COMPLETED(every=3)),
            LRScheduler(plateau, monitor="val_loss", at=Events.ITERATION_COMPLETED(every=4)),
            EarlyStopping("val_loss", patience=3, at=Events.ITERATION_COMPLETED(every=2)),
            study.checkpoint(directory, monitor="val_loss"),
            CSVLogger(directory, every=5),
        )
        return study.run_with(max_epochs=3)

    assert differences_after_kills(program, tmp_path) == []


def test_metrics_of_the_training_itself(tmp_path):
    def program(directory):
        study = Study()
        study.engine = Engine(
            lambda engine, batch: {
                "loss": F.cross_entropy(study.model(batch[0]), batch[1]),
                "y_pred": study.model(batch[0]),
                "y": batch[1],
            }
        )
        metrics = {
            "accuracy": Accuracy(),
            "f1": torchmetrics.F1Score("multiclass", num_classes=2),
            "loss_on_average": RunningAverage(output_transform=lambda output: output["loss"]),
        }
        study.attach(
            Metrics(metrics), OptimizerStep(study.optimizer), study.checkpoint(directory), CSVLogger(directory)
        )
        return study.run_with()

    assert differences_after_kills(program, tmp_path) == []


ENDS = {
    "max_iters": {"max_epochs": None, "max_iters": 9},
    "max_iters at the end of an epoch": {"max_epochs": None, "max_iters": 12},
}


@pytest.mark.parametrize("arguments", ENDS.values(), ids=ENDS)
def test_a_run_that_ends_by(tmp_path, arguments):
    def program(directory):
        study = Study()
        validation = Evaluate(study.evaluator, study.validation)
        study.attach(OptimizerStep(study.optimizer), validation, study.checkpoint(directory), CSVLogger(directory))
        return study.run_with(**arguments)

    assert differences_after_kills(program, tmp_path) == []


def test_epochs_that_are_cut_short_and_a_run_that_is_terminated_within_one(tmp_path):
    def program(directory):
        study = Study()
        study.attach(OptimizerStep(study.optimizer), study.checkpoint(directory), CSVLogger(directory, every=1))
        study.engine.add_event_handler(
            Events.ITERATION_COMPLETED(event_filter=lambda engine, i: i in (2, 7)),
            lambda engine: engine.terminate_epoch(),
        )
        study.engine.add_event_handler(Events.ITERATION_COMPLETED(once=12), lambda engine: engine.terminate())
        return study.run_with(max_epochs=9)

    assert differences_after_kills(program, tmp_path) == []


def test_generators_of_the_step_and_of_its_evaluator(tmp_path):
    def program(directory):
        study = Study()
        generators = {"torch": torch.Generator(), "numpy": np.random.default_rng(3), "python": random.Random(3)}

        def step(engine, batch):
            noise = torch.rand(1, generator=generators["torch"]) + generators["numpy"].random()
            return F.cross_entropy(study.model(batch[0]) * noise * generators["python"].random(), batch[1])

        study.engine = Engine(step)
        own = torch.Generator()
        study.evaluator._process_function = lambda engine, batch: (
            study.model(batch[0]) + torch.rand(2, generator=own),
            batch[1],
        )
        validation = DataLoader(data(8), 4, shuffle=True, generator=torch.Generator())
        evaluate = Evaluate(study.evaluator, validation)
        study.attach(OptimizerStep(study.optimizer), evaluate, study.checkpoint(directory), CSVLogger(directory))
        return study.run_with()

    assert differences_after_kills(program, tmp_path) == []


def test_ignites_own_handlers(tmp_path):
    def program(directory):
        study = Study()
        schedule = ignite.handlers.CosineAnnealingScheduler(study.optimizer, "lr", 0.05, 0.001, 5)
        study.engine.add_event_handler(Events.ITERATION_STARTED, schedule)
        stopping = ignite.handlers.EarlyStopping(1, lambda engine: engine.state.metrics["accuracy"], study.engine)
        study.evaluator.add_event_handler(Events.COMPLETED, stopping)
        RunningAverage(output_transform=lambda loss: loss).attach(study.engine, "loss_on_average")
        study.attach(
            OptimizerStep(study.optimizer), Evaluate(study.evaluator, study.validation), study.checkpoint(directory)
        )
        return study.run_with(max_epochs=4)

    assert differences_after_kills(program, tmp_path) == []


def test_lines_of_metrics_that_a_function_of_the_user_makes_at_any_time(tmp_path):
    def program(directory):
        study = Study()
        study.attach(OptimizerStep(study.optimizer), study.checkpoint(directory), CSVLogger(directory, every=4))

        @study.engine.on(Events.ITERATION_COMPLETED(every=3))
        def measure(engine):
            engine.state.metrics["norm"] = study.model[0].weight.norm().item()

        return study.run_with()

    assert differences_after_kills(program, tmp_path) == []


@pytest.mark.parametrize(
    "at", [Events.EPOCH_COMPLETED, Events.EPOCH_COMPLETED(every=2), Events.ITERATION_COMPLETED(every=4)]
)
def test_checkpoints_that_are_more_seldom(tmp_path, at):
    def program(directory):
        study = Study()
        evaluate = Evaluate(study.evaluator, study.validation)
        checkpoint = study.checkpoint(directory, at=at)
        study.attach(OptimizerStep(study.optimizer), evaluate, checkpoint, CSVLogger(directory, every=1))
        return study.run_with(max_epochs=3)

    assert differences_after_kills(program, tmp_path) == []


def test_writing_in_the_background(tmp_path):
    def program(directory):
        study = Study()
        study.attach(
            OptimizerStep(study.optimizer), study.checkpoint(directory, asynchronous=True), CSVLogger(directory)
        )
        return study.run_with()

    assert differences_after_kills(program, tmp_path) == []


def test_a_stock_engine_of_ignite_whose_step_does_everything(tmp_path):
    def program(directory):
        study = Study()

        def step(engine, batch):
            study.optimizer.zero_grad()
            loss = F.cross_entropy(study.model(batch[0]), batch[1])
            loss.backward()
            study.optimizer.step()
            return loss.item()

        study.engine = IgniteEngine(step)
        schedule = torch.optim.lr_scheduler.StepLR(study.optimizer, 1, 0.5)
        study.attach(
            study.checkpoint(directory),
            Evaluate(study.evaluator, study.validation),
            EarlyStopping("val_loss", patience=2),
            LRScheduler(schedule, at=Events.EPOCH_COMPLETED),
            CSVLogger(directory, every=2),
        )
        return study.run_with(max_epochs=4)

    assert differences_after_kills(program, tmp_path) == []


@pytest.mark.parametrize("arguments", [*ENDS.values(), {"epoch_length": 5}], ids=[*ENDS, "another length"])
def test_a_stock_engine_with_step_handlers(tmp_path, arguments):
    def program(directory):
        study = Study(IgniteEngine)
        study.attach(
            OptimizerStep(study.optimizer),
            GradientAccumulation(4),
            EMA(study.model, 0.9),
            Evaluate(study.evaluator, study.validation),
            study.checkpoint(directory),
            CSVLogger(directory, every=2),
        )
        return study.run_with(**arguments)

    assert differences_after_kills(program, tmp_path) == []


class TestARunThatIsFinished:
    def program(self, max_epochs, **stopping):
        def program(directory):
            study = Study()
            study.attach(
                OptimizerStep(study.optimizer),
                Evaluate(study.evaluator, study.validation),
                EarlyStopping("val_loss", **{"patience": 20, "restore_best": True, **stopping}),
                study.checkpoint(directory),
                CSVLogger(directory, every=2),
            )
            return study.run_with(max_epochs=max_epochs)

        return program

    def test_goes_on_to_a_longer_one_as_if_it_had_been_longer_from_the_beginning(self, tmp_path):
        worst = {"mode": "max"}  # so that the weights which are brought back at the end are not the last
        run(self.program(4, **worst), tmp_path / "long")
        run(self.program(2, **worst), tmp_path / "short")
        run(self.program(4, **worst), tmp_path / "short", seed=2)
        long, short = outcome_in(tmp_path / "long"), outcome_in(tmp_path / "short")
        assert long["logs"] == short["logs"]
        assert all(torch.equal(long["model"][name], short["model"][name]) for name in long["model"])

    def test_stays_finished_otherwise_with_all_its_results(self, tmp_path, caplog):
        first = run(self.program(2), tmp_path)
        before = outcome_in(tmp_path)
        again = run(self.program(2), tmp_path, seed=2)
        assert (again.state.epoch, again.state.iteration) == (2, 12)
        assert again.state.metrics == first.state.metrics
        assert "is finished (epoch 2, iteration 12): nothing to do. Pass a larger max_epochs" in caplog.text
        assert outcome_in(tmp_path)["logs"] == before["logs"]

    def test_that_was_stopped_early_stays_so_even_if_more_epochs_are_asked_for(self, tmp_path):
        ended = run(self.program(50, patience=1, min_delta=9.0), tmp_path).state.epoch
        assert ended < 50
        assert run(self.program(60, patience=1, min_delta=9.0), tmp_path).state.epoch == ended

    def test_that_was_stopped_early_says_so_and_that_more_epochs_change_nothing(self, tmp_path, caplog):
        for epochs in (50, 60):
            run(self.program(epochs, patience=1, min_delta=9.0), tmp_path)
        assert "EarlyStopping ended it, so a larger max_epochs changes nothing. Choose another directory" in caplog.text
        assert "Pass a larger max_epochs" not in caplog.text

    def test_that_the_program_ended_says_so(self, tmp_path, caplog):
        for _ in range(2):
            study = Study()
            study.attach(OptimizerStep(study.optimizer), study.checkpoint(tmp_path))
            study.engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda engine: engine.terminate())
            study.engine.run(study.loader, max_epochs=5)
        assert "nothing to do. The program or a handler ended it, so a larger max_epochs" in caplog.text


class TestWhatIsTold:
    def of_a_run_that_was_stopped(self, directory, caplog, *, after, lr=0.05, schedule=False, **options):
        """What a run tells that goes on after one of a learning rate of 0.05 that an error has ended."""
        for rate in (0.05, lr):
            caplog.clear()
            study = Study(lr=rate)
            if schedule:
                study.attach(LRScheduler(torch.optim.lr_scheduler.StepLR(study.optimizer, 1, 0.5), per="epoch"))
            study.attach(OptimizerStep(study.optimizer), study.checkpoint(directory, **options))
            study.engine.add_event_handler(Events.ITERATION_STARTED(once=after + 1), self.fail)
            with pytest.raises(ZeroDivisionError):
                study.engine.run(study.loader, max_epochs=3)
            after += 1
        return [message for message in caplog.messages if message.startswith("Going on")]

    def fail(self):
        raise ZeroDivisionError

    def test_is_where_a_run_goes_on_within_an_epoch(self, tmp_path, caplog):
        told = self.of_a_run_that_was_stopped(tmp_path / "k2", caplog, after=8)
        assert told == [f"Going on with {tmp_path / 'k2'} in epoch 2 after batch 2 of 6 (iteration 8)."]

    def test_is_where_a_run_goes_on_between_two_epochs(self, tmp_path, caplog):
        told = self.of_a_run_that_was_stopped(tmp_path, caplog, after=8, at=Events.EPOCH_COMPLETED)
        assert told == [f"Going on with {tmp_path} after epoch 1 (iteration 6)."]

    def test_is_a_learning_rate_that_the_program_now_gives_in_vain(self, tmp_path, caplog):
        self.of_a_run_that_was_stopped(tmp_path, caplog, after=8, lr=1e-4)
        line = "'optimizer': the run began with lr 0.05 and the program now has 0.0001; what the checkpoint holds is"
        assert f"{line} taken." in caplog.messages

    def test_is_no_learning_rate_that_a_schedule_has_changed(self, tmp_path, caplog):
        assert self.of_a_run_that_was_stopped(tmp_path, caplog, after=13, schedule=True)
        assert "the run began with lr" not in caplog.text


@pytest.mark.parametrize("ended_at", [4, 6, 8])
@pytest.mark.parametrize("save_at", [OFTEN, Events.EPOCH_COMPLETED], ids=["often", "each epoch"])
def test_a_run_that_a_time_limit_has_ended_goes_on_with_a_larger_one(tmp_path, ended_at, save_at):
    def program(limited):
        def build(directory):
            study = Study()
            limit = TimeLimit("1h")
            study.attach(
                OptimizerStep(study.optimizer),
                GradientAccumulation(4),
                Evaluate(study.evaluator, study.validation),
                study.checkpoint(directory, at=save_at, monitor="val_loss"),
                CSVLogger(directory, every=1),
                limit,
            )
            if limited:
                time_is_over = Events.ITERATION_COMPLETED(once=ended_at)
                study.engine.add_event_handler(time_is_over, lambda: setattr(limit, "limit", 1e-9))
            return study.run_with()

        return build

    run(program(limited=False), tmp_path / "unlimited")
    ended = run(program(limited=True), tmp_path / "limited")
    assert ended.state.iteration == ended_at
    run(program(limited=False), tmp_path / "limited", seed=2)
    unlimited, limited = outcome_in(tmp_path / "unlimited"), outcome_in(tmp_path / "limited")
    assert all(torch.equal(unlimited["model"][name], limited["model"][name]) for name in unlimited["model"])
    assert limited["logs"] == unlimited["logs"]


def test_the_same_engine_that_runs_again_goes_on_with_what_is_in_memory(tmp_path, engine_class):
    study = Study(engine_class)
    study.attach(OptimizerStep(study.optimizer), study.checkpoint(tmp_path))
    engine, arguments = study.run_with()
    engine.run(**arguments)
    with torch.no_grad():
        study.model[0].weight.fill_(1.0)
    engine.run(study.loader, max_epochs=3)
    assert engine.state.iteration == 18
    assert (study.model[0].weight > 0.5).all()


def test_the_seed_of_the_run_is_in_the_checkpoint(tmp_path):
    study = Study()
    study.attach(OptimizerStep(study.optimizer), study.checkpoint(tmp_path))
    torch.manual_seed(1234)
    engine, arguments = study.run_with()
    engine.run(**arguments)
    assert outcome_in(tmp_path)["camshaft"]["seed"] == 1234
