"""Several loaders as one: side by side, or one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any, Literal, TypeAlias

from camshaft.engine.nested import rebuilt

__all__ = ["CombinedLoader"]

Item: TypeAlias = tuple[Any, int, int]  # batch, batch_idx, dataloader_idx
_END = object()  # what an exhausted iterator gives


class CombinedLoader(Iterable[Item]):
    """Gives batches of several iterables as ``(batch, batch_idx, dataloader_idx)``.

    Args:
        iterables: an iterable, or a list, tuple or dictionary of them, nested as you like; the batches have its shape.
        mode: ``"min_size"`` ends with the shortest iterable; ``"max_size"`` with the longest, and has None for those
            that have ended; ``"max_size_cycle"`` with the longest, and begins the others again; ``"sequential"`` takes
            one after the other, counting batches anew in each.

    Attributes:
        iterables: what it was given.
        flattened: the iterables as a list; assign one of the same length to exchange them.
        limits: at most so many batches of each iterable; None for all, a number for every one, or a list.

    Raises:
        ValueError: another mode, or as many limits as there are no iterables.

    Example:
        >>> loaders = {"digits": [1, 2, 3], "letters": "ab"}
        >>> for item in CombinedLoader(loaders, "max_size_cycle"):
        ...     print(item)
        ({'digits': 1, 'letters': 'a'}, 0, 0)
        ({'digits': 2, 'letters': 'b'}, 1, 0)
        ({'digits': 3, 'letters': 'a'}, 2, 0)
        >>> list(CombinedLoader(loaders, "sequential"))
        [(1, 0, 0), (2, 1, 0), (3, 2, 0), ('a', 0, 1), ('b', 1, 1)]
        >>> len(CombinedLoader(loaders, "min_size"))
        2
    """

    def __init__(
        self, iterables: Any, mode: Literal["min_size", "max_size_cycle", "max_size", "sequential"] = "min_size"
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"CombinedLoader(mode=...) is one of {', '.join(map(repr, _MODES))}, but got {mode!r}.")
        self._iterables = iterables
        self._mode: str = mode
        self._limits: list[float] | None = None
        self._iterator: Iterator[Item] | None = None

    @property
    def iterables(self) -> Any:
        """The collection of iterables that it was given."""
        return self._iterables

    @property
    def flattened(self) -> list[Any]:
        """The iterables as a list."""
        found: list[Any] = []
        _mapped(self._iterables, found.append)
        return found

    @flattened.setter
    def flattened(self, flattened: list[Any]) -> None:
        if len(flattened) != len(self.flattened):
            raise ValueError(f"There are {len(self.flattened)} iterables; {len(flattened)} cannot take their place.")
        self._iterables = self._as_collection(flattened)

    @property
    def limits(self) -> list[float] | None:
        """At most so many batches of each iterable."""
        return self._limits

    @limits.setter
    def limits(self, limits: float | list[float] | None) -> None:
        if isinstance(limits, int | float):
            limits = [limits] * len(self.flattened)
        if limits is not None and len(limits) != len(self.flattened):
            raise ValueError(f"There are {len(self.flattened)} iterables, but {len(limits)} limits.")
        self._limits = limits

    @property
    def sampler(self) -> Any:
        """The samplers of the loaders, in the same collection; None for what has none."""
        return self._as_collection([getattr(iterable, "sampler", None) for iterable in self.flattened])

    @property
    def batch_sampler(self) -> Any:
        """The batch samplers of the loaders, in the same collection; None for what has none."""
        return self._as_collection([getattr(iterable, "batch_sampler", None) for iterable in self.flattened])

    def __iter__(self) -> CombinedLoader:
        iterables = self.flattened
        limits = self._limits or [math.inf] * len(iterables)
        if self._mode == "sequential":
            self._iterator = _one_after_the_other(iterables, limits)
        else:
            iterators = [iter(iterable) for iterable in iterables]  # now, as random numbers may be drawn for it
            batches = _SIDE_BY_SIDE[self._mode](iterables, iterators, limits)
            self._iterator = ((self._as_collection(batch), index, 0) for index, batch in enumerate(batches))
        return self

    def __next__(self) -> Item:
        if self._iterator is None:
            iter(self)
        assert self._iterator is not None
        return next(self._iterator)

    def __len__(self) -> int:
        lengths = [_length(iterable) for iterable in self.flattened]
        if self._limits is not None:
            lengths = [min(length, limit) for length, limit in zip(lengths, self._limits, strict=True)]
        length = _MODES[self._mode](lengths) if lengths else 0
        if length == math.inf:
            raise TypeError(f"The length of CombinedLoader(..., {self._mode!r}) is not known: an iterable has none.")
        return int(length)

    def reset(self) -> None:
        """Forget where it is, and end the workers of its loaders."""
        self._iterator = None
        for iterable in self.flattened:
            iterator = getattr(iterable, "_iterator", None)  # torch's, which `persistent_workers` keeps
            if iterator is not None:
                shut_down = getattr(iterator, "_shutdown_workers", None)
                if shut_down is not None:
                    shut_down()
                iterable._iterator = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iterator": None}  # iterators of loaders cannot be copied

    def _as_collection(self, values: list[Any]) -> Any:
        remaining = iter(values)
        return _mapped(self._iterables, lambda _: next(remaining))


def _mapped(collection: Any, function: Callable[[Any], Any]) -> Any:
    """The collection with the results of ``function`` in the place of its iterables."""
    if not isinstance(collection, dict | list | tuple):
        return function(collection)
    parts = collection.values() if isinstance(collection, dict) else collection
    if all(isinstance(part, int | float | str) for part in parts):
        return function(collection)  # itself an iterable, of numbers or of nothing
    return rebuilt(collection, lambda part: _mapped(part, function))


def _length(iterable: Any) -> float:
    try:
        return len(iterable)
    except (TypeError, NotImplementedError):  # without one, and of a data set without one
        return math.inf


Iterators: TypeAlias = list[Iterator[Any]]


def _shortest(iterables: list[Any], iterators: Iterators, limits: list[float]) -> Iterator[list[Any]]:
    yield from _limited(map(list, zip(*iterators, strict=False)), min(limits, default=0))


def _longest(iterables: list[Any], iterators: Iterators, limits: list[float]) -> Iterator[list[Any]]:
    iterators = [_limited(iterator, limit) for iterator, limit in zip(iterators, limits, strict=True)]
    while True:
        batch = [next(iterator, _END) for iterator in iterators]
        if all(part is _END for part in batch):
            return
        yield [None if part is _END else part for part in batch]


def _longest_with_others_again(iterables: list[Any], iterators: Iterators, limits: list[float]) -> Iterator[list[Any]]:
    """Ends when every iterable has ended, or reached its limit, at least once."""
    ended = [False] * len(iterables)
    for index in count():
        batch = []
        for number, iterator in enumerate(iterators):
            ended[number] = ended[number] or index >= limits[number]
            part = next(iterator, _END)
            if part is _END:
                ended[number] = True
                if not all(ended):
                    iterators[number] = iter(iterables[number])
                    part = next(iterators[number], _END)
            batch.append(part)
        if all(ended) or any(part is _END for part in batch):  # or one is empty
            return
        yield batch


def _one_after_the_other(iterables: list[Any], limits: list[float]) -> Iterator[Item]:
    for number, (iterable, limit) in enumerate(zip(iterables, limits, strict=True)):
        if limit > 0:  # no workers are started for nothing
            for index, batch in enumerate(_limited(iter(iterable), limit)):
                yield batch, index, number


def _limited(iterator: Iterator[Any], limit: float) -> Iterator[Any]:
    return iterator if limit == math.inf else islice(iterator, int(limit))


_SIDE_BY_SIDE = {"min_size": _shortest, "max_size_cycle": _longest_with_others_again, "max_size": _longest}
_MODES: dict[str, Callable[[list[float]], float]] = {
    "min_size": min,
    "max_size_cycle": max,
    "max_size": max,
    "sequential": sum,
}
