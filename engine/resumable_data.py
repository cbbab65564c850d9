"""Where a run stands in its data: noted as a few numbers, and found again without loading what was seen."""

from __future__ import annotations

import itertools
import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine as IgniteEngine
from torch.utils.data import DataLoader, Dataset, IterableDataset

from camshaft.engine.generators import generator_states, generators_kept, generators_within, set_generator_states

__all__ = ["ResumableData"]


class ResumableData:
    """Makes the iterators of an engine's data so that a position in them can be kept and found again.

    Each time the data begins anew, the states of all generators are noted. To find a position again they are set to what
    they were, the data begins as it did then, and what was seen is passed over:

    - a ``DataLoader`` of a map-style data set by its sampler, without loading a sample. Where its samplers are not
      torch's, the indices are drawn all at once when the data begins, so that what the sampler draws and what the step
      draws do not depend on each other. In workers each batch is loaded with a seed of its own, so that random
      augmentation does not depend on what the worker did before.
    - data with ``state_dict`` and ``load_state_dict`` (torchdata's ``StatefulDataLoader``) by these.
    - anything else by going through it again, which a warning says.

    Args:
        engine: the engine whose data it is, Camshaft's or a stock Ignite one.
    """

    def __init__(self, engine: IgniteEngine) -> None:
        self._loaders: dict[int, _ResumableLoader] = {}  # kept, as persistent workers keep what they were given
        self._began_at_iteration = 0
        self._states_at_begin: Mapping[str, Any] | None = None
        self._resume: Mapping[str, Any] | None = None
        make_anew = engine._setup_dataloader_iter

        def setup_dataloader_iter() -> None:
            if engine.state.dataloader is None:
                make_anew()
            else:
                engine._dataloader_iter = self.iterator(engine.state.dataloader, engine.state.iteration)

        engine._setup_dataloader_iter = setup_dataloader_iter

    def iterator(self, data: Iterable[Any], iteration: int) -> Iterator[Any]:
        """An iterator over ``data`` from its beginning, or from the position that was loaded."""
        if self._resume is not None:
            return self._found_again(data, iteration)
        self._began_at_iteration = iteration
        self._states_at_begin = generator_states(_generators_of(data))
        return self._begin(data, skip=0)

    def state_dict(self, engine: IgniteEngine) -> dict[str, Any]:
        """The position after the iteration that was last completed."""
        data = engine.state.dataloader
        state = {
            "taken": engine.state.iteration - self._began_at_iteration,
            "states_at_begin": self._states_at_begin,
            "own": generator_states(_generators_of(data))["own"],
        }
        if _has_state(data) and engine._dataloader_iter is not None:
            state["loader"] = data.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iterator begin where ``state`` was taken."""
        self._resume = state if state["states_at_begin"] is not None else None

    def _found_again(self, data: Iterable[Any], iteration: int) -> Iterator[Any]:
        state, self._resume = self._resume, None
        assert state is not None
        taken = state["taken"]
        own = _generators_of(data)
        self._began_at_iteration = iteration - taken
        self._states_at_begin = state["states_at_begin"]
        with generators_kept():
            set_generator_states(state["states_at_begin"], own)
            if "loader" in state and _has_state(data):
                data.load_state_dict(state["loader"])
                iterator = iter(data)
            else:
                iterator = self._begin(data, skip=taken)
        set_generator_states({**generator_states(), "own": state["own"]}, own)
        return iterator

    def _begin(self, data: Iterable[Any], skip: int) -> Iterator[Any]:
        if type(data) is DataLoader and not isinstance(data.dataset, IterableDataset):
            if id(data) not in self._loaders:
                self._loaders[id(data)] = _ResumableLoader(data)
            return self._loaders[id(data)].iterator(skip)
        iterator = iter(data)
        if skip:
            if not isinstance(data, (list, tuple, range)):
                warnings.warn(
                    f"To go on where the run was, {skip} batches of {type(data).__name__} are loaded again and passed "
                    "over, since it has no state of its own: give it state_dict() and load_state_dict(), as torchdata's "
                    "StatefulDataLoader has, to save that time.",
                    stacklevel=2,
                )
            next(itertools.islice(iterator, skip - 1, skip), None)
        return iterator


class _Seeded(NamedTuple):
    """What the sampler gives to a worker: the index, or the indices, and a seed for loading them."""

    index: Any
    seed: int


class _ResumableLoader:
    """Makes iterators of one map-style ``DataLoader`` that begin after the first ``skip`` batches."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.batched = loader.batch_sampler is not None
        sampler = loader.batch_sampler if self.batched else loader.sampler
        self.sampler = _ResumableSampler(sampler, with_seeds=loader.num_workers > 0)
        self.dataset = _SeededDataset(loader.dataset)

    def iterator(self, skip: int) -> Iterator[Any]:
        self.sampler.begin(skip)
        substitutes: dict[str, Any] = {"batch_sampler" if self.batched else "sampler": self.sampler}
        if self.loader.num_workers > 0:
            substitutes["dataset"] = self.dataset
        with _substituted(self.loader, substitutes):
            iterator = iter(self.loader)
        if skip:
            self.sampler.indices.start()  # while the generators are what they were when the data began
        return iterator


