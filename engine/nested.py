"""Nested data: batches and outputs, which are containers of containers of tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

__all__ = ["rebuilt"]


def rebuilt(container: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a mapping, list, tuple, named tuple or dataclass with ``change`` applied to each item.

    The copy is of the same class, with the same default factory and the like. Anything else comes back as it is.

    Args:
        container: one level of nested data; ``change`` goes deeper where it calls this function again.
        change: called with each item.

    Example:
        >>> rebuilt({"one": 1, "two": [2]}, str), rebuilt("text", str.upper)
        ({'one': '1', 'two': '[2]'}, 'text')
    """
    kind = type(container)
    if kind is dict:
        return {key: change(item) for key, item in container.items()}
    if isinstance(container, Mapping):
        return _rebuilt_mapping(container, {key: change(item) for key, item in container.items()})
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return kind(*map(change, container))
    if isinstance(container, (list, tuple)):
        return kind(map(change, container))
    if dataclasses.is_dataclass(container) and not isinstance(container, type):
        changed = copy.copy(container)
        for field in dataclasses.fields(container):
            object.__setattr__(changed, field.name, change(getattr(container, field.name)))
        return changed
    return container


def _rebuilt_mapping(mapping: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    """``content`` as a mapping of the same class, or as the dict where that class cannot be made from one."""
    if isinstance(mapping, MutableMapping):
        changed = copy.copy(mapping)
        for key, item in content.items():
            changed[key] = item
        return changed
    try:
        return type(mapping)(content)  # type: ignore[call-arg]
    except TypeError:
        return content
