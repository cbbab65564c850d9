"""Sizes of batches and of loaders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset

from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

__all__ = ["extract_batch_size", "has_iterable_dataset", "has_len", "sized_len", "suggested_max_num_workers"]


def extract_batch_size(batch: Any) -> int:
    """The first dimension of the first tensor in a batch.

    Raises:
        MisconfigurationException: there is no tensor.

    Example:
        >>> extract_batch_size({"names": ["a", "b", "c"], "x": torch.ones(3, 2)})
        3
    """
    for tensor in _tensors(batch):
        return tensor.shape[0] if tensor.ndim else 1
    raise MisconfigurationException(
        "There is no tensor in the batch to tell its size by: self.log(..., batch_size=...) says it."
    )


def sized_len(dataloader: Any) -> int | None:
    """The length of an object, None where it has none.

    Example:
        >>> sized_len([1, 2]), sized_len(iter([]))
        (2, None)
    """
    try:
        return len(dataloader)
    except (TypeError, NotImplementedError):
        return None


def has_len(dataloader: Any) -> bool:
    """Whether an object has a length."""
    return sized_len(dataloader) is not None


def has_iterable_dataset(dataloader: Any) -> bool:
    """Whether a loader's data set gives its samples in an order of its own."""
    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def suggested_max_num_workers(local_world_size: int) -> int:
    """How many workers each loader may have, where so many processes share the machine.

    Example:
        >>> suggested_max_num_workers(1) >= 1
        True
    """
    if local_world_size < 1:
        raise ValueError(f"There is at least one process on a machine, but got local_world_size={local_world_size}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_world_size - 1)  # one core is the process's own


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, Iterable) and not isinstance(batch, str | bytes):
        for part in batch:
            yield from _tensors(part)
