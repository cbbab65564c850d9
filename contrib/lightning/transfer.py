"""Moves batches to the device, by the module's own hooks where it has some."""

from __future__ import annotations

from typing import Any

import torch

from camshaft.contrib.lightning.hooks import is_overridden
from camshaft.engine.engine import Engine
from camshaft.engine.events import Events
from camshaft.engine.nested import rebuilt
from camshaft.engine.phases import Phase, subscribe
from camshaft.handlers.device import Device

__all__ = ["attach_transfer"]


def attach_transfer(engine: Engine, evaluation: Any, trainer: Any) -> None:
    """Attach what moves batches to the device, with the module's hooks where it has some.

    Args:
        engine: that trains or evaluates.
        evaluation: whose engine it is, None for the one that trains.
        trainer: whose module, data module and precision are used.
    """
    module, device = trainer.lightning_module, trainer.strategy.root_device
    names = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    dtype = trainer.precision_settings.dtype
    # A data module's hook comes before that of the module.
    owners = {name: [one for one in (trainer.datamodule, module) if is_overridden(name, one)] for name in names}
    if not any(owners.values()) and dtype is None:
        engine.attach(Device(device, module))
        return

    def transfer(engine: Any) -> None:
        index = evaluation.dataloader_idx if evaluation is not None else 0
        batch = engine.state.batch
        if dtype is not None:
            batch = _in_dtype(batch, dtype)
        batch = before(batch, index)
        batch = move(batch, device, index)
        engine.state.batch = after(batch, index)

    before, move, after = (getattr((*owners[name], module)[0], name) for name in names)
    subscribe(engine, Events.GET_BATCH_COMPLETED, transfer, Phase.PREPARE)


def _in_dtype(batch: Any, dtype: torch.dtype) -> Any:
    """A batch with its floating-point tensors in another type."""
    if isinstance(batch, torch.Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    return rebuilt(batch, lambda item: _in_dtype(item, dtype))
