"""Automatic mixed precision.

Configures the engine's step, and listens to:

- STARTED in PREPARE: learns on which device to do so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.device import device_of
from camshaft.handlers.handler import Handler, On
from camshaft.handlers.optimizer_step import optimizer_steps_of, refuse_reevaluation

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
        scaler: for ``"fp16"``, a ``torch.amp.GradScaler`` of your own, of which each further ``OptimizerStep`` of the
            engine gets a copy: they step at different times, so each adapts its own scale.

    Attributes:
        dtype: what it computes in.
        scalers: for ``"fp16"``, from the start of the run on, one for each ``OptimizerStep``; checkpoints keep their
            state.

    Raises:
        ValueError: an unknown precision; when the run starts, ``"fp16"`` with nothing that owns the backward, or with
            an optimizer that evaluates the loss several times a step.

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
            raise ValueError(
                f"AMP knows the precisions {' and '.join(map(repr, get_args(Precision)))}, not {precision!r}."
            )
        if scaler is not None and precision != "fp16":
            raise ValueError(f"AMP({precision!r}) scales no gradients; a scaler goes with AMP('fp16').")
        self.precision = precision
        self.dtype = _DTYPES[precision]
        self.scalers = [scaler] if scaler is not None else []
        self._loaded: list[dict[str, Any]] = []  # the state of scalers that are not made yet

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        if not self._scales():
            return
        refuse_reevaluation(self, engine)
        if not optimizer_steps_of(engine):
            raise ValueError(
                "AMP('fp16') scales the loss, so it must own the backward: attach OptimizerStep(optimizer) and let the "
                "step return the loss without its own backward() and step(), or use AMP('bf16'), which needs no "
                "scaling. An evaluator is run under torch.inference_mode(), as Evaluate does."
            )

    def prepare(self, engine: IgniteEngine) -> None:
        """Put autocast for the engine's device around its step."""
        device_type = device_of(engine).type
        TrainingStep.of(engine).forward_context = torch.autocast(device_type, dtype=self.dtype)
        if self._scales():
            for index, optimizer_step in enumerate(optimizer_steps_of(engine)):
                optimizer_step.scaler = self._scaler(index, device_type)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        TrainingStep.of(engine).forward_context = None
        for optimizer_step in optimizer_steps_of(engine):
            optimizer_step.scaler = None

    def state_dict(self) -> dict[str, Any]:
        return {"scalers": [scaler.state_dict() for scaler in self.scalers]} if self.scalers else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._loaded = list(state_dict.get("scalers", ()))
        for scaler, state in zip(self.scalers, self._loaded, strict=False):
            scaler.load_state_dict(state)

    def _scales(self) -> bool:
        return self.precision == "fp16" and torch.is_grad_enabled()

    def _scaler(self, index: int, device_type: str) -> torch.amp.GradScaler:
        if index == len(self.scalers):
            self.scalers.append(copy.deepcopy(self.scalers[0]) if self.scalers else torch.amp.GradScaler(device_type))
            if index < len(self._loaded):
                self.scalers[index].load_state_dict(self._loaded[index])
        return self.scalers[index]
