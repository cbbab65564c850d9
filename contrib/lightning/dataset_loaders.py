"""Loaders of data sets that a data module was given."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from camshaft.engine.nested import rebuilt

__all__ = ["loaders_of"]


def loaders_of(datasets: Any, *, batch_size: int, num_workers: int, shuffle: bool) -> Any:
    """A loader of a data set, or the same collection of loaders of a collection of data sets.

    Args:
        datasets: a data set, or a list, dictionary and so on of data sets.
        batch_size: of each loader.
        num_workers: of each loader.
        shuffle: whether each epoch has an order of its own, where the data set can be accessed in any order.

    Example:
        >>> from camshaft.contrib.lightning.demos.boring_classes import RandomDataset
        >>> loaders = loaders_of({"a": RandomDataset(2, 8)}, batch_size=4, num_workers=0, shuffle=False)
        >>> len(loaders["a"])
        2
    """
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "shuffle": shuffle}
    if not isinstance(datasets, Dataset):
        return rebuilt(datasets, lambda part: loaders_of(part, **options))
    if isinstance(datasets, IterableDataset):
        options["shuffle"] = False
    return DataLoader(datasets, pin_memory=torch.accelerator.is_available(), **options)
