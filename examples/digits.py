"""Trains a small convolutional network on handwritten digits, with every core handler that makes sense for it.

    python examples/digits.py                  # scikit-learn's 1,797 digits, which come with it
    python examples/digits.py --dataset mnist  # downloads MNIST

    camshaft launch --nproc-per-node 2 examples/digits.py  # on two processes

Killed at any moment, the same command goes on where it was.
"""

import argparse
import hashlib
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NoReturn

import ignite.distributed as idist
import torch
from ignite.metrics import Accuracy, Loss
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from camshaft import (
    AMP,
    EMA,
    Checkpoint,
    CSVLogger,
    DataParallel,
    Device,
    DistributedSampling,
    EarlyStopping,
    Engine,
    Evaluate,
    Events,
    GradientClipping,
    LRScheduler,
    Metrics,
    OptimizerStep,
    Preemption,
    ProgressBar,
    TensorBoardLogger,
    TerminateOnNaN,
    TimeLimit,
    seed_everything,
)
from camshaft.curves import plot_curves
from camshaft.engine.distributed import broadcast, initialise, rank, world_size
from camshaft.handlers.checkpoint_store import BrokenCheckpointError


def main() -> None:
    options = parse_options()
    initialise()  # if a launcher has started several processes
    options.run_dir = broadcast(options.run_dir)
    seed_everything(options.seed + rank())  # random shifts differ between processes; weights are the first's
    if options.dataset == "digits":
        # 8 by 8 pixels are too little work to share: several threads would mostly wait for each other.
        torch.set_num_threads(1)
    with idist.one_rank_first(local=True):  # of each machine: it downloads for the others
        train_data, val_data, test_data, image_size = DATASETS[options.dataset](options.data_dir)

    # ------------------------------------------------------------------------------------------------ the research

    model = Network(image_size)

    def training_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(model(shifted(images)), labels, label_smoothing=0.05)

    def evaluation_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = batch
        return model(images).float(), labels

    # ------------------------------------------------------------------------------------------------ the engineering

    whole_batch = options.batch_size * world_size()
    if len(train_data) < whole_batch:
        stop(f"a batch of {whole_batch} is more than the {len(train_data)} images to train on")
    train_loader = DataLoader(train_data, batch_size=options.batch_size, shuffle=True, drop_last=True)
    val_loader, test_loader = (DataLoader(data, batch_size=256) for data in (val_data, test_data))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    optimizer_steps = options.max_epochs * (len(train_data) // whole_batch)

    def learning_rate(step: int) -> float:
        """Of the largest: up during the first quarter of the run, then down along a cosine."""
        progress = (step + 1) / (optimizer_steps + 1)
        return progress / 0.25 if progress < 0.25 else (1 + math.cos(math.pi * (progress - 0.25) / 0.75)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate)

    evaluator = Engine(evaluation_step)
    evaluator.attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)), Device("auto"))
    ema = EMA(model, decay=0.99, warmup=True)

    trainer = Engine(training_step)
    trainer.logger.addFilter(lambda record: record.levelno < logging.ERROR)  # what is raised is told once, by stop()
    trainer.attach(
        OptimizerStep(optimizer),
        GradientClipping(1.0),
        LRScheduler(schedule, per="step"),
        ema,
        Device("auto"),
        DataParallel(model),
        DistributedSampling(),
        Evaluate(evaluator, val_loader, ema=ema),
        Evaluate(evaluator, test_loader, at=Events.COMPLETED, prefix="test_", ema=ema),
        EarlyStopping("val_loss", patience=10),
        TerminateOnNaN(),
        TimeLimit("1h"),
        Checkpoint(options.run_dir, model=model, optimizer=optimizer, monitor="val_accuracy", resume=options.resume),
        Preemption(),
        CSVLogger(options.run_dir, every=10),
        TensorBoardLogger(options.run_dir / "tensorboard", every=10),
        ProgressBar(),
    )
    if options.precision != "fp32":
        trainer.attach(AMP(options.precision))

    camshaft, run_dir = f"{shlex.quote(os.path.relpath(sys.executable))} -m camshaft", shlex.quote(str(options.run_dir))
    if rank() == 0:
        print(f"The run is kept in {run_dir}. Killed at any moment, it goes on by: {camshaft} resume {run_dir}")
    trainer.run(train_loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    curves = plot_curves([options.run_dir], options.run_dir / "curves.png")
    metrics = trainer.state.metrics
    print(f"\n{trainer}\n")
    print(f"test accuracy  {metrics['test_accuracy']:.2%} of {len(test_data)} images never seen in training")
    print(f"curves         {curves}")
    print(f"numbers        {options.run_dir / 'metrics.csv'}")
    print(f"TensorBoard    tensorboard --logdir {run_dir}/tensorboard")
    print(f"checkpoints    {camshaft} checkpoints {run_dir}")
    print(f"train longer   {camshaft} resume {run_dir} --run-dir {run_dir} --max-epochs {options.max_epochs + 10}")
    print(f"weights sha256: {digest(model)}")


class Network(nn.Module):
    """Three convolutions for images of one channel."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(1, 32),
            *convolution(32, 64),
            nn.MaxPool2d(2),
            *convolution(64, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * (image_size // 4) ** 2, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # (batch, 1, height, width) -> (batch, classes)
        return self.layers(images)


def convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each batch moved by at most a pixel, up or down and left or right: cheap augmentation."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(F.pad(images, (1, 1, 1, 1)), (down, right), (2, 3))[:, :, 1:-1, 1:-1]


Split = tuple[Dataset, Dataset, Dataset, int]


def digits(data_dir: Path) -> Split:
    """Scikit-learn's 1,797 digits of 8 by 8 pixels, a seventh each for validation and test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    data = TensorDataset(images, torch.tensor(labels))
    # The same split whatever the seed, so that no seed's test images were another's training images.
    return *random_split(data, [1283, 257, 257], torch.Generator().manual_seed(0)), 8


def of_torchvision(name: str) -> Callable[[Path], Split]:
    """One of torchvision's data sets of 28 by 28 pixels; a twelfth of its training images is for validation."""

    def load(data_dir: Path) -> Split:
        try:
            from torchvision import datasets, transforms

            dataset = getattr(datasets, name)
            transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
            train = dataset(data_dir, train=True, download=True, transform=transform)
            test = dataset(data_dir, train=False, download=True, transform=transform)
        except (ImportError, RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            stop(f"{name} could neither be loaded from {data_dir} nor downloaded: {reason}")
        validation = len(train) // 12
        parts = random_split(train, [len(train) - validation, validation], torch.Generator().manual_seed(0))
        return *parts, test, 28

    return load


DATASETS = {"digits": digits, "mnist": of_torchvision("MNIST"), "fashion-mnist": of_torchvision("FashionMNIST")}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, help="where everything is written (default: a new one in runs)")
    parser.add_argument("--max-epochs", type=positive, default=20, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=64, help="of each process (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="(default: %(default)s)")
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto: go on with the run in --run-dir if there is one; never: refuse then; or the path of a checkpoint",
    )
    parser.add_argument("--dataset", choices=DATASETS, default="digits", help="(default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads (default: %(default)s)")
    parser.error = stop  # in one line, without the usage
    options = parser.parse_args()
    if options.run_dir is None:  # the first with these options that has not come to its end, to go on with it
        name = f"runs/{options.dataset}-{options.precision}-seed{options.seed}"
        options.run_dir = next(run for n in count(1) if not ((run := Path(f"{name}-{n}")) / "curves.png").exists())
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def digest(model: nn.Module) -> str:
    """The SHA-256 of all weights, to compare runs by."""
    sha256 = hashlib.sha256()
    for tensor in model.state_dict().values():
        sha256.update(tensor.cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def stop(message: str) -> NoReturn:
    """End with one line on the standard error."""
    print(f"digits.py: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, BrokenCheckpointError) as error:  # what the user can mend: a directory, a checkpoint
        stop(str(error))
