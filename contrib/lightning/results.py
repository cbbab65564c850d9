"""What ``self.log`` collects: values that stay tensors until they are read, and their means over an epoch."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from camshaft.engine.distributed import world_size
from camshaft.handlers.scalars import Scalars

__all__ = ["How", "Metrics", "Results", "as_numbers", "as_table"]

_MOST_KEPT = 256  # values of one name that wait to be reduced together

# Where `self.log` means the value of this step, if nothing else is said; elsewhere it means the mean over the epoch.
_OF_A_STEP = {
    "training_step",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
}
# Where nothing is collected.
_REFUSED = {
    "on_fit_end",
    "on_train_end",
    "on_validation_end",
    "on_test_end",
    "setup",
    "teardown",
    "configure_optimizers",
    "on_predict_start",
    "on_predict_end",
    "on_predict_epoch_start",
    "on_predict_epoch_end",
    "on_predict_batch_start",
    "on_predict_batch_end",
    "predict_step",
    "on_exception",
    "on_save_checkpoint",
    "on_load_checkpoint",
}

_REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "min": lambda values: values.min(0).values,
    "max": lambda values: values.max(0).values,
    "sum": lambda values: values.sum(0),
}


class How(NamedTuple):
    """How a value is logged: ``LightningModule.log``'s arguments, where they are explained."""

    prog_bar: bool = False
    logger: bool | None = None
    on_step: bool | None = None
    on_epoch: bool | None = None
    reduce_fx: Any = "mean"
    enable_graph: bool = False
    sync_dist: bool = False
    add_dataloader_idx: bool = True


