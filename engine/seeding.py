"""One seed for all random numbers of a run."""

from __future__ import annotations

import os

import torch

from camshaft.engine.generators import seed_generators

__all__ = ["seed_everything"]


def seed_everything(seed: int, *, deterministic: bool = False) -> int:
    """Seed the global generators of python, NumPy and torch, on every device.

    Workers of a ``DataLoader`` take their seeds from torch's. The states of all generators are in each checkpoint.

    Args:
        seed: from 0 to 2**32 - 1.
        deterministic: also make torch use deterministic algorithms, and raise an error where it has none; some are
            slower. On CUDA it sets ``CUBLAS_WORKSPACE_CONFIG``, which must happen before CUDA is first used.

    Returns:
        The seed.

    Raises:
        ValueError: a seed that NumPy does not take.

    Example:
        >>> import random
        >>> _ = seed_everything(1)
        >>> first = torch.rand(1), random.random()
        >>> import random
        >>> _ = seed_everything(1)
        >>> first == (torch.rand(1), random.random())
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"A seed is an integer from 0 to {2**32 - 1}, but got {seed!r}.")
    seed_generators(seed)
    torch.manual_seed(seed)  # on every device
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return seed
