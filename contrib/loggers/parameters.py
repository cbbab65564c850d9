"""Hyperparameters in the forms that services take: flat and plain."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch

__all__ = ["as_mapping", "as_plain", "flattened"]

_PLAIN = {bool, int, float, str}
_LONGEST = 100  # characters by which an object is described


def as_mapping(params: Any) -> dict[str, Any]:
    """Hyperparameters as a dictionary.

    Example:
        >>> as_mapping(Namespace(lr=0.1)), as_mapping(None)
        ({'lr': 0.1}, {})
    """
    if params is None:
        return {}
    return dict(vars(params)) if isinstance(params, Namespace) else dict(params)


def flattened(params: Mapping[Any, Any], before: str = "") -> dict[str, Any]:
    """Hyperparameters without dictionaries in dictionaries.

    Args:
        params: the hyperparameters.
        before: what stands before each name.

    Example:
        >>> flattened({"optimizer": {"name": "SGD", "lr": 0.1}, "loaders": [{"size": 1}, {"size": 2}]})
        {'optimizer/name': 'SGD', 'optimizer/lr': 0.1, 'loaders/0/size': 1, 'loaders/1/size': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{before}{key}"
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)  # noqa: PLW2901
        elif isinstance(value, Namespace):
            value = vars(value)  # noqa: PLW2901
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))  # noqa: PLW2901
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{name}/"))
        else:
            flat[name] = value
    return flat


def as_plain(value: Any) -> Any:
    """The same of numbers, strings, lists and dictionaries only; an object is described in a few words.

    Example:
        >>> as_plain({"size": (2, 3), "loss": torch.nn.MSELoss, "data": PurePath("data"), "rate": torch.tensor(0.5)})
        {'size': [2, 3], 'loss': 'MSELoss', 'data': 'data', 'rate': 0.5}
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {as_plain(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_plain(item) for item in value]
    return value if value is None or type(value) in _PLAIN else _described(value)


def _described(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:  # a number of NumPy's or torch's
        return value.item()
    if isinstance(value, type):
        return value.__name__
    text = str(value) if isinstance(value, PurePath | torch.device) else repr(value)
    if len(text) <= _LONGEST and "\n" not in text and not text.startswith("<"):
        return text
    return getattr(value, "__name__", type(value).__name__)