class Results:
    """The values that were logged in one stage.

    Attributes:
        hook: the name of the hook that is called now.
        batch: the batch of the step under way, to find its size where one is needed.
        dataloader_idx: of the loader under way, None where there is one only.
        in_batches: whether batches are under way, so that values of steps are what is asked for, not those of an epoch.

    Args:
        training: whether they are those of the training, of which callbacks find the values of steps as well.

    Example:
        >>> results = Results()
        >>> results.hook = "validation_step"
        >>> for loss, size in ((1.0, 3), (2.0, 1)):
        ...     results.add("val_loss", torch.tensor(loss), How(), batch_size=size)
        >>> results.metrics().callback
        {'val_loss': tensor(1.2500)}
    """

    def __init__(self, *, training: bool = False) -> None:
        self.training = training
        self.hook = ""
        self.batch: Any = None
        self.dataloader_idx: int | None = None
        self.in_batches = False
        self.has_steps = False  # whether a value of each step is wanted
        self._batch_size: int | None = None
        self._entries: dict[tuple[str, str, int | None], _Entry] = {}
        self._restored: set[_Entry] = set()

    def how_of(self, name: str) -> How | None:
        """How a value was logged in this hook, None if it was not."""
        entry = self._entries.get((self.hook, name, self.dataloader_idx))
        return None if entry is None else entry.how

    def begin_batch(self, batch: Any) -> None:
        """A step begins, with this batch."""
        self.batch = batch
        self._batch_size = None

    def add(self, name: str, value: Any, how: tuple[Any, ...], batch_size: int | None = None) -> None:
        """Take up a value.

        Args:
            name: of the value.
            value: a number, a tensor of one element, or a metric of torchmetrics.
            how: a ``How``, or the same as a plain tuple, which costs less to make.
            batch_size: the weight of this value in the mean over the epoch; found in the batch where it is needed.

        Raises:
            ValueError: the value is no number, or logged where nothing can be, or otherwise than before.
        """
        entry = self._entries.get((self.hook, name, self.dataloader_idx))
        if entry is None:
            entry = self._new_entry(name, value, How(*how))
        elif entry.how != how:
            self._take_change(entry, How(*how))
        if entry.needs_batch_size and batch_size is None:
            batch_size = self._batch_size
            if batch_size is None:
                batch_size = self._batch_size = _batch_size(self.batch)
        entry.update(value, batch_size)

    def _new_entry(self, name: str, value: Any, how: How) -> _Entry:
        if self.hook in _REFUSED:
            raise ValueError(f"self.log({name!r}, ...) was called in {self.hook}(), where there is nothing to log to.")
        of_step = self.hook in _OF_A_STEP
        on_step = of_step if how.on_step is None else how.on_step
        on_epoch = not of_step if how.on_epoch is None else how.on_epoch
        if not on_step and not on_epoch:
            raise ValueError(f"self.log({name!r}, on_step=False, on_epoch=False) would log nothing: set one of them.")
        if on_step and "epoch" in self.hook:
            raise ValueError(f"self.log({name!r}, on_step=True) in {self.hook}(): there is no step; leave it out.")
        index = self.dataloader_idx if how.add_dataloader_idx else None
        if index is None and any(hook == self.hook and one == name for hook, one, _ in self._entries):
            raise ValueError(
                f"self.log({name!r}, add_dataloader_idx=False) was called in {self.hook}() for several loaders, of "
                "which the last would win: give each a name of its own, or leave add_dataloader_idx out."
            )
        shown = name if index is None else f"{name}/dataloader_idx_{index}"
        entry = _Entry(name, shown, how, on_step=on_step, on_epoch=on_epoch, metric=_metric_in(value))
        self._entries[self.hook, name, self.dataloader_idx] = entry
        self.has_steps = self.has_steps or on_step
        return entry

    def _take_change(self, entry: _Entry, how: How) -> None:
        if entry in self._restored:  # a checkpoint keeps what is told apart, not how it was written
            self._restored.remove(entry)
            entry.how = how
            return
        before, after = entry.how._asdict(), how._asdict()
        changed = [key for key in before if before[key] != after[key]]
        was, now = ({key: settings[key] for key in changed} for settings in (before, after))
        raise ValueError(
            f"self.log({entry.name!r}, ...) was called twice in {self.hook}() with different arguments: {was} and then "
            f"{now}. Give the second value another name."
        )

    def metrics(self) -> Metrics:
        """The values as they are now, of the loader under way: of the last step, or the means over the epoch so far."""
        found = Metrics()
        on_step = self.in_batches
        for (_, _, index), entry in self._entries.items():
            if index != self.dataloader_idx or not entry.has(on_step=on_step):
                continue
            value = entry.of_step() if on_step else entry.of_epoch()
            name = entry.forked_name(on_step=on_step) if entry.on_step and entry.on_epoch else entry.shown
            if entry.how.logger is not False:
                found.logged[name] = value
            if self.training or not on_step:
                found.callback[entry.shown] = found.callback[name] = value
            if entry.how.prog_bar:
                found.progress_bar[name] = value
        return found

    def close_epoch(self) -> None:
        """The epoch is over: settle its values, over all processes, which must all call this."""
        for entry in self._entries.values():
            entry.close()

    def end_epoch(self) -> None:
        """Forget what belongs to the epoch that is over."""
        for entry in self._entries.values():
            if entry.metric is not None:
                entry.metric.reset()
        self._entries.clear()
        self._restored.clear()
        self.has_steps = self.in_batches = False
        self.batch = None

    def state_dict(self) -> dict[str, Any]:
        """What the epoch under way has come to, but for metrics of torchmetrics and functions that reduce."""
        entries = [(key, entry) for key, entry in self._entries.items() if entry.metric is None]
        return {"entries": [[list(key), entry.state_dict()] for key, entry in entries if isinstance(entry.reduce, str)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        for (hook, name, index), values in state["entries"]:
            entry = _Entry(name, values["shown"], How(*values["how"]), metric=None, **values["when"])
            entry.load_state_dict(values)
            self._entries[hook, name, index] = entry
            self._restored.add(entry)
            self.has_steps = self.has_steps or entry.on_step


class Metrics:
    """The values by those who read them.

    Attributes:
        callback: all of them, for callbacks.
        logged: for loggers.
        progress_bar: for progress bars.
    """

    def __init__(self) -> None:
        self.callback: dict[str, Any] = {}
        self.logged: dict[str, Any] = {}
        self.progress_bar: dict[str, Any] = {}


class _Entry:
    """One name, as it was logged in one hook."""

    __slots__ = (
        "_count",
        "_final",
        "_kept",
        "_reduced",
        "_value",
        "_weights",
        "how",
        "metric",
        "name",
        "needs_batch_size",
        "on_epoch",
        "on_step",
        "reduce",
        "shown",
    )

    def __init__(self, name: str, shown: str, how: How, *, on_step: bool, on_epoch: bool, metric: Any) -> None:
        self.name = name
        self.shown = shown
        self.how = how
        self.on_step = on_step
        self.on_epoch = on_epoch
        self.metric = metric
        self.reduce = _reduction(how.reduce_fx, name)
        self.needs_batch_size = on_epoch and metric is None and self.reduce == "mean"
        self._value: Any = None  # of the last step
        self._kept: list[Any] = []  # of this epoch, not reduced yet
        self._weights: list[int] = []
        self._reduced: Any = None  # of this epoch, of what was kept before
        self._count: float = 0  # the weight of that
        self._final: torch.Tensor | None = None  # of this epoch, once it is over

    def state_dict(self) -> dict[str, Any]:
        kept = torch.stack([_as_tensor(value).reshape(()) for value in self._kept]) if self._kept else None
        return {
            "shown": self.shown,
            "how": [*self.how._replace(reduce_fx=self.reduce)],
            "when": {"on_step": self.on_step, "on_epoch": self.on_epoch},
            "value": None if self._value is None else _as_tensor(self._value).detach(),
            "kept": kept,  # each for itself, so that they are added up as they would have been
            "weights": list(self._weights),
            "reduced": self._reduced,
            "count": self._count,
            "final": self._final,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._value, self._reduced, self._count = state["value"], state["reduced"], state["count"]
        self._kept = [] if state["kept"] is None else list(state["kept"].unbind())
        self._weights, self._final = list(state["weights"]), state["final"]

    def update(self, value: Any, batch_size: int | None) -> None:
        self._final = None
        if self.metric is not None:
            self._value = value
            return
        if isinstance(value, torch.Tensor):
            if value.requires_grad and not self.how.enable_graph:
                value = value.detach()
            if value.numel() != 1:
                raise ValueError(
                    f"self.log({self.name!r}, ...) takes one number, but got a tensor of shape {tuple(value.shape)}: "
                    "log its mean, for example."
                )
        elif not isinstance(value, numbers.Number):
            value = _as_number(value, self.name)
        # Now, where all processes are, and not when one of them reads it.
        self._value = self._over_ranks(_as_tensor(value)) if self.on_step and self.how.sync_dist else value
        if self.on_epoch:
            self._kept.append(value)
            self._weights.append(1 if batch_size is None else batch_size)
            if len(self._kept) == _MOST_KEPT:
                self._reduce()

    def has(self, *, on_step: bool) -> bool:
        if on_step and self.metric is not None:
            return self.on_step and getattr(self.metric, "_forward_cache", None) is not None
        return (self.on_step if on_step else self.on_epoch) and self._value is not None

    def of_step(self) -> Any:
        return _as_tensor(self._value) if self.metric is None else self.metric._forward_cache

    def of_epoch(self) -> torch.Tensor:
        if self._final is not None:
            return self._final
        if self.metric is not None:
            return self.metric.compute().detach()  # type: ignore[no-any-return]
        self._reduce()
        return self._reduced  # type: ignore[no-any-return]

    def close(self) -> None:
        """Settle the value of the epoch, over all processes; whatever is logged later opens it again."""
        if self._final is not None or not self.has(on_step=False):
            return
        value = self.of_epoch()
        if self.metric is None and self.how.sync_dist and world_size() > 1:
            if self.reduce == "mean":
                total = torch.stack([value * self._count, torch.full_like(value, self._count)])
                torch.distributed.all_reduce(total)
                value = total[0] / total[1]
            else:
                value = self._over_ranks(value)
        self._final = value

    def forked_name(self, *, on_step: bool) -> str:
        suffix = "_step" if on_step else "_epoch"
        base, separator, index = self.shown.partition("/dataloader_idx_")
        return f"{base}{suffix}{separator}{index}"

    def _reduce(self) -> None:
        """Bring together what was kept, and what it was reduced to before."""
        if not self._kept:
            return
        values = torch.stack([_as_tensor(value).reshape(()) for value in self._kept])
        if self.reduce == "mean":
            weights = torch.tensor(self._weights, dtype=values.dtype, device=values.device)
            total = (values * weights).sum()
            if self._count:
                total = total + self._reduced * self._count
            self._count += sum(self._weights)
            self._reduced = total / self._count
        else:
            if self._count:
                values = torch.cat([self._reduced.reshape(1), values])
            self._count = 1
            reduce = _REDUCTIONS.get(self.reduce) if isinstance(self.reduce, str) else self.reduce
            self._reduced = reduce(values)  # type: ignore[misc]
        self._kept.clear()
        self._weights.clear()

    def _over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        if world_size() == 1:
            return value
        operation = {"sum": "SUM", "min": "MIN", "max": "MAX"}.get(str(self.reduce), "AVG")
        value = value.detach().clone().float() if operation == "AVG" else value.detach().clone()
        if operation == "AVG":  # which gloo does not know
            torch.distributed.all_reduce(value)
            return value / world_size()
        torch.distributed.all_reduce(value, op=getattr(torch.distributed.ReduceOp, operation))
        return value


def as_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values as plain numbers, fetched from their device together.

    Example:
        >>> as_numbers({"loss": torch.tensor(0.5), "epoch": 3})
        {'loss': 0.5, 'epoch': 3}
    """
    return dict(zip(values, Scalars(list(values.values())).numbers(), strict=True))


def as_table(columns: Sequence[Mapping[str, float]], head: str) -> str:
    """What was logged, as a table with a column for each loader.

    Args:
        columns: the numbers by name.
        head: of the column, where there is one.

    Example:
        >>> print(as_table([{"loss": 0.25}], "test"))
        ──────────────────────────────
        metric                    test
        ──────────────────────────────
        loss                      0.25
        ──────────────────────────────
        <BLANKLINE>
    """
    names = sorted({name for column in columns for name in column})
    if not names:
        return ""
    width = max(6, *map(len, names))
    heads = [f"loader {index}" for index in range(len(columns))] if len(columns) > 1 else [head]
    line = "─" * (width + 2 + 22 * len(columns))
    rows = ["  ".join([f"{'metric':<{width}}", *(f"{one:>20}" for one in heads)])]
    for name in names:
        cells = [f"{column[name]:>20.10g}" if name in column else " " * 20 for column in columns]
        rows.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join([line, rows[0], line, *rows[1:], line, ""])


def _reduction(reduce_fx: Any, name: str) -> Any:
    if callable(reduce_fx):
        known = {torch.mean: "mean", torch.sum: "sum", torch.min: "min", torch.max: "max", min: "min", max: "max"}
        return known.get(reduce_fx, reduce_fx)
    text = str(reduce_fx).lower()
    text = "mean" if text == "avg" else text
    if text not in ("mean", "sum", "min", "max"):
        raise ValueError(
            f"self.log({name!r}, reduce_fx={reduce_fx!r}): it is 'mean', 'sum', 'min', 'max' or a function."
        )
    return text


def _metric_in(value: Any) -> Any:
    """The metric of torchmetrics that is logged, if it is one."""
    return value if hasattr(value, "compute") and hasattr(value, "reset") and hasattr(value, "update") else None


def _as_number(value: Any, name: str) -> Any:
    if hasattr(value, "item"):  # NumPy's
        return value.item()
    raise ValueError(
        f"self.log({name!r}, {value!r}): only numbers, tensors of one element and metrics of torchmetrics can be "
        "logged. Log the entries of a mapping by self.log_dict."
    )


def _as_tensor(value: Any) -> torch.Tensor:
    """A number as a tensor with at least 32 bits, in which sums are exact enough."""
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=torch.promote_types(torch.get_default_dtype(), torch.float32))
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _batch_size(batch: Any) -> int:
    """The first dimension of the first tensor in a batch."""
    sizes = set(_sizes(batch))
    if not sizes:
        return 1
    size, *others = sorted(sizes)
    if others:
        first = next(_sizes(batch))
        warnings.warn(
            f"The batch holds tensors of different sizes ({size} to {others[-1]}), so its size is guessed to be "
            f"{first}, that of the first: pass self.log(..., batch_size=batch_size).",
            stacklevel=2,
        )
        return first
    return size


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, torch.Tensor):
        yield batch.shape[0] if batch.ndim else 1
    elif isinstance(batch, str):
        yield len(batch)
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from _sizes(item)
    elif isinstance(batch, Sequence):
        for item in batch:
            yield from _sizes(item)
