"""The program whose runs the pictures in this folder show: a small network for scikit-learn's handwritten digits.

python train.py RUN [--lr 0.003]
"""

import argparse
import math
from pathlib import Path

import torch
from ignite.metrics import Accuracy, Loss
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from camshaft import (
    EMA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Engine,
    Evaluate,
    GradientClipping,
    Handler,
    LRScheduler,
    Metrics,
    OptimizerStep,
    RunRecord,
    TensorBoardLogger,
    TerminateOnNaN,
    seed_everything,
)
from camshaft.contrib.datasets import images

EPOCHS, BATCH_SIZE = 6, 64


class Training:
    """A trainer and what it trains on; the handlers that every run here has are attached."""

    def __init__(self, learning_rate: float, width: int = 256) -> None:
        seed_everything(0)
        data = images("digits")
        self.loader = DataLoader(data.train, BATCH_SIZE, shuffle=True, drop_last=True)
        layers = nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10)
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate)
        steps = EPOCHS * len(self.loader)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / 30) * (1 + math.cos(math.pi * step / steps)) / 2
        )
        self.evaluator = Engine(lambda engine, batch: (self.model(batch[0]), batch[1]))
        self.evaluator.attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)))
        self.trainer = Engine(lambda engine, batch: F.cross_entropy(self.model(batch[0]), batch[1]))
        ema = EMA(self.model, decay=0.95)
        self.trainer.attach(
            OptimizerStep(self.optimizer),
            GradientClipping(1.0),
            LRScheduler(schedule, per="step"),
            ema,
            Evaluate(self.evaluator, DataLoader(data.validation, 256), ema=ema),
            EarlyStopping("val_loss", patience=3),
            TerminateOnNaN(),
        )

    def run(self, directory: Path, *handlers: Handler) -> None:
        """Train, and keep the run in a directory."""
        self.trainer.attach(
            Checkpoint(directory, model=self.model, optimizer=self.optimizer),
            RunRecord(directory, configuration={"learning_rate": self.optimizer.defaults["lr"]}),
            CSVLogger(directory, every=5),
            TensorBoardLogger(directory / "tensorboard", every=5),
            *handlers,
        )
        self.trainer.run(self.loader, max_epochs=EPOCHS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--lr", type=float, default=0.003)
    options = parser.parse_args()
    Training(options.lr).run(options.run)
