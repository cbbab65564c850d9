"""Compares what came of one program on two engines, to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["assert_same"]


def assert_same(ours: Any, ignites: Any) -> None:
    """Fail and say where if the two, nested as they may be, differ by as much as a bit."""
    found = list(_differences(ours, ignites))
    assert not found, "on our engine and on Ignite's: " + "; ".join(found[:10])


def _differences(one: Any, other: Any, where: str = "result") -> Iterator[str]:
    if any(isinstance(one, kind) and isinstance(other, kind) for kind in (Mapping, list, tuple)):
        items, others = _items(one), _items(other)
        if list(items) != list(others):
            yield f"{where} has {list(items)} and {list(others)}"
        for key in items.keys() & others.keys():
            yield from _differences(items[key], others[key], f"{where}[{key!r}]")
    elif not _same(one, other):
        yield f"{where} is {one!r} and {other!r}"


def _items(container: Any) -> Mapping[Any, Any]:
    return container if isinstance(container, Mapping) else dict(enumerate(container))


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    both_nan = isinstance(one, float) and math.isnan(one) and math.isnan(other)
    return both_nan or bool(one == other)
