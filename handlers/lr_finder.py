"""Which learning rate to begin with: the loss is watched while the learning rate grows with every optimizer step.

It is no handler that stays attached: ``run()`` tries the engine out and leaves it as it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.handler import Handler, On
from camshaft.handlers.monitor import outputs_of
from camshaft.handlers.optimizer_step import optimizer_steps_of
from camshaft.handlers.trial import optimizers_of, trial

__all__ = ["LRFinder", "LearningRateCurve"]

Growth = Literal["exponential", "linear"]

_SMOOTHING = 0.98  # the share of the past in the mean of the losses


class LearningRateCurve:
    """The loss over the learning rate.

    Args:
        logarithmic: whether the learning rate grew by a factor, so that its logarithm is the axis.

    Attributes:
        results: ``{"lr": [...], "loss": [...]}``; the losses are smoothed.

    Example:
        >>> curve = LearningRateCurve()
        >>> curve.results = {"lr": [0.001, 0.01, 0.1, 1.0], "loss": [5.0, 4.9, 3.0, 2.9]}
        >>> curve.suggestion(skip_begin=0, skip_end=0)
        0.01
    """

    def __init__(self, *, logarithmic: bool = True) -> None:
        self.logarithmic = logarithmic
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The learning rate at which the loss fell most steeply, None where there are too few points to tell.

        Args:
            skip_begin: how many points to leave out at the beginning, where the loss is not smooth yet.
            skip_end: how many to leave out at the end.
        """
        index = self.steepest(skip_begin, skip_end, over_logarithm=self.logarithmic)
        return None if index is None else self.results["lr"][index]

    def steepest(self, skip_begin: int, skip_end: int, *, over_logarithm: bool) -> int | None:
        """The index of the point at which the loss fell most steeply, over the learning rate or its logarithm."""
        points = self.usable(skip_begin, skip_end)
        if len(points) < 2:
            return None
        losses = torch.tensor([self.results["loss"][index] for index in points])
        rates = torch.tensor([self.results["lr"][index] for index in points])
        (slopes,) = torch.gradient(losses, spacing=[rates.log() if over_logarithm else rates])
        # Over a tenth of the logarithmic axis, else the noise between two points is steeper than what was learnt.
        width = max(1, len(points) // 10) if over_logarithm else 1
        means = slopes.unfold(0, width, 1).mean(1)
        return points[int(means.argmin()) + width // 2]

    def usable(self, skip_begin: int, skip_end: int) -> list[int]:
        """The indices of the points that are neither left out nor infinite."""
        last = len(self.results["loss"]) - skip_end
        return [index for index in range(skip_begin, last) if math.isfinite(self.results["loss"][index])]

    def draw(self, axes: Any, marked: float | None = None) -> None:
        """Draw it on axes of matplotlib, with a point at one of its learning rates."""
        rates, losses = self.results["lr"], self.results["loss"]
        axes.plot(rates, losses)
        if self.logarithmic:
            axes.set_xscale("log")
        axes.set_xlabel("Learning rate")
        axes.set_ylabel("Loss")
        if marked is not None:
            axes.plot(marked, losses[rates.index(marked)], markersize=10, marker="o", color="red")

    def plot(self, picture: str | os.PathLike[str]) -> Path:
        """Write a picture of it, with the suggestion marked.

        Args:
            picture: the file to write; its ending chooses the format.

        Returns:
            Its path.
        """
        # Without pyplot, which would choose a backend for the whole process.
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        suggestion = self.suggestion()
        self.draw(axes, suggestion)
        axes.set_ylabel("Loss (smoothed)")
        axes.grid(alpha=0.3)
        if suggestion is not None:
            axes.set_title(f"steepest at a learning rate of {suggestion:.2g}")
        figure.savefig(picture, dpi=100)
        return Path(picture)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.results['lr'])} steps, suggestion {self.suggestion()}>"


