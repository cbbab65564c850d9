"""The example with which a model is called to see its shapes or its graph, brought to it as a batch would be."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["example_input"]


def example_input(model: nn.Module, given: Any = None) -> Any:
    """The example as the model's ``forward`` gets it, or None where there is none.

    Args:
        model: with an ``example_input_array``, if it has one.
        given: an example in its place.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> model.example_input_array = torch.ones(1, 2)
        >>> example_input(model)
        tensor([[1., 1.]])
    """
    example = getattr(model, "example_input_array", None) if given is None else given
    if example is None:
        return None
    before, after = getattr(model, "on_before_batch_transfer", None), getattr(model, "on_after_batch_transfer", None)
    if before is not None:
        example = before(example, 0)
    example = _on_device_of(model, example)
    return example if after is None else after(example, 0)


def _on_device_of(model: nn.Module, example: Any) -> Any:
    device = next((parameter.device for parameter in model.parameters()), None)
    if device is None:
        return example
    transfer = getattr(model, "transfer_batch_to_device", None)
    if transfer is not None:
        return transfer(example, device, 0)
    return pytree.tree_map(lambda part: part.to(device) if hasattr(part, "to") else part, example)
