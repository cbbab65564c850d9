"""Nested data: moving it, and changing what is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from camshaft.engine.nested import rebuilt
from camshaft.handlers.device import moved

__all__ = ["apply_to_collection", "move_data_to_device"]


def move_data_to_device(batch: Any, device: torch.device | str | int) -> Any:
    """Nested data with its tensors on a device.

    Example:
        >>> move_data_to_device({"x": torch.ones(1)}, "meta")["x"].device
        device(type='meta')
    """
    return moved(batch, torch.device(device))


def apply_to_collection(
    data: Any,
    dtype: type | tuple[type, ...],
    function: Callable[..., Any],
    *args: Any,
    wrong_dtype: type | tuple[type, ...] | None = None,
    **kwargs: Any,
) -> Any:
    """Nested data with ``function`` applied to what is of a type.

    Args:
        data: the data.
        dtype: the type, or several.
        function: called with each such item and the further arguments.
        args: further arguments.
        wrong_dtype: a type to leave as it is, though it is one of ``dtype``.
        kwargs: further arguments.

    Example:
        >>> apply_to_collection({"a": 1, "b": ["x", 2]}, int, lambda number, by: number * by, 10)
        {'a': 10, 'b': ['x', 20]}
    """
    if isinstance(data, dtype) and not (wrong_dtype and isinstance(data, wrong_dtype)):
        return function(data, *args, **kwargs)
    return rebuilt(
        data, lambda part: apply_to_collection(part, dtype, function, *args, wrong_dtype=wrong_dtype, **kwargs)
    )
