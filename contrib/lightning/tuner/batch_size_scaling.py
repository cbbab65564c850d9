"""The largest batch size for which there is enough memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.combined_loader import CombinedLoader
from camshaft.contrib.lightning.tuner.trial import trial
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.memory import garbage_collection_cuda
from camshaft.contrib.lightning.utilities.parsing import holders_of, set_in_all
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from camshaft.handlers.batch_size_finder import largest_that_fits

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["find_batch_size", "largest"]

# By the function that is tried: the loaders that it uses.
_LOADERS = {
    "fit": "train_dataloader",
    "validate": "val_dataloaders",
    "test": "test_dataloaders",
    "predict": "predict_dataloaders",
}


def find_batch_size(
    trainer: Trainer,
    model: Any,
    datamodule: Any,
    *,
    method: str,
    mode: str,
    steps_per_trial: int,
    init_val: int,
    max_trials: int,
    batch_arg_name: str,
    margin: float,
    max_val: int,
) -> int | None:
    """Try batch sizes, and leave all as it was but for the batch size.

    Args:
        trainer: with what to train.
        model: what to train.
        datamodule: with the loaders, or None.
        method: the trainer's function to try; the rest as for :meth:`Tuner.scale_batch_size`.
        mode: how to search.
        steps_per_trial: batches of each size.
        init_val: the first size.
        max_trials: how many sizes at most.
        batch_arg_name: the attribute that is the batch size.
        margin: the share of the found size to leave out.
        max_val: the largest size.

    Raises:
        MisconfigurationException: there is no such attribute, or there are several processes.
        ValueError: another mode, margin or initial size.
        RuntimeError: there is too little memory for a single sample.
    """
    _check(mode, margin, init_val)
    if trainer.world_size > 1 or trainer.strategy.spreads:
        raise MisconfigurationException("scale_batch_size works with one process only.")
    if trainer.fast_dev_run:
        rank_zero_warn("scale_batch_size does nothing in a fast_dev_run.")
        return None
    holders = holders_of(batch_arg_name, model, datamodule)
    if not holders:
        raise MisconfigurationException(
            f"scale_batch_size has nowhere to put what it finds: neither {type(model).__name__} nor the data module "
            f"nor their hyperparameters have {batch_arg_name!r}. Assign it, make the loaders with it, or name "
            "another: scale_batch_size(batch_arg_name=...)."
        )
    before = [
        holder[batch_arg_name] if isinstance(holder, dict) else getattr(holder, batch_arg_name) for holder in holders
    ]
    flags: dict[str, Any] = {"max_steps": steps_per_trial, "limit_train_batches": None}
    flags |= dict.fromkeys(("limit_test_batches", "limit_predict_batches"), steps_per_trial)
    if method != "fit":
        flags["limit_val_batches"] = steps_per_trial

    def attempt(size: int) -> float:
        """Run some batches of this size; returns how many samples there are."""
        garbage_collection_cuda()
        with trial(trainer, model, [], **flags) as tried:
            set_in_all(holders_of(batch_arg_name, model, datamodule), batch_arg_name, size)
            options: dict[str, Any] = {} if method in {"fit", "predict"} else {"verbose": False}
            getattr(tried, method)(model, datamodule=datamodule, **options)
            samples = _samples(getattr(tried, _LOADERS[method]))
        rank_zero_info(f"Batch size {size} succeeded.")
        return samples

    found = None
    try:
        found = largest(attempt, init_val, max_trials=max_trials, max_val=max_val, bisect=mode == "binsearch")
        if mode == "binsearch":
            found = max(1, int(found * (1 - margin)))
    finally:
        garbage_collection_cuda()
        for holder, value in zip(holders, before, strict=True):
            set_in_all([holder], batch_arg_name, value if found is None else found)
    rank_zero_info(f"Batch size set to {found}.")
    return found


def largest(attempt: Callable[[int], float], first: int, *, max_trials: int, max_val: int, bisect: bool) -> int:
    """The largest size that succeeds: doubled until there is too little memory, and then perhaps bisected.

    Args:
        attempt: tries a size and returns how many samples there are, more than which is of no use.
        first: the first size.
        max_trials: how many sizes to try.
        max_val: the largest size to try.
        bisect: whether to search between the last size that succeeded and the first that did not.

    Raises:
        RuntimeError: none succeeded.

    Example:
        >>> def attempt(size: int) -> float:
        ...     if size > 100:
        ...         raise RuntimeError("CUDA out of memory.")
        ...     return 1000
        >>> largest(attempt, 2, max_trials=25, max_val=8192, bisect=False)
        64
        >>> largest(attempt, 2, max_trials=25, max_val=8192, bisect=True)
        100
    """

    def failed(size: int) -> None:
        rank_zero_info(f"Batch size {size} failed.")

    return largest_that_fits(
        attempt, first, trials=max_trials, largest=max_val, bisect=bisect, failed=failed, who="scale_batch_size"
    )


def _check(mode: str, margin: float, init_val: int) -> None:
    if mode not in {"power", "binsearch"}:
        raise ValueError(f"scale_batch_size(mode=...) is 'power' or 'binsearch', but got {mode!r}.")
    if not 0 <= margin < 1:
        raise ValueError(f"scale_batch_size(margin=...) is a share, at least 0 and below 1, but got {margin!r}.")
    if init_val < 1:
        raise ValueError(f"scale_batch_size(init_val=...) is at least 1, but got {init_val!r}.")


def _samples(loaders: Any) -> float:
    """How many samples loaders have; infinite where one does not say."""
    collection = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders)
    samples = 0.0
    for loader in collection.flattened:
        try:
            samples = max(samples, len(loader.dataset))
        except (AttributeError, TypeError, NotImplementedError):
            return float("inf")
    return samples
