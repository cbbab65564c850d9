"""Gives each process its own part of the data.

Listens to:

- STARTED in PREPARE: puts loaders that share the data among the processes in the place of the engine's and its
  evaluators'.
- EPOCH_STARTED in PREPARE: tells the epoch to samplers that ask for it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from camshaft.engine.distributed import initialise, rank, world_size
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.engine.used_objects import modules_used_by
from camshaft.handlers.evaluate import Evaluate
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.optimizer_step import optimizer_steps_of

__all__ = ["DistributedSampling"]


class DistributedSampling(Handler):
    """Shares the data of an engine, and of the evaluators attached to it, among the processes; nothing on one process.

    A loader keeps its data set, workers, collate function and batch size, which is now that of each process. What
    changes is which indices it loads:

    - The sampler (shuffling, weighted, the user's own) draws on the first process, from that one's random numbers, and
      the others follow it: the order is that of one process with batches as large as all of theirs together, of which
      each takes its share. No sample is left out or taken twice, and all processes have the same number of batches: a
      last batch too small to share goes into the one before. ``drop_last`` drops it instead.
    - A batch sampler of the user gives whole batches, in turn; what cannot be shared evenly in the end is left out,
      because processes that train together must make as many steps. An evaluation leaves nothing out.
    - Of a loader without batches (``batch_size=None``), and of an ``IterableDataset``, each process goes through all
      and takes its turn, in the same way, unless ``split_iterable=False`` says that the data set does so itself.
    - A loader whose sampler is distributed already, which shows in ``num_replicas`` or ``set_epoch``, is left alone but
      for ``set_epoch`` at each epoch; one that Accelerate has prepared is left alone.

    Args:
        split_iterable: whether to share what an ``IterableDataset`` gives.

    Raises:
        ValueError: when the run starts on several processes, if nothing exchanges gradients between them, or if there
            are fewer samples than processes.

    Example:
        >>> from camshaft import Engine
        >>> engine = Engine(lambda engine, batch: None).attach(DistributedSampling())
        >>> engine.run([1, 2, 3]).iteration
        3
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.PREPARE, "share"),
        On(Events.EPOCH_STARTED, Phase.PREPARE, "set_epoch"),
    )

    def __init__(self, *, split_iterable: bool = True) -> None:
        self.split_iterable = split_iterable
        # By the identity of the user's loader, which is kept with it, and whether it is shared evenly.
        self._shared: dict[tuple[int, bool], tuple[Any, Any]] = {}

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        initialise()  # where a launcher has started several processes

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        exchanged = any(handler.exchanges_gradients for handler in handlers_of(engine)) or any(
            isinstance(module, DistributedDataParallel) for module in modules_used_by(engine._process_function).values()
        )
        if world_size() > 1 and optimizer_steps_of(engine) and not exchanged:
            raise ValueError(
                f"{self!r} shares the data among {world_size()} processes, but nothing exchanges their gradients, so "
                "that each would train a model of its own: attach DataParallel(model), too."
            )

    def share(self, engine: IgniteEngine) -> None:
        """Put shared loaders in the place of the user's."""
        if world_size() == 1:
            return
        state = engine.state
        if state.dataloader is not None:
            loader, state.dataloader = state.dataloader, self._share_of(state.dataloader, even=True)
            if state.epoch_length is not None and state.epoch_length == _length(loader):
                state.epoch_length = _length(state.dataloader)
        for handler in handlers_of(engine):
            if isinstance(handler, Evaluate):
                handler.data = self._share_of(handler.data, even=False)

    def set_epoch(self, engine: IgniteEngine) -> None:
        """Tell the epoch, counted from 0, to whatever draws an order by it."""
        if world_size() == 1:
            return
        if hasattr(engine.state.dataloader, "use_stateful_dataloader"):  # Accelerate's, which counts by itself
            return
        for part in (*_samplers(engine.state.dataloader), getattr(engine.state.dataloader, "dataset", None)):
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(engine.state.epoch - 1)

    def _share_of(self, data: Any, even: bool) -> Any:
        if (id(data), even) not in self._shared:
            shared = self._new_share_of(data, even)
            self._shared[id(data), even] = (data, shared)
            self._shared[id(shared), even] = (shared, shared)
        return self._shared[id(data), even][1]

    def _new_share_of(self, data: Any, even: bool) -> Any:
        # By its type, since a loader that Accelerate has prepared, and shared already, says that it is a DataLoader.
        if not issubclass(type(data), DataLoader) or any(_is_distributed(sampler) for sampler in _samplers(data)):
            return data
        if isinstance(data.dataset, IterableDataset):
            return _TurnsOf(data, even) if self.split_iterable else data
        if data.batch_sampler is None:
            return _with_sampler(data, "sampler", Turns(data.sampler, even))
        if type(data.batch_sampler) is BatchSampler:
            batches = data.batch_sampler
            shares = Shares(batches.sampler, batches.batch_size, batches.drop_last)
            return _with_sampler(data, "batch_sampler", shares)
        return _with_sampler(data, "batch_sampler", Turns(data.batch_sampler, even))


