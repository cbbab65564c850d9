"""The order in which handlers are attached changes nothing: not the weights, not what is logged, not what is saved."""

import csv
import functools
import io
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import Accuracy, Loss, RunningAverage
from sklearn.datasets import load_digits
from tensorboardX.proto.event_pb2 import Event
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from camshaft.engine import Engine, Events
from camshaft.handlers import (
    AMP,
    EMA,
    Checkpoint,
    CSVLogger,
    Device,
    DistributedSampling,
    EarlyStopping,
    Evaluate,
    GradientAccumulation,
    GradientClipping,
    LRScheduler,
    Metrics,
    OptimizerStep,
    ProgressBar,
    TensorBoardLogger,
    TerminateOnNaN,
    TimeLimit,
)

HANDLERS, EVALUATORS_HANDLERS = 20, 3
MAX_EPOCHS = 4
ENGINES = [Engine, IgniteEngine]


@functools.cache
def digits():
    images, targets = load_digits(return_X_y=True)
    images = torch.tensor(images[:440] / 16, dtype=torch.float32)
    return TensorDataset(images, torch.tensor(targets[:440]))


class Program:
    """A small network that learns handwritten digits, and one of each handler for it.

    ``handlers`` and ``evaluators_handlers`` are the sets of which every order must do the same.
    """

    def __init__(self, directory, engine_class):
        torch.manual_seed(0)
        self.directory = directory
        self.engine_class = engine_class
        self.train_loader = DataLoader(digits(), 64, shuffle=True)  # 7 batches
        self.model = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.ema = EMA(self.model, decay=0.8)
        self.evaluator = engine_class(self.evaluation_step)
        self.tester = engine_class(self.evaluation_step)
        self.bar = io.StringIO()
        self.handlers = [
            OptimizerStep(self.optimizer),
            GradientAccumulation(2, weight="weight"),
            GradientClipping(1.0),
            AMP("bf16"),
            Device("cpu"),
            Metrics(running_loss=RunningAverage(output_transform=lambda output: output["loss"])),
            Metrics(train_accuracy=Accuracy()),
            Evaluate(self.evaluator, DataLoader(digits(), 220), ema=self.ema),
            Evaluate(self.tester, DataLoader(digits(), 220), at=Events.COMPLETED, prefix="test_"),
            LRScheduler(OneCycleLR(self.optimizer, 0.02, total_steps=100), "step"),
            LRScheduler(ReduceLROnPlateau(self.optimizer, patience=0, threshold=0.5), monitor="val_loss"),
            self.ema,
            EarlyStopping("val_loss", patience=2, min_delta=0.3, restore_best=True),
            TerminateOnNaN(),
            TimeLimit("1h"),
            DistributedSampling(),
            Checkpoint(
                directory,
                model=self.model,
                optimizer=self.optimizer,
                at=Events.EPOCH_COMPLETED | Events.ITERATION_COMPLETED(every=5),
                monitor="val_accuracy",
                keep_last=100,
            ),
            CSVLogger(directory, every=3),
            TensorBoardLogger(directory / "tensorboard", every=3),
            ProgressBar(file=self.bar),
        ]
        self.evaluators_handlers = [
            Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)),
            Device("cpu"),
            AMP("bf16"),
        ]

    def training_step(self, engine, batch):
        images, targets = batch
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, targets), "y_pred": logits, "y": targets, "weight": len(targets)}

    def evaluation_step(self, engine, batch):
        return self.model(batch[0]).float(), batch[1]

    def run(self, order, evaluators_order):
        """Attach in the given orders, run, and return all that must not depend on them."""
        assert sorted(order) == list(range(len(self.handlers)))
        assert sorted(evaluators_order) == list(range(len(self.evaluators_handlers)))
        for position in evaluators_order:
            self.evaluators_handlers[position].attach(self.evaluator)
        Metrics(accuracy=Accuracy()).attach(self.tester)
        trainer = self.engine_class(self.training_step)
        for position in order:
            self.handlers[position].attach(trainer)
        trainer.run(self.train_loader, max_epochs=MAX_EPOCHS)
        return {
            "weights": self.model.state_dict(),
            "metrics": dict(trainer.state.metrics),
            "iterations": trainer.state.iteration,
            "optimizer steps": trainer.state.optimizer_step,
            "csv": self.read_csv(),
            "tensorboard": self.read_tensorboard(),
            "checkpoints": self.read_checkpoints(),
        }

    def read_csv(self):
        with (self.directory / "metrics.csv").open(newline="") as file:
            return [{name: value for name, value in row.items() if name != "time"} for row in csv.DictReader(file)]

    def read_tensorboard(self):
        """The step, tag and value of each scalar: a record is a length, its checksum, an event, and its checksum."""
        (path,) = (self.directory / "tensorboard").iterdir()
        content, scalars = path.read_bytes(), []
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            content = content[12 + length + 4 :]
        return sorted(scalars)

    def read_checkpoints(self):
        checkpoints = {}
        for path in (self.directory / "checkpoints").iterdir():
            content = torch.load(path / "state.pt", weights_only=True)
            del content["camshaft"]["handlers"]["TimeLimit"]["used"]  # the only thing that no two runs have in common
            checkpoints[path.name] = content
        return checkpoints


