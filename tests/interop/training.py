"""A small training as Ignite's users write it: the step does its own backward and returns a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn
from torch.nn import functional as F

__all__ = ["Training", "batches", "network"]


def network() -> nn.Module:
    """Four numbers in, three classes out; with random numbers and buffers of its own."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def batches(number: int = 6, size: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and classes that depend on them; the same each time."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, size, 4, generator=generator)
    return [(x, x[:, :3].argmax(1)) for x in inputs]


class Training:
    """A model, its optimizer, a trainer and an evaluator of one class of engine."""

    def __init__(self, engine_class: type[IgniteEngine], lr: float = 0.1) -> None:
        self.model = network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.trainer = engine_class(self.training_step)
        self.evaluator = engine_class(self.evaluation_step)

    def training_step(self, engine: Any, batch: Any) -> float:
        x, y = batch
        self.model.train()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def evaluation_step(self, engine: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch
        self.model.eval()
        with torch.no_grad():
            return self.model(x), y

    def note(self, event: Any, look: Callable[[], Any]) -> list[Any]:
        """A list to which ``look()`` is added whenever ``event`` fires on the trainer."""
        noted: list[Any] = []
        self.trainer.add_event_handler(event, lambda: noted.append(look()))
        return noted

    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]
