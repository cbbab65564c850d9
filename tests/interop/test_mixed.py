"""Ignite's handlers and ours on one engine, whichever of the two engines it is."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine
from ignite.engine import Events
from ignite.handlers import Checkpoint as IgniteCheckpoint
from ignite.handlers import DiskSaver, EMAHandler, PiecewiseLinear, global_step_from_engine
from ignite.handlers import EarlyStopping as IgniteEarlyStopping
from ignite.handlers import TerminateOnNan as IgniteTerminateOnNan
from ignite.metrics import Accuracy, RunningAverage
from torch.nn import functional as F

from camshaft.engine import Engine
from camshaft.handlers import (
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
    ProgressBar,
)
from tests.interop.test_ignite_handlers_on_our_engine import contents_of
from tests.interop.training import Training, batches


class Mixed(Training):
    """A training whose step returns the loss; ``OptimizerStep`` does the rest."""

    def __init__(self, engine_class: Any, *handlers: Any) -> None:
        super().__init__(engine_class)
        for handler in (OptimizerStep(self.optimizer), *handlers):
            handler.attach(self.trainer)

    def training_step(self, engine: Any, batch: Any) -> Any:
        x, y = batch
        self.model.train()
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, y), "y_pred": logits, "y": y}

    def lines(self, directory: Path) -> list[dict[str, str]]:
        with (directory / "metrics.csv").open() as file:
            return [{name: value for name, value in line.items() if name != "time"} for line in csv.DictReader(file)]


def test_all_of_a_training_is_shared_between_the_two(outcome_of) -> None:
    """Ignite schedules, averages, guards and saves; ours steps, accumulates, clips, validates, stops and logs."""

    def program(engine_class, directory):
        training = Mixed(engine_class, GradientAccumulation(2), GradientClipping(1.0))
        Metrics(accuracy=Accuracy()).attach(training.evaluator)
        trainer = training.trainer
        trainer.add_event_handler(Events.ITERATION_COMPLETED, IgniteTerminateOnNan(lambda output: output["loss"]))
        trainer.add_event_handler(
            Events.ITERATION_STARTED, PiecewiseLinear(training.optimizer, "lr", [(0, 0.2), (30, 0.0)])
        )
        RunningAverage(output_transform=lambda output: output["loss"].item()).attach(trainer, "running_loss")
        ema = EMAHandler(training.model, momentum=0.5)
        ema.attach(trainer, name="ema_momentum")
        best = IgniteCheckpoint(
            {"model": training.model},
            DiskSaver(directory / "best"),
            n_saved=1,
            score_name="val_accuracy",
            score_function=lambda engine: engine.state.metrics["val_accuracy"],
            global_step_transform=global_step_from_engine(trainer),
        )
        Evaluate(training.evaluator, batches(2, seed=2)).attach(trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, best)
        EarlyStopping("val_accuracy", patience=3).attach(trainer)
        CSVLogger(directory, every=2).attach(trainer)
        ProgressBar(file=io.StringIO()).attach(trainer)
        trainer.run(batches(), max_epochs=12)
        weights = training.model.state_dict(), ema.ema_model.state_dict()
        return training.lines(directory), contents_of(directory / "best"), weights, trainer.state.epoch

    lines, best, _, epochs = outcome_of(program)
    assert {"loss", "running_loss", "gradient_norm", "learning_rate", "val_accuracy"} <= set(lines[0])
    scores = [float(line["val_accuracy"]) for line in lines if line["val_accuracy"]]
    assert len(scores) == epochs
    (name,) = best
    assert f"val_accuracy={max(scores):.4f}" in name


def test_a_function_attached_before_evaluate_sees_its_metrics_on_our_engine_and_not_on_ignites() -> None:
    """On a stock engine phases order our handlers; functions and Ignite's handlers stay where they were attached."""

    def seen_on(engine_class):
        training = Mixed(engine_class)
        Accuracy().attach(training.evaluator, "accuracy")
        seen = training.note(Events.EPOCH_COMPLETED, lambda: "val_accuracy" in training.trainer.state.metrics)
        Evaluate(training.evaluator, batches(2, seed=2)).attach(training.trainer)
        training.trainer.run(batches(), max_epochs=1)
        return seen

    assert seen_on(Engine) == [True]
    assert seen_on(IgniteEngine) == [False]


def test_an_evaluator_run_by_ours_carries_handlers_of_ignite(outcome_of) -> None:
    def program(engine_class, directory):
        training = Mixed(engine_class)
        training.optimizer.param_groups[0]["lr"] = 0.0
        Accuracy().attach(training.evaluator, "accuracy")
        Evaluate(training.evaluator, batches(2, seed=2)).attach(training.trainer)
        stopping = IgniteEarlyStopping(2, lambda engine: engine.state.metrics["accuracy"], training.trainer)
        training.evaluator.add_event_handler(Events.COMPLETED, stopping)
        return training.trainer.run(batches(), max_epochs=10).epoch

    epochs = outcome_of(program)
    assert 3 <= epochs < 10


def test_our_average_of_the_weights_is_ignites(outcome_of) -> None:
    """Ignite's momentum is one minus our decay."""

    def program(engine_class, directory):
        training = Mixed(engine_class)
        theirs, ours = EMAHandler(training.model, momentum=0.25), EMA(training.model, decay=0.75)
        theirs.attach(training.trainer, name="ema_momentum")
        ours.attach(training.trainer)
        training.trainer.run(batches(), max_epochs=2)
        return theirs.ema_model[0].weight.detach(), ours.module[0].weight.detach(), training.model[0].weight.detach()

    theirs, ours, weights = outcome_of(program)
    torch.testing.assert_close(theirs, ours)
    assert not torch.equal(ours, weights)


def test_our_checkpoint_keeps_the_state_of_ignites_handlers(outcome_of) -> None:
    """Patience of Ignite's EarlyStopping that was used up before a kill stays so."""

    def program(engine_class, directory):
        def run(max_epochs):
            torch.manual_seed(0)
            training = Mixed(engine_class)
            schedule = torch.optim.lr_scheduler.StepLR(training.optimizer, 2)
            LRScheduler(schedule).attach(training.trainer)
            training.optimizer.param_groups[0]["lr"] = 0.0
            stopping = IgniteEarlyStopping(4, lambda engine: 0.0, training.trainer)
            training.trainer.add_event_handler(Events.EPOCH_COMPLETED, stopping)
            Checkpoint(directory, model=training.model, optimizer=training.optimizer).attach(training.trainer)
            return training.trainer.run(batches(), max_epochs=max_epochs).epoch, stopping.counter

        return run(3), run(10)

    assert outcome_of(program) == ((3, 2), (5, 4))
