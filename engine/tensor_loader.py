"""Batches of a data set that fits in memory, taken out of whole tensors instead of put together sample by sample."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    default_collate,
)

from camshaft.engine.nested import rebuilt

__all__ = ["TensorLoader"]


class TensorLoader(DataLoader[Any]):
    """A ``DataLoader`` for what fits in memory: it indexes whole tensors, which takes a tenth of the time or less.

    It gives the batches that ``DataLoader(dataset, ...)`` gives without workers and with the same arguments, to the
    same bits and from the same random numbers, so that it can be put in its place; samplers, sharing among processes,
    and going on within an epoch work as they do there.

    Args:
        data: tensors with as many rows each, of which a batch is a list, or one map-style data set. A data set other
            than a ``TensorDataset`` is loaded once, sample by sample, and kept as torch's ``default_collate`` puts it
            together; what it does to a sample at random is done once, too. Tensors are kept as they are, not copied.
        batch_size: samples in a batch.
        shuffle: whether each pass has an order of its own.
        sampler: gives the order of indices, instead of ``shuffle``.
        batch_sampler: gives a batch of indices at a time, instead of ``batch_size``, ``shuffle``, ``sampler`` and
            ``drop_last``.
        drop_last: whether to leave out a last batch that is not full.
        generator: draws the order, instead of torch's global one.
        device: where to keep the tensors and so to make the batches, such as ``"cuda"``; left out, where they are.

    Raises:
        TypeError: ``data`` is neither tensors nor one map-style data set.
        ValueError: the tensors differ in rows, or the samples cannot be put together.

    Example:
        >>> loader = TensorLoader(torch.arange(6.0), torch.tensor([0, 1, 0, 1, 0, 1]), batch_size=4)
        >>> len(loader), next(iter(loader))
        (2, [tensor([0., 1., 2., 3.]), tensor([0, 1, 0, 1])])
    """

    def __init__(
        self,
        *data: torch.Tensor | Dataset[Any],
        batch_size: int = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if batch_size is None:
            raise ValueError("TensorLoader makes batches, but got batch_size=None: pass the number of samples in one.")
        dataset = _dataset_of(data)
        super().__init__(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=sampler,
            batch_sampler=batch_sampler,
            drop_last=drop_last,
            generator=generator,
        )
        whole = list(dataset.tensors) if type(dataset) is TensorDataset else _put_together(dataset)
        self.device = None if device is None else torch.device(device)
        self.whole = whole if self.device is None else _on(whole, self.device)
        """All samples as one batch."""

    def _get_iterator(self) -> Any:  # what DataLoader.__iter__ calls, also where another sampler was put in
        return _Batches(self)


class _Batches:
    """One pass; it draws random numbers when torch's iterator does, and as many."""

    def __init__(self, loader: TensorLoader) -> None:
        batches: Iterable[list[int]] = loader.batch_sampler  # type: ignore[assignment]
        self.rows = _drawn_at_once(batches) if _may_be_drawn_at_once(batches) else _drawn_in_turn(iter(batches))
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # the seed that workers would get
        self.whole = loader.whole
        self.tensors = _plain_tensors(loader.whole)
        self.samples = len(loader.dataset)  # type: ignore[arg-type]

    def __next__(self) -> Any:
        rows = next(self.rows)
        if self.tensors:
            try:
                return [tensor.index_select(0, rows) for tensor in self.tensors]
            except (IndexError, RuntimeError):  # an index from behind, or a wrong one, which is told below
                pass
        indices = rows.tolist()
        if min(indices) < 0:  # from behind, as a list is indexed
            rows = rows + (rows < 0) * self.samples
        return _taken(self.whole, indices, rows)

    def __iter__(self) -> Iterator[Any]:
        return self


def _may_be_drawn_at_once(batches: Any) -> bool:
    """Whether nobody can tell when the indices are drawn, because the first one takes all that is random of others."""
    order = getattr(batches, "sampler", None)
    return type(batches) is BatchSampler and type(order) is RandomSampler and order.generator is None


def _drawn_at_once(batches: Any) -> Iterator[torch.Tensor]:
    """The indices of each batch: to ask the sampler for one sample at a time takes half as long as the batch itself."""
    order = _as_tensor(list(batches.sampler))
    left_out = len(order) % batches.batch_size if batches.drop_last else 0
    if left_out < len(order):
        yield from order[: len(order) - left_out].split(batches.batch_size)


def _drawn_in_turn(batches: Iterator[list[int]]) -> Iterator[torch.Tensor]:
    for indices in batches:
        yield _as_tensor(indices)


def _as_tensor(indices: list[int]) -> torch.Tensor:
    return torch.frombuffer(array("q", indices), dtype=torch.int64)


def _dataset_of(data: tuple[Any, ...]) -> Any:
    if data and all(isinstance(tensor, torch.Tensor) for tensor in data):
        rows = [len(tensor) if tensor.ndim else 0 for tensor in data]
        if len(set(rows)) > 1:
            raise ValueError(f"The tensors of a TensorLoader must have as many rows each, but they have {rows}.")
        return TensorDataset(*data)
    is_dataset = len(data) == 1 and hasattr(data[0], "__getitem__") and hasattr(data[0], "__len__")
    if not is_dataset or isinstance(data[0], (IterableDataset, Mapping)):
        kinds = ", ".join(type(thing).__name__ for thing in data) or "nothing"
        raise TypeError(
            f"TensorLoader takes tensors, or one data set with __getitem__ and __len__, but got {kinds}. What cannot "
            "be indexed, or has no end, is for torch's DataLoader."
        )
    return data[0]


def _put_together(dataset: Any) -> Any:
    """All samples of a data set as one batch."""
    everything = range(len(dataset))
    load_batch = getattr(dataset, "__getitems__", None)
    samples = load_batch(list(everything)) if load_batch else [dataset[index] for index in everything]
    try:
        return default_collate(samples)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"TensorLoader keeps {type(dataset).__name__} as whole tensors, but its samples cannot be put together: "
            f"{str(error).splitlines()[0]} Use torch's DataLoader, which can be given a collate_fn."
        ) from error


def _plain_tensors(whole: Any) -> list[torch.Tensor]:
    """The tensors of a data set that is a list of nothing else in the host's memory; these need no search for others.

    Only there ``index_select`` refuses an index that is out of range at once, so that it need not be looked for.
    """
    plain = type(whole) is list and all(type(part) is torch.Tensor and part.device.type == "cpu" for part in whole)
    return whole if plain else []


def _is_text(whole: Any) -> bool:
    """Whether it is one string a sample, rather than a list of what each sample has several of."""
    return isinstance(whole, (list, tuple)) and bool(whole) and isinstance(whole[0], (str, bytes))


def _on(whole: Any, device: torch.device) -> Any:
    if isinstance(whole, torch.Tensor):
        return whole.to(device)
    return whole if _is_text(whole) else rebuilt(whole, lambda part: _on(part, device))


def _taken(whole: Any, indices: list[int], rows: torch.Tensor) -> Any:
    """The samples with these indices, which are also in ``rows``."""
    if isinstance(whole, torch.Tensor):
        rows = rows if whole.device.type == "cpu" else rows.to(whole.device, non_blocking=True)
        return whole.index_select(0, rows)
    if _is_text(whole):
        return type(whole)(whole[index] for index in indices)
    if type(whole) is list:
        return [_taken(part, indices, rows) for part in whole]
    return rebuilt(whole, lambda part: _taken(part, indices, rows))
