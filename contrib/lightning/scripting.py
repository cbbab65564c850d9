"""What `torch.jit.script` leaves out of a module: what is there for training."""

from __future__ import annotations

__all__ = ["OwnProperties"]


class OwnProperties:
    """The value of ``__jit_unused_properties__`` and ``__jit_ignored_attributes__``.

    The names of the properties and of the annotated attributes that this package defines in a class.

    Example:
        >>> from camshaft.contrib.lightning import LightningModule
        >>> {"trainer", "_trainer", "hparams"} <= set(LightningModule.__jit_unused_properties__)
        True
    """

    def __get__(self, instance: object, owner: type) -> list[str]:
        own = [kind for kind in owner.__mro__ if kind.__module__.startswith("camshaft.contrib.lightning.")]
        properties = [name for kind in own for name, value in vars(kind).items() if isinstance(value, property)]
        return properties + [name for kind in own for name in vars(kind).get("__annotations__", ())]
