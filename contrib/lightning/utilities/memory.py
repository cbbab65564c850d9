"""Memory: giving it back, and telling that there was too little."""

from __future__ import annotations

import gc
from typing import Any

import torch

from camshaft.engine.nested import rebuilt
from camshaft.handlers.batch_size_finder import is_out_of_memory

__all__ = ["garbage_collection_cuda", "is_oom_error", "recursive_detach"]


def is_oom_error(exception: BaseException) -> bool:
    """Whether an error says that there is too little memory, on an accelerator or on the host.

    Example:
        >>> is_oom_error(torch.OutOfMemoryError("CUDA out of memory.")), is_oom_error(ValueError("out of luck"))
        (True, False)
    """
    return is_out_of_memory(exception)


def garbage_collection_cuda() -> None:
    """Give unused memory back to the accelerator, where there is one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def recursive_detach(in_dict: Any, to_cpu: bool = False) -> Any:
    """Nested data with its tensors detached from the graph, and on the host where asked.

    Example:
        >>> recursive_detach({"loss": torch.ones(1, requires_grad=True)})
        {'loss': tensor([1.])}
    """
    if isinstance(in_dict, torch.Tensor):
        detached = in_dict.detach()
        return detached.cpu() if to_cpu else detached
    return rebuilt(in_dict, lambda part: recursive_detach(part, to_cpu))
