"""Which samples of its data set each batch of a loader holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, SequentialSampler

from camshaft.handlers.distributed_sampling import Shares

__all__ = ["batch_indices"]


def batch_indices(loader: Any) -> Iterator[list[int] | None]:
    """The indices of the samples of each batch of this process, in order; None for each where it cannot be told.

    A sampler that shuffles draws another order each time, so it does not tell; neither do data sets without indices.

    Args:
        loader: a ``DataLoader``, or whatever else gives batches; all processes must go through theirs.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> list(batch_indices(DataLoader([0.5, 0.6, 0.7], batch_size=2)))
        [[0, 1], [2]]
        >>> next(batch_indices([0.5, 0.6, 0.7]))
    """
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    if isinstance(batches, (BatchSampler, Shares)) and (
        isinstance(sampler, SequentialSampler) or getattr(sampler, "shuffle", True) is False
    ):
        yield from batches
        return
    while True:
        yield None
