"""Where a run's data comes from, and how much of it is used."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from camshaft.contrib.lightning.combined_loader import CombinedLoader
from camshaft.contrib.lightning.hooks import is_overridden

__all__ = ["Limited", "Source", "Together", "batches_in", "evaluation_loaders", "number_of_batches", "training_loader"]


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


def training_loader(loaders: Any) -> Any:
    """One iterable of batches from what a user gave to train on: a collection of loaders is gone through together.

    Raises:
        TypeError: it cannot be iterated over.
    """
    if isinstance(loaders, CombinedLoader):
        return Together(loaders)
    if _is_collection(loaders):
        return Together(CombinedLoader(loaders, "max_size_cycle"))
    return _checked(loaders, "train")


def evaluation_loaders(loaders: Any, stage: str) -> list[Any]:
    """The iterables of batches to evaluate on, one after the other.

    Raises:
        TypeError: one cannot be iterated over.
    """
    if isinstance(loaders, CombinedLoader):
        if loaders._mode != "sequential":
            return [Together(loaders)]
        return [_checked(loader, stage) for loader in loaders.flattened]
    if _is_collection(loaders):
        return [_checked(loader, stage) for loader in CombinedLoader(loaders, "sequential").flattened]
    return [_checked(loaders, stage)]


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
            f"{name}={limit} of {length} batches is none at all: give at least {1 / length:.3g}, or a number of batches."
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


class Together:
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


def _checked(loader: Any, stage: str) -> Any:
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(f"The data to {stage} on is {loader!r}, which is not iterable: give a DataLoader, or batches.")
    return loader