class _ResumableSampler:
    """The indices of a sampler from a position on, each with a seed for loading it where workers do so."""

    def __init__(self, sampler: Any, with_seeds: bool) -> None:
        self.sampler = sampler
        self.with_seeds = with_seeds
        self.skip = 0
        self.first_seed = 0

    def begin(self, skip: int) -> None:
        """Let the next ``__iter__`` pass over ``skip`` indices."""
        self.skip = skip
        if self.with_seeds:
            with generators_kept():  # the seed depends on the generator's state but leaves no trace in it
                self.first_seed = int(torch.randint(0, 2**62, ()))

    def __iter__(self) -> _Indices:
        self.indices = _Indices(self.sampler, self.skip, self.first_seed if self.with_seeds else None)
        return self.indices

    def __len__(self) -> int:
        return len(self.sampler)


class _Indices:
    """The iterator of a :class:`_ResumableSampler`; it draws nothing before :meth:`start` or the first index."""

    def __init__(self, sampler: Any, skip: int, first_seed: int | None) -> None:
        self.sampler = sampler
        self.skip = skip
        self.first_seed = first_seed
        self.numbered: Iterator[tuple[int, Any]] | None = None

    def start(self) -> Iterator[tuple[int, Any]]:
        """Pass over what is to be skipped, and not one index more."""
        if self.numbered is None:
            everything = self.sampler if _draws_only_when_it_begins(self.sampler) else list(self.sampler)
            self.numbered = enumerate(everything)
            next(itertools.islice(self.numbered, self.skip, self.skip), None)
        return self.numbered

    def __next__(self) -> Any:
        number, index = next(self.start())
        return index if self.first_seed is None else _Seeded(index, self.first_seed + number)

    def __iter__(self) -> _Indices:
        return self


class _SeededDataset(Dataset[Any]):
    """A data set in a worker: seeds python's, NumPy's and torch's generators, then loads."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, seeded: _Seeded) -> Any:
        _seed_generators(seeded.seed)
        return self.dataset[seeded.index]

    def __getitems__(self, seeded: _Seeded) -> list[Any]:
        _seed_generators(seeded.seed)
        whole_batch = getattr(self.dataset, "__getitems__", None)
        return whole_batch(seeded.index) if whole_batch else [self.dataset[index] for index in seeded.index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _seed_generators(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _draws_only_when_it_begins(sampler: Any) -> bool:
    """Whether all its random numbers come before its first index, as in torch's own samplers."""
    parts = [sampler, getattr(sampler, "sampler", sampler)]
    return not isinstance(sampler, Sized) or all(type(part).__module__.startswith("torch.") for part in parts)


def _generators_of(data: Any) -> dict[str, Any]:
    """The generators of a loader and its parts, as far as they are in this process."""
    batch_sampler = getattr(data, "batch_sampler", None)
    return generators_within(
        data=data,
        sampler=getattr(data, "sampler", None),
        batch_sampler=batch_sampler,
        inner_sampler=getattr(batch_sampler, "sampler", None),
        dataset=getattr(data, "dataset", None),
    )


def _has_state(data: Any) -> bool:
    return callable(getattr(data, "state_dict", None)) and callable(getattr(data, "load_state_dict", None))


@contextmanager
def _substituted(loader: DataLoader[Any], substitutes: Mapping[str, Any]) -> Iterator[None]:
    """Within this context the loader has other parts; afterwards the user's own again."""
    before = {name: getattr(loader, name) for name in substitutes}
    try:
        for name, part in substitutes.items():
            object.__setattr__(loader, name, part)  # a loader refuses it, but only lest its parts contradict
        yield
    finally:
        for name, part in before.items():
            object.__setattr__(loader, name, part)
