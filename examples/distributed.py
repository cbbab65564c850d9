"""Trains a small network on handwritten digits, on any number of processes.

    python examples/distributed.py
    camshaft launch --nproc-per-node 2 examples/distributed.py                  # two copies of the model
    camshaft launch --nproc-per-node 2 examples/distributed.py --strategy fsdp  # half a model on each process

All three take the same steps: a batch is as large together as it is on one process.
"""

import argparse
from pathlib import Path

import torch
from ignite.metrics import Accuracy
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from camshaft import (
    Checkpoint,
    DataParallel,
    Device,
    DistributedSampling,
    Engine,
    Evaluate,
    Events,
    FullySharded,
    LRScheduler,
    Metrics,
    OptimizerStep,
    ProgressBar,
    seed_everything,
)
from camshaft.engine.distributed import initialise, rank, world_size
from camshaft.scripts import weights_sha256


def main() -> None:
    options = parse_options()
    initialise()  # finds the other processes, if a launcher has started any
    seed_everything(options.seed)
    torch.set_num_threads(1)  # 8 by 8 pixels are too little work to share
    train_data, test_data = digits()

    # ------------------------------------------------------------------------------------------------ the research

    # Chosen so that the number of processes makes no difference but for rounding. Batch normalisation would see only
    # the part of a batch that a process has; rounding would tip ReLU and max pooling to the other side of a kink.
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.GELU(),
        nn.Linear(128, 10),
    )

    def training_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def evaluation_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = batch
        return model(images), labels

    # ------------------------------------------------------------------------------------------------ the engineering

    batch_size = options.batch_size // world_size()  # of each process
    train_loader = DataLoader(train_data, batch_size=batch_size, shuffle=True, drop_last=True)
    test_loader = DataLoader(test_data, batch_size=256)
    # A larger eps than usual: AdamW would magnify the rounding of gradients that are nearly zero.
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_epochs)

    evaluator = Engine(evaluation_step).attach(Metrics(accuracy=Accuracy()), Device("auto"))
    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        LRScheduler(schedule),
        Device("auto"),
        DistributedSampling(),
        DataParallel(model) if options.strategy == "ddp" else FullySharded(model),
        Evaluate(evaluator, test_loader, at=Events.COMPLETED, prefix="test_"),
        ProgressBar(),
    )
    if options.run_dir is not None:
        # Killed, the same command goes on where it was, also on another number of processes.
        trainer.attach(Checkpoint(options.run_dir, model=model, optimizer=optimizer))
    trainer.run(train_loader, max_epochs=options.max_epochs)

    # ------------------------------------------------------------------------------------------------ what came of it

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=whole)  # on the first process; all must ask for it
    if rank() == 0:
        print(f"processes      {world_size()}")
        print(f"test accuracy  {trainer.state.metrics['test_accuracy']:.2%} of {len(test_data)} images")
        print(f"weights sha256: {weights_sha256(weights)}")
        if options.weights is not None:
            torch.save(weights, options.weights)


def digits() -> tuple[torch.utils.data.Dataset, torch.utils.data.Dataset]:
    """Scikit-learn's 1,797 digits of 8 by 8 pixels, a fifth of them to test."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    data = TensorDataset(images, torch.tensor(labels))
    train_data, test_data = random_split(data, [1440, 357], torch.Generator().manual_seed(0))
    return train_data, test_data


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp", help="(default: %(default)s)")
    parser.add_argument("--max-epochs", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--run-dir", type=Path, help="a directory to keep checkpoints in, and to go on from")
    parser.add_argument("--weights", type=Path, help="a file to write the weights to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
