"""Doing something in one process only, the one of global rank 0."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch.distributed as dist

__all__ = [
    "LightningDeprecationWarning",
    "WarningCache",
    "rank_prefixed_message",
    "rank_zero_debug",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

# LOCAL_RANK comes before SLURM_PROCID, which is also set where SLURM starts one process that starts the others.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


class LightningDeprecationWarning(DeprecationWarning):
    """What the program uses will go away."""


class _RankZeroOnly:
    """The class of :data:`rank_zero_only`, whose rank is this process's wherever nobody has set it."""

    def __init__(self) -> None:
        self._rank: int | None = None

    @property
    def rank(self) -> int:
        """The global rank of this process: of its process group, or as a launcher has set it in the environment."""
        if self._rank is not None:
            return self._rank
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank()
        return _rank_of_environment() or 0

    @rank.setter
    def rank(self, rank: int | None) -> None:
        self._rank = rank

    def __call__(self, fn: Callable[P, T], default: T | None = None) -> Callable[P, T | None]:
        """Make a function that runs on rank 0 only, and gives ``default`` on the others."""

        @functools.wraps(fn)
        def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
            return fn(*args, **kwargs) if self.rank == 0 else default

        return on_rank_zero


rank_zero_only = _RankZeroOnly()
"""Decorates a function that only the process of rank 0 shall run; the others get ``default``, or None.

Example:
    >>> @rank_zero_only
    ... def report() -> str:
    ...     return "said once"
    >>> report()
    'said once'
    >>> rank_zero_only.rank
    0
"""


@rank_zero_only
def rank_zero_debug(*args: Any, stacklevel: int = 3, **kwargs: Any) -> None:
    """Log for who looks for an error, on rank 0; arguments as of ``logging.Logger.debug``."""
    log.debug(*args, stacklevel=stacklevel, **kwargs)


@rank_zero_only
def rank_zero_info(*args: Any, stacklevel: int = 3, **kwargs: Any) -> None:
    """Log on rank 0; arguments as of ``logging.Logger.info``."""
    log.info(*args, stacklevel=stacklevel, **kwargs)


@rank_zero_only
def rank_zero_warn(message: str | Warning, stacklevel: int = 3, **kwargs: Any) -> None:
    """Warn on rank 0; arguments as of ``warnings.warn``. The warning names the line that called this function."""
    warnings.warn(message, stacklevel=stacklevel, **kwargs)


@rank_zero_only
def rank_zero_deprecation(message: str | Warning, stacklevel: int = 3, **kwargs: Any) -> None:
    """Warn on rank 0 that something will go away."""
    warnings.warn(message, kwargs.pop("category", LightningDeprecationWarning), stacklevel=stacklevel, **kwargs)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """The message with the rank before it, where there is one.

    Example:
        >>> rank_prefixed_message("Seed set to 1", 2)
        '[rank: 2] Seed set to 1'
    """
    return message if rank is None else f"[rank: {rank}] {message}"


class WarningCache(set[str]):
    """Says each thing once, on rank 0.

    Example:
        >>> cache = WarningCache()
        >>> cache.info("The first batch is short.")
        >>> "The first batch is short." in cache
        True
    """

    def warn(self, message: str, stacklevel: int = 4, **kwargs: Any) -> None:
        """Warn, unless that was said before."""
        if self._is_new(message):
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int = 4, **kwargs: Any) -> None:
        """Warn that something will go away, unless that was said before."""
        if self._is_new(message):
            rank_zero_deprecation(message, stacklevel=stacklevel, **kwargs)

    def info(self, message: str, stacklevel: int = 4, **kwargs: Any) -> None:
        """Log, unless that was said before."""
        if self._is_new(message):
            rank_zero_info(message, stacklevel=stacklevel, **kwargs)

    def _is_new(self, message: str) -> bool:
        is_new = message not in self
        self.add(message)
        return is_new


def _rank_of_environment() -> int | None:
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), None)