class Shares:
    """Batches of indices for this process: its share of each batch that all processes make together.

    Args:
        sampler: gives the order of all indices.
        batch_size: of each process.
        drop_last: whether to leave out what does not fill a batch of all processes.
    """

    def __init__(self, sampler: Iterable[Any], batch_size: int, drop_last: bool) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    @property
    def num_replicas(self) -> int:
        """Among how many processes it shares, by the name that torch's ``DistributedSampler`` has for it."""
        return world_size()

    def __iter__(self) -> Iterator[list[Any]]:
        order = drawn_by_first_process(self.sampler)
        whole = self.batch_size * world_size()
        for number in range(len(self)):
            last = number == len(self) - 1 and not self.drop_last
            together = order[number * whole : None if last else (number + 1) * whole]
            yield together[rank() :: world_size()]

    def __len__(self) -> int:
        samples, processes = len(self.sampler), world_size()  # type: ignore[arg-type]
        if samples < processes:
            raise ValueError(f"{samples} samples cannot be shared among {processes} processes: use fewer of them.")
        whole = self.batch_size * processes
        if self.drop_last:
            return samples // whole
        too_few_to_share = 0 < samples % whole < processes
        return max(1, math.ceil(samples / whole) - too_few_to_share)


class Turns:
    """What a sampler gives to all processes in turn.

    Args:
        sampler: gives the order.
        even: whether each process gets as many, and what is left over in the end is left out.
    """

    def __init__(self, sampler: Iterable[Any], even: bool = True) -> None:
        self.sampler = sampler
        self.even = even

    @property
    def num_replicas(self) -> int:
        """Among how many processes it shares, by the name that torch's ``DistributedSampler`` has for it."""
        return world_size()

    def __iter__(self) -> Iterator[Any]:
        drawn = drawn_by_first_process(self.sampler)
        yield from itertools.islice(drawn[rank() :: world_size()], len(self))

    def __len__(self) -> int:
        return _turns(len(self.sampler), self.even)  # type: ignore[arg-type]


class _TurnsOf:
    """The batches of a loader whose data set only iterates, each process taking its turn."""

    def __init__(self, loader: DataLoader[Any], even: bool) -> None:
        self.loader = loader
        self.even = even
        self.batch_size = loader.batch_size  # of each process

    @property
    def num_replicas(self) -> int:
        """Among how many processes it shares, by the name that torch's ``DistributedSampler`` has for it."""
        return world_size()

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while turn := list(itertools.islice(batches, world_size())):
            if len(turn) == world_size() or (len(turn) > rank() and not self.even):
                yield turn[rank()]

    def __len__(self) -> int:
        return _turns(len(self.loader), self.even)


def _turns(all_of_them: int, even: bool) -> int:
    """How many of so many are this process's, if they are dealt out in turn."""
    return all_of_them // world_size() if even else len(range(rank(), all_of_them, world_size()))


def drawn_by_first_process(sampler: Iterable[Any]) -> list[Any]:
    """All that a sampler gives on the first process, on every process."""
    drawn: list[Any] = [list(sampler) if rank() == 0 else None]
    dist.broadcast_object_list(drawn)
    order: list[Any] = drawn[0]
    return order


def _with_sampler(loader: DataLoader[Any], name: str, sampler: Any) -> DataLoader[Any]:
    """A loader like this one but for its sampler; a copy, so that nothing else about it can change."""
    shared = copy.copy(loader)
    shared._iterator = None
    object.__setattr__(shared, name, sampler)  # a loader refuses it, but only lest its parts contradict
    return shared


def _samplers(loader: Any) -> list[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = [getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    return [sampler for sampler in found if sampler is not None]


def _is_distributed(sampler: Any) -> bool:
    return isinstance(sampler, (Shares, Turns)) or hasattr(sampler, "num_replicas") or hasattr(sampler, "set_epoch")


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None
