"""Trains a small convolutional network on handwritten digits, with every core handler that makes sense for it.

    python examples/digits.py                  # scikit-learn's 1,797 digits, which come with it
    python examples/digits.py --dataset mnist  # downloads MNIST

    camshaft launch --nproc-per-node 2 examples/digits.py  # on two processes

Killed at any moment, the same command goes on where it was.
"""

import argparse
import math
import shlex
from pathlib import Path

import torch
from ignite.metrics import Accuracy, Loss
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from camshaft import (
    EMA,
    Device,
    EarlyStopping,
    Engine,
    Evaluate,
    Events,
    GradientClipping,
    LRScheduler,
    Metrics,
    OptimizerStep,
    TensorBoardLogger,
    TimeLimit,
)
from camshaft.contrib.datasets import IMAGES, images
from camshaft.curves import plot_curves
from camshaft.engine.distributed import rank, world_size
from camshaft.scripts import camshaft_command, run_script, script_parser, standard_handlers, start, weights_sha256


def main() -> None:
    options = start(option_parser())
    data = images(options.dataset, options.data_dir)

    # ------------------------------------------------------------------------------------------------ the research

    model = Network(*data.shape[:2], data.classes)

    def training_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pictures, labels = batch
        return F.cross_entropy(model(shifted(pictures)), labels, label_smoothing=0.05)

    def evaluation_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, labels = batch
        return model(pictures).float(), labels

    # ------------------------------------------------------------------------------------------------ the engineering

    whole_batch = options.batch_size * world_size()
    if len(data.train) < whole_batch:
        raise ValueError(f"a batch of {whole_batch} is more than the {len(data.train)} images to train on")
    train_loader = DataLoader(data.train, batch_size=options.batch_size, shuffle=True, drop_last=True)
    val_loader, test_loader = (DataLoader(part, batch_size=256) for part in (data.validation, data.test))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    optimizer_steps = options.max_epochs * (len(data.train) // whole_batch)

    def learning_rate(step: int) -> float:
        """Of the largest: up during the first quarter of the run, then down along a cosine."""
        progress = (step + 1) / (optimizer_steps + 1)
        return progress / 0.25 if progress < 0.25 else (1 + math.cos(math.pi * (progress - 0.25) / 0.75)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate)

    evaluator = Engine(evaluation_step)
    evaluator.attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)), Device(options.device))
    ema = EMA(model, decay=0.99, warmup=True)

    trainer = Engine(training_step)
    trainer.attach(
        OptimizerStep(optimizer),
        GradientClipping(1.0),
        LRScheduler(schedule, per="step"),
        ema,
        Evaluate(evaluator, val_loader, ema=ema),
        Evaluate(evaluator, test_loader, at=Events.COMPLETED, prefix="test_", ema=ema),
        EarlyStopping("val_loss", patience=10),
        TimeLimit("1h"),
        TensorBoardLogger(options.run_dir / "tensorboard", every=10),
        *standard_handlers(options, model=model, optimizer=optimizer, monitor="val_accuracy"),
    )

    trainer.run(train_loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    run_dir, metrics, epochs = options.run_dir, trainer.state.metrics, str(options.max_epochs + 10)
    print(f"\ntest accuracy  {metrics['test_accuracy']:.2%} of {len(data.test)} images never seen in training")
    print(f"curves         {plot_curves([run_dir], run_dir / 'curves.png')}")
    print(f"numbers        {run_dir / 'metrics.csv'}")
    print(f"TensorBoard    tensorboard --logdir {shlex.quote(f'{run_dir}/tensorboard')}  # pip install tensorboard")
    print(f"events         {camshaft_command('show', run_dir, '--events')}")
    print(f"checkpoints    {camshaft_command('checkpoints', run_dir)}")
    print(f"train longer   {camshaft_command('resume', run_dir, '--run-dir', run_dir, '--max-epochs', epochs)}")
    print(f"               (the cosine stretches over all {epochs} epochs, so the learning rate rises again at first)")
    print("To compare runs by, the digest of all that the model has learned:")
    print(f"weights sha256: {weights_sha256(model)}")


class Network(nn.Module):
    """Three convolutions for square pictures."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(channels, 32),
            *convolution(32, 64),
            nn.MaxPool2d(2),
            *convolution(64, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * (size // 4) ** 2, classes),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:  # (batch, channels, height, width) -> (batch, classes)
        return self.layers(pictures)


def convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]


def shifted(pictures: torch.Tensor) -> torch.Tensor:
    """Each batch moved by at most a pixel, up or down and left or right: cheap augmentation."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(F.pad(pictures, (1, 1, 1, 1)), (down, right), (2, 3))[:, :, 1:-1, 1:-1]


def option_parser() -> argparse.ArgumentParser:
    # 8 by 8 pixels are too little work to share: several threads would mostly wait for each other.
    parser = script_parser(__doc__, max_epochs=20, batch_size=64, threads=1)
    parser.add_argument("--dataset", choices=IMAGES, default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads")
    return parser


if __name__ == "__main__":
    run_script(main)