def differences(one, other, where=""):
    """Where two nested results differ by as much as a bit."""
    if isinstance(one, dict) and isinstance(other, dict) and set(one) == set(other):
        return [place for key in one for place in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            place for i, pair in enumerate(zip(one, other, strict=True)) for place in differences(*pair, f"{where}/{i}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


@functools.cache
def result_in_the_order_written(engine_class):
    return result(engine_class, range(HANDLERS), range(EVALUATORS_HANDLERS))


def result(engine_class, order, evaluators_order):
    with tempfile.TemporaryDirectory() as directory:
        return Program(Path(directory), engine_class).run(order, evaluators_order)


@pytest.mark.parametrize("engine_class", ENGINES, ids=["camshaft", "ignite"])
@given(order=st.permutations(range(HANDLERS)), evaluators_order=st.permutations(range(EVALUATORS_HANDLERS)))
@example(order=range(HANDLERS)[::-1], evaluators_order=range(EVALUATORS_HANDLERS)[::-1])
@settings(max_examples=settings().max_examples // 4)
def test_the_order_of_attachment_changes_nothing(engine_class, order, evaluators_order):
    expected = result_in_the_order_written(engine_class)
    assert differences(expected, result(engine_class, order, evaluators_order)) == []


def test_the_program_does_what_makes_the_order_matter():
    """Else the test above would show nothing: the run stops early, restores the best weights, logs and saves."""
    outcome = result_in_the_order_written(Engine)
    assert outcome["iterations"] == 7 * 3 < 7 * MAX_EPOCHS
    assert outcome["optimizer steps"] == 4 * 3  # a last incomplete group an epoch
    assert sorted(outcome["metrics"]) == [
        "gradient_norm",
        "running_loss",
        "test_accuracy",
        "train_accuracy",
        "val_accuracy",
        "val_loss",
    ]
    assert len(outcome["checkpoints"]) == 3 + 4 + 1  # epochs, every 5 iterations, the end
    saved = outcome["checkpoints"]["iteration=00000021,epoch=3"]
    assert not torch.equal(saved["model"]["0.weight"], outcome["weights"]["0.weight"])  # the best were restored
    assert {"loss", "learning_rate", "val_loss"} <= set(outcome["csv"][0])
    assert {"loss", "learning_rate", "val_loss"} <= {tag for _, tag, _ in outcome["tensorboard"]}


def test_a_difference_of_one_bit_is_seen():
    value = torch.ones(2)
    other = torch.tensor([1.0, 1.0000001])
    assert differences({"a": [value]}, {"a": [other]}) == ["/a/0"]
