"""Limits gradients before each optimizer step.

Listens to:

- OPTIMIZER_STEP_STARTED in PREPARE: clips, and notes the norm before clipping in ``state.metrics["gradient_norm"]``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import StepEvents
from camshaft.engine.phases import Phase
from camshaft.engine.sharded import is_sharded, part_here, whole
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.handler import Handler, On
from camshaft.handlers.optimizer_step import OptimizerStep, optimizer_steps_of, refuse_reevaluation

__all__ = ["GradientClipping"]


class GradientClipping(Handler):
    """Clips gradients to a largest norm, or each of their elements to a largest value.

    Args:
        max_norm: scale the gradients of one optimizer step so that their common norm is at most this.
        max_value: clip each element to ``[-max_value, max_value]`` instead.
        norm_type: the p of the norm, 2.0 by default; ``float("inf")`` for the largest element.

    The norm before clipping, a scalar tensor on the gradients' device, is in ``state.metrics["gradient_norm"]``.

    Raises:
        ValueError: neither or both limits are given, or one is not positive; when the run starts, if no
            ``OptimizerStep`` is attached, or one that evaluates the loss several times a step.

    Example:
        >>> from camshaft import Engine
        >>> from camshaft.handlers import OptimizerStep
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> engine = Engine(lambda engine, batch: model(batch).mean())
        >>> engine = engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=1.0)), GradientClipping(0.5))
        >>> engine.run([torch.full((4, 1), 3.0)]).metrics, round(model.weight.item(), 3)
        ({'gradient_norm': tensor(3.)}, 0.5)
    """

    alone = True
    listens = (On(StepEvents.OPTIMIZER_STEP_STARTED, Phase.PREPARE, "clip"),)

    def __init__(
        self, max_norm: float | None = None, *, max_value: float | None = None, norm_type: float = 2.0
    ) -> None:
        if (max_norm is None) == (max_value is None):
            raise ValueError(
                f"GradientClipping needs one limit, a norm or a value, but got max_norm={max_norm!r} and "
                f"max_value={max_value!r}."
            )
        limit = max_norm if max_norm is not None else max_value
        if not isinstance(limit, (int, float)) or not limit > 0:
            raise ValueError(f"GradientClipping needs a positive limit, but got {limit!r}.")
        self.max_norm = max_norm
        self.max_value = max_value
        self.norm_type = float(norm_type)

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        refuse_reevaluation(self, engine)
        if not optimizer_steps_of(engine):
            raise ValueError(
                f"{self!r} clips between backward and the optimizer's step, so it needs an OptimizerStep on the same "
                "engine. Attach OptimizerStep(optimizer) and let the step return the loss."
            )

    def clip(self, engine: Any) -> None:
        """Clip the gradients of the ``OptimizerStep`` that steps now."""
        stepping = TrainingStep.of(engine).stepping
        assert isinstance(stepping, OptimizerStep)
        parameters = stepping.parameters
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if any(map(is_sharded, gradients)):
            norm = norm_over_processes(gradients, self.norm_type)
            parts: Any = [_WithGradient(part_here(gradient)) for gradient in gradients]
        else:
            norm = torch.nn.utils.get_total_norm(gradients, self.norm_type)
            parts = parameters
        if self.max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parts, self.max_norm, norm)
        else:
            torch.nn.utils.clip_grad_value_(parts, self.max_value or 0.0)
        engine.state.metrics["gradient_norm"] = norm


class _WithGradient:
    """Stands for a parameter of which this process holds a part: torch's functions only look at the gradient."""

    def __init__(self, gradient: torch.Tensor) -> None:
        self.grad = gradient


def norm_over_processes(gradients: Iterable[torch.Tensor], norm_type: float) -> torch.Tensor:
    """The common norm of gradients of which some are sharded, the same on every process; all must call this."""
    sharded: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for gradient in gradients:
        (sharded if is_sharded(gradient) else others).append(gradient)
    if norm_type == float("inf"):  # which torch does not compute where a process has no element of a gradient
        parts = [part for gradient in sharded if (part := part_here(gradient)).numel()]
        norm = torch.nn.utils.get_total_norm(parts, norm_type).to(part_here(sharded[0]).device)
        dist.all_reduce(norm, dist.ReduceOp.MAX)
    else:
        norm = whole(torch.nn.utils.get_total_norm(sharded, norm_type))
    return torch.nn.utils.get_total_norm([norm, *others], norm_type) if others else norm
