"""A program that makes exact resuming hard: everything that has state or draws random numbers, at once.

    python tests/chaos/harder.py [--asynchronous] RUN_DIRECTORY

Prints the SHA-256 of the final weights, of their moving averages and of the optimizer's state.
"""

import hashlib
import random
import sys

import numpy as np
import torch
from ignite.metrics import Accuracy, Loss
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from camshaft import (
    AMP,
    EMA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Engine,
    Evaluate,
    Events,
    GradientAccumulation,
    GradientClipping,
    LRScheduler,
    Metrics,
    OptimizerStep,
    TensorBoardLogger,
    seed_everything,
)


class NoisyDigits(Dataset):
    """Digits with noise from all three generators, drawn in the workers."""

    def __init__(self, first: int, last: int, noise: float) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images[first:last] / 16, dtype=torch.float32)
        self.labels = torch.tensor(labels[first:last])
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(64) + random.gauss(0, 1) + float(np.random.normal())  # noqa: NPY002 - the global one
        return self.images[index] + self.noise * noise, self.labels[index]


def main(directory: str, *, asynchronous: bool) -> None:
    torch.set_num_threads(1)
    seed_everything(3)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    train_loader = DataLoader(
        NoisyDigits(0, 600, 0.1), batch_size=32, shuffle=True, num_workers=2, persistent_workers=True
    )
    val_loader = DataLoader(NoisyDigits(600, 900, 0.1), batch_size=100, shuffle=True)

    def training_step(engine: Engine, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        images, labels = batch
        logits = model(images)
        return {"loss": F.cross_entropy(logits, labels), "y_pred": logits.float(), "y": labels}

    def evaluation_step(engine: Engine, batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = batch
        return model(images), labels

    ema = EMA(model, decay=0.9, warmup=True)
    evaluator = Engine(evaluation_step).attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)))
    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        GradientAccumulation(3),
        GradientClipping(1.0),
        AMP("fp16", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4)),
        LRScheduler(plateau, monitor="val_loss"),
        ema,
        Metrics(train_accuracy=Accuracy()),
        Evaluate(evaluator, val_loader, ema=ema),
        EarlyStopping("val_loss", patience=5, restore_best=True),
        CSVLogger(directory, every=1),
        TensorBoardLogger(directory, every=1),
        Checkpoint(
            directory,
            model=model,
            optimizer=optimizer,
            monitor="val_loss",
            at=Events.EPOCH_COMPLETED | Events.ITERATION_COMPLETED(every=4),
            asynchronous=asynchronous,
        ),
    )
    trainer.run(train_loader, max_epochs=4)

    sha256 = hashlib.sha256()
    for state in (model.state_dict(), ema.module.state_dict(), *optimizer.state_dict()["state"].values()):
        for tensor in state.values():
            sha256.update(torch.as_tensor(tensor).contiguous().numpy().tobytes())
    sys.stdout.write(f"weights sha256: {sha256.hexdigest()}\n")


if __name__ == "__main__":
    main(sys.argv[-1], asynchronous="--asynchronous" in sys.argv)
