"""Random numbers: one seed for all of them, and leaving them as they were."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from camshaft.contrib.lightning.utilities.rank_zero import rank_prefixed_message, rank_zero_only, rank_zero_warn
from camshaft.engine import seeding
from camshaft.engine.generators import generator_states, set_generator_states

__all__ = ["isolate_rng", "pl_worker_init_function", "reset_seed", "seed_everything"]

log = logging.getLogger(__name__)


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed the global generators of python, NumPy and torch.

    Processes that this one starts find the seed in the environment as ``PL_GLOBAL_SEED``.

    Args:
        seed: from 0 to 2**32 - 1; what ``PL_GLOBAL_SEED`` says unless given, else 0.
        workers: whether the workers of loaders draw numbers of their own in each process; without it, those of all
            processes draw the same ones.
        verbose: whether to log the seed.

    Returns:
        The seed.

    Raises:
        ValueError: no such number.

    Example:
        >>> seed_everything(1)
        1
        >>> first = torch.rand(1)
        >>> _ = seed_everything(1)
        >>> torch.equal(first, torch.rand(1))
        True
    """
    if seed is None:
        seed_of_environment = os.environ.get("PL_GLOBAL_SEED")
        if seed_of_environment is None and verbose:
            rank_zero_warn("seed_everything() was given no seed, and PL_GLOBAL_SEED is not set: the seed is 0.")
        seed = _as_number(seed_of_environment or 0, "PL_GLOBAL_SEED")
    seed = seeding.seed_everything(_as_number(seed, "seed_everything"))
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    if verbose:
        log.info(rank_prefixed_message(f"Seed set to {seed}", rank_zero_only.rank or None))
    return seed


def reset_seed() -> None:
    """Seed once more with what :func:`seed_everything` was given; nothing where it was not called."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    if seed is not None:
        seed_everything(int(seed), workers=os.environ.get("PL_SEED_WORKERS") == "1", verbose=False)


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Within it, random numbers may be drawn; afterwards the global generators are as they were.

    Args:
        include_cuda: accepted; the generators of CUDA are kept where CUDA is in use already.

    Example:
        >>> _ = torch.manual_seed(1)
        >>> with isolate_rng():
        ...     inside = torch.rand(1)
        >>> torch.equal(inside, torch.rand(1))
        True
    """
    states = generator_states()
    try:
        yield
    finally:
        set_generator_states(states)


def pl_worker_init_function(worker_id: int, rank: int | None = None) -> None:
    """The ``worker_init_fn`` with which workers of loaders draw other numbers in each process.

    Args:
        worker_id: of the worker, from 0.
        rank: of the process that it works for; unless given, this one's.
    """
    rank = rank_zero_only.rank if rank is None else rank
    generator = torch.Generator().manual_seed(torch.initial_seed() - worker_id)
    for _ in range(1 + rank):  # a seed of its own for each rank
        base = int(torch.randint(2**62, (), generator=generator))
    seed = (base + worker_id) % 2**63
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _as_number(seed: object, source: str) -> int:
    try:
        return int(seed)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError):
        raise ValueError(f"{source}: a seed is an integer from 0 to {2**32 - 1}, but got {seed!r}.") from None
