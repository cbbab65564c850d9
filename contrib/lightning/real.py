"""Modules of the real Lightning, fitted by our Trainer.

Their methods ask Lightning's own trainer for what ours keeps elsewhere; for the run ours take their place.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

from camshaft.contrib.lightning.module import LightningModule

__all__ = ["adopt", "is_real", "release"]

# Methods that reach into the trainer: ours do the same with ours.
_METHODS = (
    "all_gather",
    "clip_gradients",
    "log",
    "log_dict",
    "lr_schedulers",
    "manual_backward",
    "optimizers",
    "print",
    "toggle_optimizer",
    "toggled_optimizer",
    "untoggle_optimizer",
)
# Hooks that do the usual thing where a module does not override them.
_USUAL = (
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_validation_model_zero_grad",
    "optimizer_step",
    "optimizer_zero_grad",
    "transfer_batch_to_device",
)


def is_real(module: Any) -> bool:
    """Whether a module is one of the real Lightning's.

    Example:
        >>> is_real(nn.Linear(1, 1)), is_real(LightningModule())
        (False, False)
    """
    return any(
        base.__name__ == "LightningModule" and base.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
        for base in type(module).__mro__
    )


def adopt(module: Any, trainer: Any) -> None:
    """Let a module of the real Lightning, and its parts that are such modules, work with our trainer.

    Args:
        module: the module.
        trainer: that is about to run it.

    Raises:
        TypeError: it is no ``LightningModule`` at all.
    """
    if not is_real(module):
        raise TypeError(f"{type(module).__name__} is no LightningModule.")
    for part in (one for one in module.modules() if is_real(one)):
        part._trainer = trainer
        part._results = None
        part.__dict__["hyperparameters_for_checkpoint"] = MethodType(_hyperparameters_for_checkpoint, part)
        for name in _METHODS:
            part.__dict__[name] = MethodType(getattr(LightningModule, name), part)
        for name in _USUAL:
            if not _overrides(part, name):
                part.__dict__[name] = MethodType(getattr(LightningModule, name), part)


def release(module: Any) -> None:
    """Undo :func:`adopt`, so that Lightning's own trainer can have the module again."""
    for part in (one for one in module.modules() if is_real(one)):
        for name in (*_METHODS, *_USUAL, "hyperparameters_for_checkpoint", "_results"):
            part.__dict__.pop(name, None)


def _overrides(module: Any, name: str) -> bool:
    """Whether a class of the user's defines it."""
    owner = next((base for base in type(module).__mro__ if name in vars(base)), nn.Module)
    return owner.__module__.split(".")[0] not in ("lightning", "pytorch_lightning")


def _hyperparameters_for_checkpoint(self: Any) -> dict[str, Any]:
    """The entries by which either ``load_from_checkpoint`` finds the arguments of ``__init__``."""
    if not getattr(self, "hparams", None):
        return {}
    return {"hparams_name": self._hparams_name, "hyper_parameters": dict(self.hparams)}
