"""Trains in two processes of Ignite's ``idist.Parallel``, on each engine in turn; each process writes what came of it.

Once as Ignite's users do, with ``idist.auto_model`` and ``auto_dataloader``, and once with Camshaft's handlers.

python parallel_program.py DIRECTORY
"""

from __future__ import annotations

import copy
import gc
import json
import socket
import sys
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine as IgniteEngine
from ignite.engine import create_supervised_trainer
from ignite.metrics import Accuracy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from camshaft.engine import Engine, Events
from camshaft.handlers import DataParallel, DistributedSampling, OptimizerStep

__all__ = ["train"]


def train(local_rank: int, directory: str) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    engines = {"camshaft": Engine, "ignite": IgniteEngine}
    outcomes = {name: _with_ignites_helpers(engine_class) for name, engine_class in engines.items()}
    for column in (*engines, "supervised"):
        outcomes[f"ours on {column}"] = _with_our_handlers(engines.get(column))
    Path(directory, f"rank{idist.get_rank()}.json").write_text(json.dumps(outcomes), encoding="utf-8")
    # Models that Ignite wrapped keep the process group, whose threads now and then make a process abort as it ends.
    gc.collect()


def _with_ignites_helpers(engine_class: type[IgniteEngine]) -> dict[str, Any]:
    torch.manual_seed(0)
    inputs = torch.randn(32, 4)
    targets = inputs[:, :3].argmax(1)
    loader = idist.auto_dataloader(TensorDataset(inputs, targets, torch.arange(32)), batch_size=8, shuffle=True)
    model: nn.Module = idist.auto_model(nn.Linear(4, 3))
    optimizer = idist.auto_optim(torch.optim.SGD(model.parameters(), lr=0.1))
    seen: list[int] = []

    def step(engine: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, y, numbers = batch
        if engine.state.epoch == 1:
            seen.extend(numbers.tolist())
        optimizer.zero_grad()
        logits = model(x)
        F.cross_entropy(logits, y).backward()
        optimizer.step()
        return logits.detach(), y

    trainer = engine_class(step)
    Accuracy().attach(trainer, "accuracy")
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: loader.sampler.set_epoch(trainer.state.epoch - 1))
    trainer.run(loader, max_epochs=3)
    weights = [parameter.tolist() for parameter in model.parameters()]
    return {"seen": seen, "weights": weights, "accuracy": trainer.state.metrics["accuracy"]}


def _with_our_handlers(engine_class: type[IgniteEngine] | None) -> dict[str, Any]:
    """On an engine of this class, or on one of ``create_supervised_trainer``."""
    torch.manual_seed(0)
    inputs = torch.randn(32, 4)
    targets = inputs[:, :3].argmax(1)
    model = nn.Linear(4, 3)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[int] = []

    def batch_of(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.stack([number for (number,) in samples])
        seen.extend(numbers.tolist())
        return inputs[numbers], targets[numbers]

    loader = DataLoader(TensorDataset(torch.arange(32)), batch_size=8, collate_fn=batch_of)
    trainer: Any
    if engine_class is None:
        trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)
    else:
        trainer = engine_class(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
        OptimizerStep(optimizer).attach(trainer)
    for handler in (DataParallel(model), DistributedSampling()):
        handler.attach(trainer)
    trainer.run(loader, max_epochs=1)

    for first in (0, 16):  # the batches of both processes together
        batch = slice(first, first + 16)
        gradients = torch.autograd.grad(
            F.cross_entropy(by_hand(inputs[batch]), targets[batch]), list(by_hand.parameters())
        )
        for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
            parameter.data -= 0.1 * gradient
    weights = [[parameter.tolist() for parameter in module.parameters()] for module in (model, by_hand)]
    return {"seen": seen, "weights": weights[0], "by hand": weights[1]}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    with idist.Parallel(backend="gloo", nproc_per_node=2, master_port=_free_port()) as parallel:
        parallel.run(train, sys.argv[1])
