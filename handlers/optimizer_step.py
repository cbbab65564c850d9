"""Backward and the optimizers' step.

Puts itself behind the engine's step, which then returns the loss, and listens to:

- EPOCH_COMPLETED, COMPLETED in PREPARE: a group of micro-batches that the data left incomplete makes its step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import Events, StepEvents
from camshaft.engine.phases import Phase
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.handler import Handler, On, handlers_of

__all__ = ["OptimizerStep"]


class OptimizerStep(Handler):
    """Carries the loss that the step returns on to the weights: backward, the optimizers' ``step()``, ``zero_grad()``.

    The step returns a scalar loss, or a mapping with ``"loss"`` whose other entries are at hand in ``state.output``, or
    None to skip a batch. ``GradientAccumulation``, ``GradientClipping`` and ``AMP`` change how it is done.

    A step with several optimizers and losses (GANs, reinforcement learning) is given one ``OptimizerStep`` for each and
    calls them itself; all that is attached then serves each of them.

    Args:
        optimizers: the optimizers that make a step for one loss.

    Attributes:
        steps: how many steps it has made; ``state.optimizer_step`` is that of the one that stepped last.

    Raises:
        TypeError: no optimizer, or something else.
        ValueError: when the run starts, if two of an engine share parameters.

    Example:
        >>> from camshaft import Engine
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: model(batch).square().mean())
        >>> engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
        <Engine of <lambda>, 3 subscribers>
        >>> state = engine.run([torch.ones(4, 2)] * 5)
        >>> state.optimizer_step, state.output.requires_grad
        (5, False)
    """

    listens = (On(Events.EPOCH_COMPLETED | Events.COMPLETED, Phase.PREPARE, "finish_group"),)

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TypeError(f"OptimizerStep takes optimizers of torch.optim, but got {optimizer!r}.")
        if not optimizers:
            raise TypeError("OptimizerStep needs an optimizer: OptimizerStep(torch.optim.AdamW(model.parameters())).")
        self.optimizers = optimizers
        self.steps = 0
        self._micro_batches = 0  # in the group under way
        self._weight: Any = 0.0  # of the group under way
        self._last_seed: torch.Tensor | None = None
        self._engine: weakref.ref[IgniteEngine] | None = None

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters of its optimizers."""
        return [
            parameter
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        self._step = TrainingStep.of(engine)
        self._step.backwards.append(self)
        self._step.called_by_hand = False
        self._engine = weakref.ref(engine)
        moments = self._step.moments
        self._backward_started = moments[StepEvents.BACKWARD_STARTED]
        self._backward_completed = moments[StepEvents.BACKWARD_COMPLETED]
        self._step_started = moments[StepEvents.OPTIMIZER_STEP_STARTED]
        self._step_completed = moments[StepEvents.OPTIMIZER_STEP_COMPLETED]

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        self._step.backwards.remove(self)
        self._engine = None

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        own = {id(parameter) for parameter in self.parameters}
        for other in handlers_of(engine):
            if isinstance(other, OptimizerStep) and other is not self:
                shared = sum(id(parameter) in own for parameter in other.parameters)
                if shared:
                    raise ValueError(
                        f"{self!r} and {other!r} share {shared} parameter(s), which would be stepped twice. Give each "
                        "parameter to one of them, or all optimizers of one loss to one: OptimizerStep(a, b)."
                    )

    def __call__(self, loss: torch.Tensor, weight: torch.Tensor | float | None = None) -> None:
        """Do the same by hand, from within the step: backward of ``loss`` and, if its group is whole, the step.

        Args:
            loss: a scalar with its graph.
            weight: of this micro-batch in its group, where ``GradientAccumulation`` weighs.

        Raises:
            RuntimeError: it is not attached to an engine.
        """
        engine = self._engine() if self._engine is not None else None
        if engine is None:
            raise RuntimeError(f"{self!r} is called in a step but attached to no engine: engine.attach(...) it first.")
        self._step.called_by_hand = True
        with torch.autocast(loss.device.type, enabled=False):  # backward runs outside of the step's autocast
            self.update(engine, loss, weight)

    def update(self, engine: Any, loss: torch.Tensor, weight: torch.Tensor | float | None) -> None:
        """Backward of one micro-batch, and the optimizers' step if it completes its group."""
        step = self._step
        if self._backward_started:
            self._backward_started.fire(engine)
        if step.group_size == 1 and step.scaler is None:
            loss.backward()
        else:
            loss.backward(self._seed(loss, weight))
        if self._backward_completed:
            self._backward_completed.fire(engine)
        self._micro_batches += 1
        if self._micro_batches == step.group_size:
            self._make_step(engine)

    def finish_group(self, engine: IgniteEngine) -> None:
        """Make the step of a group that is incomplete when the epoch ends, normalised by what it holds."""
        if self._micro_batches:
            self._make_step(engine)

    def _seed(self, loss: torch.Tensor, weight: torch.Tensor | float | None) -> torch.Tensor:
        """The gradient to start backward from: what dividing or scaling the loss would do, without a node for it."""
        step = self._step
        seed = self._last_seed
        if seed is None or (seed.dtype, seed.device, seed.shape) != (loss.dtype, loss.device, loss.shape):
            seed = self._last_seed = torch.full_like(loss, 1.0, requires_grad=False)
            seed /= step.group_size if step.weight_key is None else 1
        if step.weight_key is not None:
            weight = 1.0 if weight is None else weight
            self._weight = self._weight + weight
            seed = seed * weight
        return seed if step.scaler is None else step.scaler.scale(seed).to(loss.dtype)

    def _make_step(self, engine: Any) -> None:
        step = self._step
        scaler = step.scaler
        if scaler is not None:
            for optimizer in self.optimizers:
                scaler.unscale_(optimizer)
        self._normalise(step)
        self._micro_batches = 0
        self.steps += 1
        engine.state.optimizer_step = self.steps
        step.stepping = self
        if self._step_started:
            self._step_started.fire(engine)
        for optimizer in self.optimizers:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        if self._step_completed:
            self._step_completed.fire(engine)
        step.stepping = None
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _normalise(self, step: TrainingStep) -> None:
        """Turn the sum over the group into its mean: over the weights, or over fewer micro-batches than expected."""
        if step.weight_key is not None:
            factor = 1 / self._weight
            self._weight = 0.0
        elif self._micro_batches != step.group_size:
            factor = step.group_size / self._micro_batches
        else:
            return
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)
