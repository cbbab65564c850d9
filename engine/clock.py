"""The time that training takes: a clock that stands still while ``Compile`` compiles."""

from __future__ import annotations

from time import perf_counter
from typing import Any

__all__ = ["COMPILATION", "compilation_seconds", "training_clock"]

COMPILATION = "COMPILATION"
"""The entry of ``state.times`` that ``Compile`` adds its seconds to."""


def training_clock(state: Any) -> float:
    """Seconds since some moment, without those of the run that went into compilation."""
    return perf_counter() - compilation_seconds(state)


def compilation_seconds(state: Any) -> float:
    """How long this run has been compiling so far."""
    seconds: float = state.times.get(COMPILATION, 0.0)
    return seconds
