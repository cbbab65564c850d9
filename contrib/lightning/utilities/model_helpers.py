"""Questions about modules."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from camshaft.contrib.lightning import hooks
from camshaft.contrib.lightning.class_method import class_method

__all__ = ["get_torchvision_model", "is_overridden"]

_restricted_classmethod = class_method


def is_overridden(method_name: str, instance: object | None = None, parent: type[object] | None = None) -> bool:
    """Whether an object has a method of its own.

    Args:
        method_name: of the method.
        instance: a module, a data module, a callback, or an object of another class; None has none.
        parent: the class whose method is not its own; that of Lightning unless given.

    Raises:
        ValueError: the parent has no such method.

    Example:
        >>> from camshaft.contrib.lightning.demos.boring_classes import BoringModel
        >>> is_overridden("training_step", BoringModel()), is_overridden("on_fit_start", BoringModel())
        (True, False)
    """
    if instance is None:
        return False
    if parent is None:
        return hooks.is_overridden(method_name, instance)
    if not hasattr(parent, method_name):
        raise ValueError(f"{parent.__name__} has no method {method_name!r} that could be overridden.")
    own = getattr(instance, method_name, None)
    return own is not None and inspect.unwrap(getattr(own, "__func__", own)) is not getattr(parent, method_name)


def get_torchvision_model(model_name: str, **kwargs: Any) -> nn.Module:
    """A model of torchvision by its name.

    Args:
        model_name: such as ``"resnet18"``.
        kwargs: for the model.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    try:
        from torchvision import models  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise ModuleNotFoundError(
            f"get_torchvision_model({model_name!r}) needs torchvision: pip install torchvision."
        ) from error
    model: nn.Module = models.get_model(model_name, **kwargs)
    return model
