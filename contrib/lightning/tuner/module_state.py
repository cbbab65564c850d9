"""A module as it is now, to be put back after it was tried out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["left_as_it_was"]


@contextmanager
def left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Within it, a module may be trained; afterwards its weights, gradients, modes and attributes are as they were.

    Lists, dictionaries and sets of the module and of its parts get back what they held; objects of other classes are
    left as they are.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.seen = []
        >>> before = layer.weight.clone()
        >>> with left_as_it_was(layer):
        ...     _ = layer.weight.data.zero_()
        ...     layer.seen.append(1)
        >>> torch.equal(layer.weight, before), layer.seen
        (True, [])
    """
    parts = [_Kept(vars(part)) for part in module.modules()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = None  # so that none is added to those
    try:
        yield
    finally:
        for kept in parts:
            kept.put_back()
        for parameter, gradient in gradients:
            parameter.grad = gradient


class _Kept:
    """An object, and what it held: the numbers of a tensor, the items of a container."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.content: Any = None
        if isinstance(thing, Tensor):
            self.content = thing.detach().clone()
        elif isinstance(thing, dict):
            self.content = {name: _Kept(item) for name, item in thing.items()}
        elif isinstance(thing, list):
            self.content = [_Kept(item) for item in thing]
        elif isinstance(thing, set):
            self.content = set(thing)

    def put_back(self) -> Any:
        """Let the object hold it again; returns the object."""
        if isinstance(self.thing, Tensor):
            with torch.no_grad():
                if self.thing.requires_grad and not self.thing.is_leaf:
                    return self.thing  # a value of some step, with the graph that it has
                self.thing.data.copy_(self.content)
        elif isinstance(self.thing, dict):
            items = {name: kept.put_back() for name, kept in self.content.items()}
            self.thing.clear()
            self.thing.update(items)
        elif isinstance(self.thing, list):
            self.thing[:] = [kept.put_back() for kept in self.content]
        elif isinstance(self.thing, set):
            self.thing.clear()
            self.thing.update(self.content)
        return self.thing
