"""Models and tensors of which each process holds a part, such as FSDP2's parameters and their gradients."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["is_sharded", "keep_skeleton", "part_here", "reshard", "sharded_like", "whole", "whole_copy"]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a ``DTensor``, told without an import that not every build of torch has.

    Example:
        >>> is_sharded(torch.ones(2))
        False
    """
    return hasattr(tensor, "full_tensor")


def part_here(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor that this process holds, sharing its memory; any other tensor is itself.

    Example:
        >>> part_here(torch.ones(2))
        tensor([1., 1.])
    """
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor put together on every process, where all must call this; any other tensor is itself.

    Example:
        >>> whole(torch.ones(2))
        tensor([1., 1.])
    """
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(model: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, which every process has, sharded as ``model`` is; itself if that is not, or if it is already.

    Example:
        >>> sharded_like(torch.zeros(2), torch.ones(2))
        tensor([1., 1.])
    """
    if not is_sharded(model) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - which not every build of torch has

    sharded: Any = model
    return distribute_tensor(
        tensor.to(model.device), sharded.device_mesh, sharded.placements, src_data_rank=None
    )  # None: nothing is sent


def reshard(module: nn.Module) -> None:
    """Let go of the whole weights that FSDP2 has put together, so that the module's parameters are the sharded ones.

    Example:
        >>> reshard(nn.Linear(2, 1))  # is not sharded
    """
    for part in module.modules():
        if hasattr(type(part), "_get_fsdp_state"):
            part.reshard()  # type: ignore[operator]


def keep_skeleton(model: nn.Module) -> None:
    """Keep a copy of a model that is about to be sharded, without its weights: FSDP2's modules cannot be copied."""
    weights = {id(one): nn.Parameter(torch.empty_like(one, device="meta"), False) for one in model.parameters()}
    _skeletons[model] = copy.deepcopy(model, dict(weights))


_skeletons: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()


def whole_copy(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a sharded model as it was before, without gradients and in evaluation mode.

    Args:
        model: one whose skeleton was kept.
        tensors: its parameters and buffers by name, sharded ones among them, for which all processes must call this.

    Raises:
        ValueError: there is no skeleton.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> keep_skeleton(model)
        >>> whole_copy(model, {"weight": torch.ones(1, 1), "bias": torch.zeros(1)})(torch.ones(1))
        tensor([1.])
    """
    if model not in _skeletons:
        raise ValueError(
            f"A whole copy is made of the model that was given to FullySharded, but {type(model).__name__} only has "
            "parts that are sharded."
        )
    copied = copy.deepcopy(_skeletons[model])
    with torch.no_grad():
        weights = {
            id(empty): nn.Parameter(whole(tensors[name]).detach().to(empty.dtype, copy=True), False)
            for name, empty in copied.named_parameters()
        }
        for part in copied.modules():
            for name, empty in part._parameters.items():
                if empty is not None:  # tied ones are replaced by the same
                    part._parameters[name] = weights[id(empty)]
        for name, buffer in list(copied.named_buffers()):
            owner, _, attribute = name.rpartition(".")
            copied.get_submodule(owner)._buffers[attribute] = tensors[name].detach().to(buffer.dtype, copy=True)
    return copied.eval()
