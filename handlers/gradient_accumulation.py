"""One optimizer step for several micro-batches.

Configures the engine's step; listens to nothing.
"""

from __future__ import annotations

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.handler import Handler
from camshaft.handlers.optimizer_step import optimizer_steps_of, refuse_reevaluation

__all__ = ["GradientAccumulation"]


class GradientAccumulation(Handler):
    """Adds up the gradients of ``micro_batches`` batches before each optimizer step, as if they were one batch.

    The gradient is the mean over what was really accumulated: the last group of an epoch, if it is smaller, makes its
    step at the end of the epoch and is divided by its own number. The loss in ``state.output`` is that of the batch,
    not scaled.

    Args:
        micro_batches: batches in one optimizer step.
        weight: where batches count differently, the entry of the step's returned mapping that holds the weight of its
            loss, such as the number of tokens the loss is the mean of: the gradient is then the mean over all tokens of
            the group, on all processes, not the mean of means. ``GradientAccumulation(1, weight=…)`` weighs the
            processes' batches. Where a whole group has no weight, its gradients are zero.

    Raises:
        ValueError: ``micro_batches`` is not a positive integer; when the run starts, if no ``OptimizerStep`` is
            attached, or one that evaluates the loss several times a step.

    Example:
        >>> import torch
        >>> from camshaft import Engine
        >>> from camshaft.handlers import OptimizerStep
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: model(batch).square().mean())
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> state = engine.attach(GradientAccumulation(4), OptimizerStep(optimizer)).run([torch.ones(4, 2)] * 6)
        >>> state.iteration, state.optimizer_step
        (6, 2)
    """

    alone = True

    def __init__(self, micro_batches: int, *, weight: str | None = None) -> None:
        if isinstance(micro_batches, bool) or not isinstance(micro_batches, int) or micro_batches < 1:
            raise ValueError(f"GradientAccumulation needs at least one micro-batch, but got {micro_batches!r}.")
        self.micro_batches = micro_batches
        self.weight = weight

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        step = TrainingStep.of(engine)
        step.group_size, step.weight_key = self.micro_batches, self.weight

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        step = TrainingStep.of(engine)
        step.group_size, step.weight_key = 1, None

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        refuse_reevaluation(self, engine)
        if not optimizer_steps_of(engine):
            raise ValueError(
                f"{self!r} decides when the optimizer steps, so it needs an OptimizerStep on the same engine. Attach "
                "OptimizerStep(optimizer) and let the step return the loss without its own backward() and step()."
            )
