"""Automatic mixed precision.

Configures the engine's step, and listens to:

- STARTED in PREPARE: learns on which device to do so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.device import device_of
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.optimizer_step import OptimizerStep

__all__ = ["AMP"]

Precision = Literal["bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class AMP(Handler):
    """Runs the step under ``torch.autocast``, with gradient scaling where the precision needs it.

    ``"bf16"`` has the range of float32 and needs no scaling: it also goes around a step that does its own backward
    (existing Ignite code), and around an evaluator's. ``"fp16"`` scales the loss so that small gradients do not vanish,
    for which it must own the backward: it needs an ``OptimizerStep`` unless gradients are off.

    Args:
        precision: ``"bf16"`` or ``"fp16"``.
        scaler: for ``"fp16"``, a ``torch.amp.GradScaler`` of your own; its state is kept in checkpoints.

    Raises:
        ValueError: an unknown precision; when the run starts, ``"fp16"`` with nothing that owns the backward.

    Example:
        >>> from camshaft import Engine
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: str(model(batch).dtype)).attach(AMP("bf16"))
        >>> engine.run([torch.ones(4, 2)]).output
        'torch.bfloat16'
    """

    alone = True
    listens = (On(Events.STARTED, Phase.PREPARE, "prepare"),)

    def __init__(self, precision: Precision = "bf16", *, scaler: torch.amp.GradScaler | None = None) -> None:
        if precision not in _DTYPES:
            raise ValueError(f"AMP knows the precisions {' and '.join(map(repr, get_args(Precision)))}, not {precision!r}.")
        if scaler is not None and precision != "fp16":
            raise ValueError(f"AMP({precision!r}) scales no gradients; a scaler goes with AMP('fp16').")
        self.precision = precision
        self.scaler = scaler
        self._kept: Mapping[str, Any] | None = None  # the scaler's state, loaded before there is a scaler

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        owned = any(isinstance(handler, OptimizerStep) for handler in handlers_of(engine))
        if self.precision == "fp16" and torch.is_grad_enabled() and not owned:
            raise ValueError(
                "AMP('fp16') scales the loss, so it must own the backward: attach OptimizerStep(optimizer) and let the "
                "step return the loss without its own backward() and step(), or use AMP('bf16'), which needs no scaling."
            )

    def prepare(self, engine: IgniteEngine) -> None:
        """Put autocast for the engine's device around its step."""
        step = TrainingStep.of(engine)
        device_type = device_of(engine).type
        step.forward_context = torch.autocast(device_type, dtype=_DTYPES[self.precision])
        if self.precision == "fp16" and torch.is_grad_enabled():
            if self.scaler is None:
                self.scaler = torch.amp.GradScaler(device_type)
                self.scaler.load_state_dict(dict(self._kept or self.scaler.state_dict()))
            step.scaler = self.scaler

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        step = TrainingStep.of(engine)
        step.forward_context = step.scaler = None

    def state_dict(self) -> dict[str, Any]:
        return {"scaler": self.scaler.state_dict()} if self.scaler is not None else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._kept = state_dict.get("scaler")
        if self.scaler is not None and self._kept:
            self.scaler.load_state_dict(dict(self._kept))