class LRFinder:
    """Trains some steps with a learning rate that grows, and sees where the loss falls most steeply (Smith, 2017).

    Only what shapes the step takes part: ``OptimizerStep``, ``AMP``, ``GradientAccumulation``, ``GradientClipping``,
    ``Device``. Nothing else hears of it, and model, optimizers, random numbers, data and engine are then as they were.
    Further groups of parameters keep their ratio to the first, whose learning rate it is.

    Args:
        min_lr: the learning rate of the first step.
        max_lr: the one of the last.
        steps: how many optimizer steps; the data begins again where it has fewer.
        growth: ``"exponential"`` or ``"linear"``.
        stop_at: end when the smoothed loss is so many times the smallest one; None for never.

    Raises:
        ValueError: learning rates in the wrong order, fewer than 2 steps, another growth.

    Example:
        >>> from camshaft import Engine
        >>> from camshaft.handlers import OptimizerStep
        >>> model = torch.nn.Linear(1, 1)
        >>> engine = Engine(lambda engine, batch: model(batch).square().mean())
        >>> engine = engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
        >>> before = model.weight.item()
        >>> curve = LRFinder(steps=40).run(engine, [torch.ones(4, 1)])
        >>> len(curve.results["loss"]), model.weight.item() == before, engine.state.iteration
        (40, True, 0)
    """

    def __init__(
        self,
        min_lr: float = 1e-6,
        max_lr: float = 1.0,
        *,
        steps: int = 100,
        growth: Growth = "exponential",
        stop_at: float | None = 4.0,
    ) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(f"LRFinder needs 0 < min_lr < max_lr, but got min_lr={min_lr!r} and max_lr={max_lr!r}.")
        if steps < 2:
            raise ValueError(f"LRFinder needs at least 2 steps, but got steps={steps!r}.")
        if growth not in ("exponential", "linear"):
            raise ValueError(f"LRFinder's growth is 'exponential' or 'linear', not {growth!r}.")
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.steps = steps
        self.growth = growth
        self.stop_at = stop_at

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0.

        Example:
            >>> [round(LRFinder(1e-3, 1, steps=4).lr_at(step), 6) for step in range(4)]
            [0.001, 0.01, 0.1, 1.0]
        """
        share = step / (self.steps - 1)
        if self.growth == "linear":
            return self.min_lr + share * (self.max_lr - self.min_lr)
        return self.min_lr * math.pow(self.max_lr / self.min_lr, share)

    def run(self, engine: IgniteEngine, data: Iterable[Any]) -> LearningRateCurve:
        """Try the learning rates out.

        Args:
            engine: one that trains; not running.
            data: what to train on.

        Returns:
            The curve, with ``suggestion()`` and ``plot("learning_rate.png")``.

        Raises:
            ValueError: no optimizer or no loss is found, the engine runs, or there are several processes.
        """
        curve = LearningRateCurve(logarithmic=self.growth == "exponential")
        step = engine._process_function
        group_size = step.group_size if isinstance(step, TrainingStep) else 1
        with trial(engine, data, _Grow(self, engine, curve)):
            type(engine).run(engine, data, max_iters=(self.steps + 1) * group_size)
        return curve


class _Grow(Handler):
    """Sets the learning rate of each optimizer step and keeps the mean of its losses."""

    listens = (
        On(Events.ITERATION_STARTED, Phase.PREPARE, "set_rate"),
        On(Events.ITERATION_COMPLETED, Phase.DECIDE, "keep_loss"),
    )

    def __init__(self, finder: LRFinder, engine: IgniteEngine, curve: LearningRateCurve) -> None:
        self.finder, self.curve = finder, curve
        self.optimizers = optimizers_of(engine)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        first = float(groups[0]["lr"])
        self.groups = [(group, float(group["lr"]) / first if first else 1.0) for group in groups]
        self.counting = optimizer_steps_of(engine)
        self.counted = self._steps()
        self.losses: list[float] = []  # of the optimizer step under way
        self.mean, self.smallest = 0.0, math.inf

    def _steps(self) -> int:
        return max(step.steps for step in self.counting) if self.counting else 0

    def set_rate(self) -> None:
        """Set the learning rate of the optimizer step under way."""
        self.rate = self.finder.lr_at(len(self.curve.results["lr"]))
        for group, ratio in self.groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(ratio * self.rate)
            else:
                group["lr"] = ratio * self.rate

    def keep_loss(self, engine: Any) -> None:
        """Keep a loss, and end when there are enough."""
        outputs = outputs_of(engine)
        if "loss" not in outputs:
            raise ValueError(
                f"LRFinder found no loss in what the step returned, only {sorted(outputs)}: return the loss, or a "
                "mapping with 'loss'."
            )
        self.losses.append(float(outputs["loss"]))
        if self.counting and self._steps() == self.counted:
            return  # a micro-batch, or a step that AMP has left out
        self.counted = self._steps()
        results = self.curve.results
        self.mean = _SMOOTHING * self.mean + (1 - _SMOOTHING) * sum(self.losses) / len(self.losses)
        self.losses.clear()
        results["lr"].append(self.rate)
        smoothed = self.mean / (1 - _SMOOTHING ** len(results["lr"]))
        results["loss"].append(smoothed)
        self.smallest = min(self.smallest, smoothed)
        diverges = self.finder.stop_at is not None and not smoothed <= self.finder.stop_at * abs(self.smallest)
        if len(results["lr"]) == self.finder.steps or (diverges and len(results["lr"]) > 1):
            engine.terminate()
