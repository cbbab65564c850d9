"""Memory: giving it back, and telling that there was too little."""

from __future__ import annotations

import gc
from typing import Any

import torch

from camshaft.engine.nested import rebuilt

__all__ = ["garbage_collection_cuda", "is_oom_error", "recursive_detach"]


def is_oom_error(exception: BaseException) -> bool:
    """Whether an error says that there is too little memory, on an accelerator or on the host.

    Example:
        >>> is_oom_error(torch.OutOfMemoryError("CUDA out of memory.")), is_oom_error(ValueError("out of luck"))
        (True, False)
    """
    if isinstance(exception, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(exception, RuntimeError):
        return False
    text = str(exception)
    return (
        ("out of memory" in text and ("CUDA" in text or "MPS" in text or "XPU" in text))
        or "can't allocate memory" in text  # DefaultCPUAllocator
        or "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED." in text  # as cuDNN says it for some sizes
    )


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
