"""Where a run's data comes from, and how much of it is used."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from camshaft.contrib.lightning.combined_loader import CombinedLoader
from camshaft.contrib.lightning.hooks import is_overridden

__all__ = [
    "Batches",
    "Limited",
    "LookingAhead",
    "Source",
    "batches_in",
    "batches_to_evaluate",
    "batches_to_train",
    "in_order",
    "number_of_batches",
    "set_epoch",
]


class Source:
    """Where the loaders of one stage come from: what was passed, else the data module, else the module.

    Args:
        given: what was passed to ``fit`` or its like.
        datamodule: whose hook is asked if nothing was passed.
        module: whose hook is asked if the data module has none.
        hook: ``"train_dataloader"`` and so on.

    Example:
        >>> Source([1, 2], None, None, "train_dataloader").request()
        [1, 2]
    """

    def __init__(self, given: Any, datamodule: Any, module: Any, hook: str) -> None:
        self.given = given
        self.hook = hook
        owners = [owner for owner in (datamodule, module) if is_overridden(hook, owner)]
        self._request: Callable[[], Any] | None = getattr(owners[0], hook) if owners else None
        self._peeked: Any = None

    @property
    def exists(self) -> bool:
        """Whether there is any."""
        return self.given is not None or self._request is not None

    def peek(self) -> Any:
        """The loaders that the next :meth:`request` will give."""
        if self._peeked is None:
            self._peeked = self.request()
        return self._peeked

    def request(self) -> Any:
        """The loaders; a hook makes them now.

        Raises:
            ValueError: there are none.
        """
        if self.given is not None:
            return self.given
        if self._peeked is not None:
            peeked, self._peeked = self._peeked, None
            return peeked
        if self._request is None:
            raise ValueError(f"There is no data: pass a loader, or define {self.hook}() in the module or data module.")
        loaders = self._request()
        if loaders is None:
            raise ValueError(f"{self.hook}() returned None: return a loader, or several.")
        return loaders


class Batches(NamedTuple):
    """What a stage runs over.

    Attributes:
        iterable: of the batches.
        number: how many of them are used; infinite if all of those that do not say how many they are.
        has_length: whether they say so.
        loaders: that they come from.
    """

    iterable: Any
    number: float
    has_length: bool
    loaders: list[Any]


def batches_to_train(
    loaders: Any, limit: float | None, prepared: Callable[[Any], Any] = lambda loader: loader
) -> Batches:
    """The batches of what a user gave to train on: a collection of loaders is gone through together.

    Args:
        loaders: a loader, or a collection of them.
        limit: of ``limit_train_batches``.
        prepared: gives each loader the form in which it is used.

    Raises:
        TypeError: it cannot be iterated over.
        ValueError: its loaders come one after the other; a limit that makes no sense.

    Example:
        >>> batches_to_train([1, 2, 3], 2).number
        2
    """
    if isinstance(loaders, CombinedLoader) and loaders._mode == "sequential":
        raise ValueError(
            "CombinedLoader(..., 'sequential') is for evaluation: to train on several loaders choose 'min_size', "
            "'max_size_cycle' or 'max_size'."
        )
    return _batches(loaders, "max_size_cycle", "train", limit, prepared)


def batches_to_evaluate(
    loaders: Any, stage: str, limit: float | None, prepared: Callable[[Any], Any] = lambda loader: loader
) -> list[Batches]:
    """The batches to evaluate on, of one loader after the other; other arguments as of :func:`batches_to_train`.

    Args:
        loaders: a loader, or a collection of them.
        stage: ``"val"``, ``"test"`` or ``"predict"``.
        limit: of each loader.
        prepared: gives each loader the form in which it is used.
    """
    mode = loaders._mode if isinstance(loaders, CombinedLoader) else "sequential"
    if mode == "sequential" and (isinstance(loaders, CombinedLoader) or _is_collection(loaders)):
        parts = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "sequential")
        return [_batches_of_one(loader, stage, limit, prepared) for loader in parts.flattened]
    return [_batches(loaders, mode, stage, limit, prepared)]


def _batches(loaders: Any, mode: Any, stage: str, limit: float | None, prepared: Callable[[Any], Any]) -> Batches:
    if not isinstance(loaders, CombinedLoader) and not _is_collection(loaders):
        return _batches_of_one(loaders, stage, limit, prepared)
    combined = copy.copy(loaders) if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, mode)
    each = [_batches_of_one(loader, stage, limit, prepared) for loader in combined.flattened]
    parts = [part.iterable for part in each]
    combined.flattened = parts
    combined.limits = [part.number for part in each]
    return Batches(_Together(combined), batches_in(combined), batches_in(combined) != float("inf"), parts)


def _batches_of_one(loader: Any, stage: str, limit: float | None, prepared: Callable[[Any], Any]) -> Batches:
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(f"The data to {stage} on is {loader!r}, which is not iterable: give a DataLoader, or batches.")
    loader = prepared(loader)
    number = number_of_batches(loader, limit, f"limit_{stage}_batches")
    return Batches(loader, number, batches_in(loader) != float("inf"), [loader])


def in_order(loader: Any) -> Any:
    """The same loader without shuffling, so that its first batches are always the same.

    Example:
        >>> loader = DataLoader([3, 1, 2], batch_size=None, shuffle=True)
        >>> list(in_order(loader))
        [3, 1, 2]
    """
    if not isinstance(loader, DataLoader) or not isinstance(getattr(loader, "sampler", None), RandomSampler):
        return loader
    ordered = copy.copy(loader)
    ordered._iterator = None
    sampler = SequentialSampler(loader.dataset)  # type: ignore[arg-type]
    object.__setattr__(ordered, "sampler", sampler)  # a loader refuses it, but only lest its parts contradict
    batches = loader.batch_sampler
    if type(batches) is BatchSampler:
        batches = BatchSampler(sampler, batches.batch_size, batches.drop_last)
        object.__setattr__(ordered, "batch_sampler", batches)
    return ordered


def set_epoch(loaders: Iterable[Any], epoch: int) -> None:
    """Tell the epoch to the samplers that draw an order by it."""
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        samplers = getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)
        for sampler in {id(one): one for one in samplers}.values():  # usually the same
            set_its_epoch = getattr(sampler, "set_epoch", None)
            if callable(set_its_epoch):
                set_its_epoch(epoch)


def batches_in(loader: Any) -> float:
    """How many batches a loader has; infinite if it does not say.

    Example:
        >>> batches_in([1, 2, 3]), batches_in(iter([]))
        (3, inf)
    """
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # an IterableDataset without length raises the one or the other
        return float("inf")


def number_of_batches(loader: Any, limit: float | None, name: str) -> float:
    """How many batches of a loader are used.

    Args:
        loader: the batches.
        limit: a number of batches (an int), a share of them (a float), or None for all.
        name: of the flag, for the message.

    Returns:
        A whole number, or infinity.

    Raises:
        ValueError: a share of a loader without length, or one that comes to no batch.

    Example:
        >>> number_of_batches(range(10), 0.25, "limit_train_batches"), number_of_batches(range(10), 50, "limit")
        (2, 10)
    """
    length = batches_in(loader)
    if limit is None or length == 0 or limit == 0:
        return 0 if limit == 0 else length
    if isinstance(limit, int):
        return min(length, limit)
    if limit == 1.0:
        return length
    if length == float("inf"):
        raise ValueError(f"{name}={limit} is a share of data without length: give a number of batches.")
    if int(length * limit) == 0:
        raise ValueError(
            f"{name}={limit} of {length} batches is none: give at least {1 / length:.3g}, or a number of batches."
        )
    return int(length * limit)


class Limited:
    """The first ``number`` batches of data that does not say how many it has.

    Example:
        >>> list(Limited(itertools.count(), 3))
        [0, 1, 2]
    """

    def __init__(self, data: Iterable[Any], number: int) -> None:
        self.data = data
        self.number = number

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.data), self.number)


class LookingAhead:
    """Batches of data that does not say how many it has, each fetched while the one before waits: so the last is known.

    Args:
        data: the batches.
        most: how many at most.
        on_last: called with the number of the last batch, counted from 1, before it is given.

    Example:
        >>> list(LookingAhead(iter("abc"), 2, lambda number: print("last:", number)))
        last: 2
        ['a', 'b']
    """

    def __init__(self, data: Any, most: float, on_last: Callable[[int], None]) -> None:
        self.data = data
        self.most = most
        self.on_last = on_last

    def __iter__(self) -> Iterator[Any]:
        most = None if self.most == float("inf") else int(self.most)
        batches = itertools.islice(iter(self.data), most)
        end = object()
        batch, number = next(batches, end), 0
        while batch is not end:
            ahead = next(batches, end)
            number += 1
            if ahead is end:
                self.on_last(number)
            yield batch
            batch = ahead

    def __getattr__(self, name: str) -> Any:
        if name in ("data", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.data, name)


class _Together:
    """The batches of a ``CombinedLoader``, without the numbers that it gives with them."""

    def __init__(self, loader: CombinedLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch, _, _ in iter(self.loader))

    def __len__(self) -> int:
        iter(self.loader)  # which is how it finds out
        return len(self.loader)


def _is_collection(loaders: Any) -> bool:
    """Whether it holds loaders rather than batches."""
    if isinstance(loaders, Mapping):
        return True
    return isinstance(loaders, Sequence) and bool(loaders) and all(map(_is_loader, loaders))


def _is_loader(thing: Any) -> bool:
    return hasattr(thing, "batch_size") or hasattr(thing, "dataset") or isinstance(thing, (CombinedLoader, Mapping))
