"""Moves modules and batches to the device that computes.

Listens to:

- STARTED in PREPARE: moves the modules.
- GET_BATCH_COMPLETED in PREPARE: moves the batch; not at all on the CPU, where every loader puts it anyway.
- ITERATION_COMPLETED in PREPARE, on XLA only: lets the device compute what the iteration has only written down.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine.events import Events
from camshaft.engine.nested import rebuilt
from camshaft.engine.phases import Phase
from camshaft.engine.training_step import TrainingStep
from camshaft.engine.used_objects import modules_used_by
from camshaft.handlers.handler import Handler, On, handlers_of

__all__ = ["Device", "device_of", "moved"]


class Device(Handler):
    """Places the modules and each batch on one device.

    Args:
        device: a ``torch.device``, its name, or ``"auto"``: the accelerator of this process where there is one (the
            one of its local rank when distributed), else the CPU. ``"xla"``: a TPU, or what else ``torch_xla`` is told
            by ``PJRT_DEVICE``; this alone imports ``torch_xla``.
        modules: what to move when the run starts. Left out, the modules that the step uses are found in its code.
        non_blocking: let copies from pinned memory overlap with computing; the loader pins with ``pin_memory=True``.

    Batches may be nested: tensors in mappings, lists, tuples, named tuples and dataclasses are moved, and objects that
    have a method ``to``; anything else stays as it is.

    Raises:
        ValueError: the device is unknown, or not there; ``torch_xla`` is missing, or does not go with this torch.

    Example:
        >>> from camshaft import Engine
        >>> model = nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: model(batch["x"]).mean().item()).attach(Device("cpu"))
        >>> engine.run([{"x": torch.ones(4, 2)}]).batch["x"].device
        device(type='cpu')
    """

    alone = True

    def __init__(self, device: str | torch.device = "auto", *modules: nn.Module, non_blocking: bool = True) -> None:
        self.device = _resolved(device)
        self.modules = modules
        self.non_blocking = non_blocking
        self.listens = (On(Events.STARTED, Phase.PREPARE, "move_modules"),)
        if self.device.type != "cpu":
            self.listens += (On(Events.GET_BATCH_COMPLETED, Phase.PREPARE, "move_batch"),)
        if self.device.type == "xla":
            self.listens += (On(Events.ITERATION_COMPLETED, Phase.PREPARE, "compute"),)

    def move_modules(self, engine: IgniteEngine) -> None:
        """Move the modules in place, so that optimizers keep their parameters."""
        for module in self.modules or modules_used_by(engine._process_function).values():
            # An evaluator starts under inference mode, but its modules may be trained afterwards.
            with _parameters_kept(module, self.device), torch.inference_mode(mode=False):
                module.to(self.device)
        self._check_parameters(engine)

    def move_batch(self, engine: Any) -> None:
        """Move ``state.batch``."""
        engine.state.batch = moved(engine.state.batch, self.device, self.non_blocking)

    def compute(self) -> None:
        """Start what the iteration has written down, as one graph of which the next iteration's is a copy."""
        _torch_xla().sync()

    def _check_parameters(self, engine: IgniteEngine) -> None:
        step = engine._process_function
        for backward in step.backwards if isinstance(step, TrainingStep) else ():
            for parameter in getattr(backward, "parameters", ()):
                if parameter.device != self.device:
                    raise ValueError(
                        f"{self!r} computes on {self.device}, but an optimizer holds a parameter on "
                        f"{parameter.device}, whose module was not found in the step. Name the module: "
                        f"Device({str(self.device)!r}, model)."
                    )


def device_of(engine: IgniteEngine) -> torch.device:
    """Where an engine computes: its ``Device`` handler's device, else that of the modules its step uses, else the CPU.

    Example:
        >>> from camshaft import Engine
        >>> device_of(Engine(lambda engine, batch: None))
        device(type='cpu')
    """
    for handler in handlers_of(engine):
        if isinstance(handler, Device):
            return handler.device
    for module in modules_used_by(engine._process_function).values():
        for parameter in module.parameters():
            return parameter.device
    return torch.device("cpu")


def moved(batch: Any, device: torch.device, non_blocking: bool = True) -> Any:
    """``batch`` with all its tensors on ``device``; containers are made anew, anything else is passed on.

    Example:
        >>> moved({"x": torch.ones(2), "names": ["a", "b"]}, torch.device("meta"))
        {'x': tensor(..., device='meta', size=(2,)), 'names': ['a', 'b']}
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=non_blocking)
    if callable(getattr(batch, "to", None)):  # PackedSequence, Hugging Face's and PyG's batches, tensordicts
        return batch.to(device)
    return rebuilt(batch, lambda item: moved(item, device, non_blocking))


def _resolved(device: str | torch.device) -> torch.device:
    if device == "auto":
        if not torch.accelerator.is_available():
            return torch.device("cpu")
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        return torch.device(kind.type, _local_rank() % torch.accelerator.device_count())
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Device() does not know the device {device!r}: {error}") from None
    if resolved.type == "cpu":
        return torch.device("cpu")
    if resolved.type == "xla":
        found: torch.device = _torch_xla().device(resolved.index)
        return found
    if resolved.type not in ("cuda", "mps", "xpu"):
        return resolved
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type != resolved.type:
        raise ValueError(f"Device({str(device)!r}) is not there: torch finds no such device. Use 'auto' or 'cpu'.")
    count = torch.accelerator.device_count()
    index: int | None = resolved.index
    if index is not None and index >= count:
        raise ValueError(f"Device({str(device)!r}) is not there: torch finds only {count} such device(s).")
    return torch.device(resolved.type, _local_rank() % count if index is None else index)


def _torch_xla() -> ModuleType:
    try:
        torch_xla = importlib.import_module("torch_xla")
    except ImportError as error:  # also of one whose compiled part was built for another torch
        raise ValueError(
            f"Device('xla') needs torch_xla of the same version as torch, which is {torch.__version__}, but it cannot "
            f"be imported: {error}. Install both as https://docs.pytorch.org/xla says."
        ) from error
    # What Ignite 0.5.5 asks for in every metric, and torch_xla has had elsewhere since 2.7.
    model, runtime = torch_xla.core.xla_model, torch_xla.runtime
    for name, function in (
        ("xrt_world_size", runtime.world_size),
        ("get_ordinal", runtime.global_ordinal),
        ("get_local_ordinal", runtime.local_ordinal),
    ):
        if not hasattr(model, name):
            setattr(model, name, function)
    return torch_xla


@contextmanager
def _parameters_kept(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Let a module's parameters stay the same objects, for the optimizers' sake; torch makes new ones for XLA."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    moves = any(tensor.device != device for tensor in (*module.parameters(), *module.buffers()))
    torch.__future__.set_swap_module_params_on_conversion(before or (moves and device.type == "xla"))
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0")
