"""The largest batch size for which there is enough memory, found by trying.

It is no handler that stays attached: ``run()`` tries the engine out and leaves it as it was.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.handlers.trial import trial

__all__ = ["BatchSizeFinder", "is_out_of_memory", "largest_that_fits"]


class BatchSizeFinder:
    """Trains a few batches of growing size until there is too little memory.

    Only what shapes the step takes part: ``OptimizerStep``, ``AMP``, ``GradientAccumulation``, ``GradientClipping``,
    ``Device``. Nothing else hears of it, and model, optimizers, random numbers and engine are then as they were.

    Args:
        first: the first size, doubled while it fits.
        largest: the largest size to try, for want of an error where memory never ends, as on the CPU.
        batches: how many of each size; the optimizer has its state from the second on.
        bisect: search between the last size that fits and the first that does not, rather than take a power of two.

    Raises:
        ValueError: a number is not positive.

    Example:
        >>> from camshaft import Engine
        >>> from camshaft.handlers import OptimizerStep
        >>> model = torch.nn.Linear(1, 1)
        >>> def training_step(engine, batch):
        ...     if len(batch) > 100:
        ...         raise torch.OutOfMemoryError("CUDA out of memory.")
        ...     return model(batch).square().mean()
        >>> engine = Engine(training_step).attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
        >>> engine.logger.disabled = True
        >>> finder = BatchSizeFinder(bisect=True)
        >>> finder.run(engine, lambda size: torch.utils.data.DataLoader(torch.ones(1000, 1), batch_size=size))
        100
        >>> engine.logger.disabled = False
    """

    def __init__(self, first: int = 2, *, largest: int = 8192, batches: int = 3, bisect: bool = False) -> None:
        for name, value in (("first", first), ("largest", largest), ("batches", batches)):
            if value < 1:
                raise ValueError(f"BatchSizeFinder takes positive numbers, but got {name}={value!r}.")
        self.first = first
        self.largest = largest
        self.batches = batches
        self.bisect = bisect

    def run(self, engine: IgniteEngine, make_data: Callable[[int], Iterable[Any]]) -> int:
        """Try the sizes out.

        Args:
            engine: one that trains; not running.
            make_data: makes the data for a batch size, as ``lambda size: DataLoader(dataset, batch_size=size)``.

        Returns:
            The largest size that fits, of use up to the number of samples.

        Raises:
            RuntimeError: there is too little memory for a single sample.
            ValueError: no optimizer is found, the engine runs, or there are several processes.
        """

        def attempt(size: int) -> float:
            data = make_data(size)
            try:
                with trial(engine, data):
                    type(engine).run(engine, data, max_iters=self.batches)
            finally:
                _give_memory_back()
            dataset = getattr(data, "dataset", None)
            return float(len(dataset)) if isinstance(dataset, Sized) else float("inf")

        def tell(size: int) -> None:
            engine.logger.info("BatchSizeFinder: there is too little memory for a batch of %d.", size)

        return largest_that_fits(
            attempt,
            self.first,
            trials=100,
            largest=self.largest,
            bisect=self.bisect,
            failed=tell,
            who="BatchSizeFinder",
        )


def largest_that_fits(
    attempt: Callable[[int], float],
    first: int,
    *,
    trials: int,
    largest: int,
    bisect: bool,
    failed: Callable[[int], None],
    who: str,
) -> int:
    """The largest size that succeeds: doubled until there is too little memory, and then perhaps bisected.

    Args:
        attempt: tries a size and returns how many samples there are, more than which is of no use.
        first: the first size; halved while it is too large.
        trials: how many sizes to try.
        largest: the largest size to try.
        bisect: whether to search between the last size that succeeded and the first that did not.
        failed: told of each size that did not.
        who: says that none fits.

    Raises:
        RuntimeError: none succeeded.

    Example:
        >>> def attempt(size: int) -> float:
        ...     if size > 100:
        ...         raise RuntimeError("CUDA out of memory.")
        ...     return 1000
        >>> largest_that_fits(attempt, 2, trials=25, largest=8192, bisect=False, failed=print, who="this")
        128
        64
    """
    size, fits, too_large = min(first, largest), 0, 0
    error: BaseException | None = None
    for _ in range(trials):
        try:
            samples = attempt(size)
        except (RuntimeError, MemoryError) as raised:
            if not is_out_of_memory(raised):
                raise
            failed(size)
            error, too_large = raised.with_traceback(None), size  # whose frames hold tensors
        else:
            fits = size
            if size >= min(samples, largest):
                break
        if too_large and (too_large - fits <= 1 or (fits and not bisect)):
            break
        size = (fits + too_large) // 2 if too_large else min(2 * size, largest)
    if not fits:
        raise RuntimeError(f"{who} found no size that fits into memory, down to {too_large}.") from error
    return fits


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, on an accelerator or on the host.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), is_out_of_memory(ValueError("out of luck"))
        (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return (
        ("out of memory" in text and ("CUDA" in text or "MPS" in text or "XPU" in text))
        or "can't allocate memory" in text  # DefaultCPUAllocator
        or "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED." in text  # as cuDNN says it for some sizes
    )


def _give_memory_back() -> None:
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
