"""Where a run stands in its data: noted as a few numbers, and found again without loading what was seen."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from ignite.engine import Engine as IgniteEngine
from torch.utils.data import DataLoader, Dataset, IterableDataset

from camshaft.engine.generators import (
    generator_states,
    generators_kept,
    generators_within,
    seed_generators,
    set_generator_states,
)
from camshaft.engine.loading_ahead import DataState, LoadedAhead

__all__ = ["ResumableData", "borrows_generators", "data_state", "samples_per_iteration"]


class ResumableData:
    """Makes the iterators of an engine's data so that a position in them can be kept and found again.

    Each time the data begins anew, the states of all generators are noted. To find a position again they are set to
    what they were, the data begins as it did then, and what was seen is passed over:

    - a ``DataLoader`` of a map-style data set by its sampler, without loading a sample. Where its samplers are not
      torch's, the indices are drawn all at once when the data begins, so that what the sampler draws and what the step
      draws do not depend on each other; those of a sampler without length are drawn one by one from generators of its
      own. In workers each batch is loaded with a seed of its own, so that random augmentation does not depend on what
      the worker did before.
    - other data with ``state_dict`` and ``load_state_dict`` (torchdata's ``StatefulDataLoader`` of an
      ``IterableDataset``, and a loader that Accelerate has prepared around one) by these.
    - anything else by going through it again, which a warning says.

    Generators and numbers that are attributes of the loader's samplers and data set, such as an epoch that a sampler
    counts, are kept as well.

    Args:
        engine: the engine whose data it is, Camshaft's or a stock Ignite one.
    """

    def __init__(self, engine: Any) -> None:
        self._loaders: WeakKeyDictionary[DataLoader[Any], _ResumableLoader] = WeakKeyDictionary()
        self._at_first: tuple[Any, dict[str, Any]] = None, {}  # the data, and its numbers before the run
        self._began_at_iteration = 0
        self._at_begin: Mapping[str, Any] | None = None
        self._resume: Mapping[str, Any] | None = None
        self._resume_at: int | None = None  # the iteration at which it counts
        make_anew = engine._setup_dataloader_iter

        def setup_dataloader_iter() -> None:
            if engine.state.dataloader is None:
                make_anew()
            else:
                engine._dataloader_iter = self.iterator(engine.state.dataloader, engine.state.iteration)

        engine._setup_dataloader_iter = setup_dataloader_iter

    def let_go(self, engine: Any) -> None:
        """Let the engine make its iterators as it did before."""
        del engine._setup_dataloader_iter

    def look_at(self, data: Any) -> None:
        """Note the numbers that parts of ``data`` have before a run: only those that change are kept later."""
        if self._at_first[0] is not data:
            self._at_first = data, _numbers_in(data)

    def iterator(self, data: Iterable[Any], iteration: int) -> Iterator[Any]:
        """An iterator over ``data`` from its beginning, or from the position that was loaded."""
        self.look_at(data)
        if self._is_to_be_found(iteration):
            return self._found_again(data, iteration)
        self._began_at_iteration = iteration
        self._at_begin = {
            "generators": generator_states(_generators_of(data)),
            "numbers": self._changed_numbers(data),
            "has_workers": _has_workers(data),
        }
        return self._begin(data, skip=0)

    def state_dict(self, engine: IgniteEngine) -> dict[str, Any]:
        """The position after the iteration that was last completed."""
        if self._is_to_be_found(engine.state.iteration):
            return dict(self._resume or {})
        data: Any = engine.state.dataloader
        iterator: Any = engine._dataloader_iter
        with iterator.rewound() if isinstance(iterator, LoadedAhead) else nullcontext():
            state = {
                "taken": engine.state.iteration - self._began_at_iteration,
                "at_begin": self._at_begin,
                "generators": generator_states(_generators_of(data))["own"],
                "numbers": self._changed_numbers(data),
                "samples": samples_per_iteration(data),
            }
        if _keeps_its_position(data) and iterator is not None:
            ahead = iterator.position if isinstance(iterator, LoadedAhead) else None
            state["loader"] = ahead or data.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any], iteration: int | None = None) -> None:
        """Let the next iterator begin where ``state`` was taken.

        Args:
            state: what :meth:`state_dict` gave.
            iteration: at which that iterator has to be made; one that is made later begins anew.
        """
        self._resume = state if state["at_begin"] is not None else None
        self._resume_at = iteration

    def _is_to_be_found(self, iteration: int) -> bool:
        """Whether a position was loaded but not yet gone to.

        An engine that makes the first iterator by itself (Ignite's DeterministicEngine) has gone on without: what was
        loaded does not count for the next one.
        """
        if self._resume_at not in (None, iteration):
            self._resume = None
        return self._resume is not None

    def _found_again(self, data: Any, iteration: int) -> Iterator[Any]:
        state, self._resume = self._resume, None
        assert state is not None
        own = _generators_of(data)
        self._began_at_iteration = iteration - state["taken"]
        self._at_begin = state["at_begin"]
        with generators_kept():
            if state["at_begin"]["has_workers"] and not _has_workers(data):
                self._begin(data, skip=None)  # a loader draws from the generators when it starts its workers
            set_generator_states(state["at_begin"]["generators"], own)
            self._set_numbers(data, state["at_begin"]["numbers"])
            if "loader" in state and _keeps_its_position(data):
                iterator = _loaded(data, state["loader"])
            else:
                iterator = self._begin(data, skip=state["taken"])
        set_generator_states({**generator_states(), "own": state["generators"]}, own)
        self._set_numbers(data, state["numbers"])
        return iterator

    def _begin(self, data: Any, skip: int | None) -> Iterator[Any]:
        """An iterator that begins after ``skip`` batches; None: it is not used, and need load nothing."""
        if _is_map_style(data):
            if data not in self._loaders:  # else persistent workers have what they were given the first time
                self._loaders[data] = _ResumableLoader(data)
            return self._loaders[data].iterator(data, skip)
        iterator: Iterator[Any] = iter(data)
        if skip:
            if not isinstance(data, (Sequence, torch.Tensor)):
                warnings.warn(
                    f"To go on where the run was, {skip} batches of {type(data).__name__} are loaded again and passed "
                    "over, since it has no state of its own: give it state_dict() and load_state_dict(), as "
                    "torchdata's StatefulDataLoader has, to save that time.",
                    stacklevel=2,
                )
            next(itertools.islice(iterator, skip - 1, skip), None)
        return iterator

    def _changed_numbers(self, data: Any) -> dict[str, Any]:
        """The numbers that are not what they were before the run: not the size of a batch or the rank of a process."""
        _, at_first = self._at_first
        return {name: number for name, number in _numbers_in(data).items() if at_first.get(name) != number}

    def _set_numbers(self, data: Any, changed: Mapping[str, Any]) -> None:
        _set_numbers(data, {**self._at_first[1], **changed})


class _Seeded(NamedTuple):
    """What the sampler gives to a worker: the index, or the indices, and a seed for loading them."""

    index: Any
    seed: int


class _ResumableLoader:
    """Makes iterators of one map-style ``DataLoader`` that begin after the first ``skip`` batches."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.part = "sampler" if loader.batch_sampler is None else "batch_sampler"
        self.sampler = _ResumableSampler(getattr(loader, self.part), with_seeds=loader.num_workers > 0)
        self.dataset = _SeededDataset(loader.dataset)

    def iterator(self, loader: DataLoader[Any], skip: int | None) -> Iterator[Any]:
        self.sampler.begin(skip)
        substitutes: dict[str, Any] = {self.part: self.sampler}
        if self.sampler.with_seeds:
            substitutes["dataset"] = self.dataset
        with _substituted(loader, substitutes):
            iterator = iter(loader)
        if skip:
            self.sampler.indices.start()  # while the generators are what they were when the data began
        return iterator


class _ResumableSampler:
    """The indices of a sampler from a position on, each with a seed for loading it where workers do so."""

    def __init__(self, sampler: Any, with_seeds: bool) -> None:
        self.sampler = sampler
        self.with_seeds = with_seeds
        self.skip: int | None = 0
        self.first_seed = 0

    def begin(self, skip: int | None) -> None:
        """Let the next ``__iter__`` pass over ``skip`` indices, or over all where it is None."""
        self.skip = skip
        if self.with_seeds:
            with generators_kept():  # the seed depends on the generator's state but leaves no trace in it
                self.first_seed = int(torch.randint(0, 2**62, ()))

    def __iter__(self) -> _Indices:
        sampler, skip = (self.sampler, self.skip) if self.skip is not None else ((), 0)
        self.indices = _Indices(sampler, skip, self.first_seed if self.with_seeds else None)
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
            self.numbered = enumerate(_drawn_independently(self.sampler))
            next(itertools.islice(self.numbered, self.skip, self.skip), None)
        return self.numbered

    def __next__(self) -> Any:
        number, index = next(self.start())
        return index if self.first_seed is None else _Seeded(index, self.first_seed + number)

    def __iter__(self) -> _Indices:
        return self


def _drawn_independently(sampler: Iterable[Any]) -> Iterable[Any]:
    """The indices of a sampler, such that what it draws does not depend on what others draw meanwhile."""
    if _is_torchs(sampler):
        return sampler  # torch's own draw before their first index all that they draw from global generators
    return list(sampler) if hasattr(sampler, "__len__") else _with_generators_of_its_own(iter(sampler))


def _is_torchs(sampler: Iterable[Any]) -> bool:
    parts = [sampler, getattr(sampler, "sampler", sampler)]
    return all(type(part).__module__.startswith("torch.") for part in parts)


def borrows_generators(data: Any) -> bool:
    """Whether :class:`ResumableData` sets the global generators at each batch of ``data``, for a moment.

    Example:
        >>> borrows_generators(DataLoader([1, 2], shuffle=True))
        False
    """
    sampler = data._index_sampler if _is_map_style(data) else []
    return not _is_torchs(sampler) and not hasattr(sampler, "__len__")


def _with_generators_of_its_own(indices: Iterator[Any]) -> Iterator[Any]:
    states = generator_states()
    while True:
        with generators_kept():
            set_generator_states(states)
            try:
                index = next(indices)
            except StopIteration:
                return
            states = generator_states()
        yield index


class _SeededDataset(Dataset[Any]):
    """A data set in a worker: seeds python's, NumPy's, torch's and its own generators, then loads.

    Any other attribute is that of the user's data set, also when ``worker_init_fn`` sets one.
    """

    def __init__(self, dataset: Any) -> None:
        vars(self)["dataset"] = dataset

    def __getitem__(self, seeded: _Seeded) -> Any:
        seed_generators(seeded.seed, generators_within(dataset=self.dataset))
        return self.dataset[seeded.index]

    def __getitems__(self, seeded: _Seeded) -> list[Any]:
        seed_generators(seeded.seed, generators_within(dataset=self.dataset))
        whole_batch = getattr(self.dataset, "__getitems__", None)
        return whole_batch(seeded.index) if whole_batch else [self.dataset[index] for index in seeded.index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


def samples_per_iteration(data: Any) -> int:
    """How many samples, or whatever the data counts, all processes that share the data take in one iteration.

    Example:
        >>> samples_per_iteration(DataLoader([1, 2, 3, 4], batch_size=2)), samples_per_iteration([1, 2])
        (2, 1)
    """
    shared_by = (getattr(part, "num_replicas", None) for part in _parts_of(data).values())
    return (getattr(data, "batch_size", None) or 1) * next((number for number in shared_by if number), 1)


def data_state(data: Any) -> DataState:
    """What loading from ``data`` changes in it.

    Example:
        >>> state = data_state(DataLoader([1, 2], generator=torch.Generator()))
        >>> list(state.note().generators)
        ['data.generator']
    """
    return DataState(
        _generators_of(data),
        lambda: _numbers_in(data),
        lambda numbers: _set_numbers(data, numbers),
        data.state_dict if _keeps_its_position(data) else None,
    )


def _is_map_style(data: Any) -> bool:
    """Whether it is a ``DataLoader`` whose batches are told by a sampler, torch's or torchdata's."""
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return False
    return type(data).__iter__ is DataLoader.__iter__ or type(data).__module__.startswith("torchdata.")


def _has_workers(data: Any) -> bool:
    """Whether it has workers by now that persist: then it goes over to them, and draws less."""
    return getattr(data, "persistent_workers", False) and getattr(data, "_iterator", None) is not None


def _keeps_its_position(data: Any) -> bool:
    if not getattr(data, "use_stateful_dataloader", True):  # of Accelerate: its state_dict() is an error then
        return False
    has_state = callable(getattr(data, "state_dict", None)) and callable(getattr(data, "load_state_dict", None))
    return has_state and not _is_map_style(data)


def _loaded(data: Any, state: Mapping[str, Any]) -> Iterator[Any]:
    data.load_state_dict(state)
    iterator = iter(data)
    # torchdata's loader begins anew where it was at its end; here the engine is to see that end first.
    return _ended(data) if state.get("_iterator_finished") else iterator


def _ended(data: Any) -> Iterator[Any]:
    """What is left of data that is at its end; there Accelerate's loader counts its epochs, by which it shuffles."""
    if hasattr(data, "use_stateful_dataloader"):
        data.iteration += 1
    yield from ()


def _parts_of(data: Any) -> dict[str, Any]:
    """A loader and what it is made of, as far as it is in this process."""
    batch_sampler = getattr(data, "batch_sampler", None)
    return {
        "data": data,
        "sampler": getattr(data, "sampler", None),
        "batch_sampler": batch_sampler,
        "inner_sampler": getattr(batch_sampler, "sampler", None),
        "dataset": getattr(data, "dataset", None),
    }


def _generators_of(data: Any) -> dict[str, Any]:
    return generators_within(**_parts_of(data))


def _numbers_in(data: Any) -> dict[str, Any]:
    """The numbers that are attributes of a loader's samplers and data set, or of other data, by name.

    A loader that Accelerate has prepared says that it is a ``DataLoader``, but counts its epochs itself.
    """
    return {
        f"{name}.{attribute}": value
        for name, part in _parts_of(data).items()
        for attribute, value in getattr(part, "__dict__", {}).items()
        if type(value) in (int, float, bool) and not issubclass(type(part), DataLoader)
    }


def _set_numbers(data: Any, numbers: Mapping[str, Any]) -> None:
    parts = _parts_of(data)
    for name, number in numbers.items():
        part, attribute = name.split(".", 1)
        if getattr(parts[part], attribute, number) != number:
            setattr(parts[part], attribute, number)


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
