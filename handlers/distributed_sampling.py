"""Gives each process its own part of the data, shuffled anew each epoch.

Listens to:

- EPOCH_STARTED in PREPARE: tells the sampler the epoch, from which it draws the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ignite.distributed as idist
import torch.distributed
from ignite.engine import Engine as IgniteEngine
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.handlers.handler import Handler, On

__all__ = ["DistributedSampling"]


class DistributedSampling(Handler):
    """Lets a distributed sampler draw another order each epoch; does nothing on one process.

    As in a hand-written loop, the first epoch's order is that of ``set_epoch(0)``.

    Args:
        loader: the loader; left out, the one that the engine runs over.

    Raises:
        ValueError: when the run starts on several processes, if the sampler of a ``DataLoader`` is not distributed, so
            that each process would see all the data. A loader of an ``IterableDataset`` must split it itself.

    Example:
        >>> from camshaft import Engine
        >>> engine = Engine(lambda engine, batch: None).attach(DistributedSampling())
        >>> engine.run([1, 2, 3]).iteration
        3
    """

    alone = True
    listens = (On(Events.EPOCH_STARTED, Phase.PREPARE, "set_epoch"),)

    def __init__(self, loader: Any = None) -> None:
        self.loader = loader

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        loader = self.loader if self.loader is not None else engine.state.dataloader
        if _world_size() == 1 or not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return
        if not any(
            isinstance(sampler, DistributedSampler) or hasattr(sampler, "num_replicas") or _knows_epochs(sampler)
            for sampler in _samplers(loader)
        ):
            raise ValueError(
                f"There are {_world_size()} processes, but the {type(loader).__name__} has a "
                f"{type(loader.sampler).__name__}, which gives all the data to each of them. Make the loader "
                "with sampler=torch.utils.data.DistributedSampler(dataset, shuffle=...), or leave DistributedSampling "
                "out if its dataset is this process's part already."
            )

    def set_epoch(self, engine: IgniteEngine) -> None:
        """Tell the epoch, counted from 0, to whatever draws the order of the data."""
        if _world_size() == 1:
            return
        loader = self.loader if self.loader is not None else engine.state.dataloader
        for sampler in (*_samplers(loader), getattr(loader, "dataset", None)):
            if _knows_epochs(sampler):
                sampler.set_epoch(engine.state.epoch - 1)


def _samplers(loader: Any) -> Iterator[Any]:
    """What may draw the order: the sampler, the sampler of batches, and the sampler within that."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found: list[Any] = []
    for sampler in (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        if sampler is not None and not any(sampler is other for other in found):
            found.append(sampler)
    yield from found


def _knows_epochs(sampler: Any) -> bool:
    return callable(getattr(sampler, "set_epoch", None))


def _world_size() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(idist.get_world_size())  # Horovod, XLA
