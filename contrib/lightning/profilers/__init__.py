"""Profilers: how long the parts of a run take. A Trainer without one never asks, and pays nothing."""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.profilers.advanced import AdvancedProfiler
    from camshaft.contrib.lightning.profilers.base import PassThroughProfiler
    from camshaft.contrib.lightning.profilers.profiler import Profiler
    from camshaft.contrib.lightning.profilers.pytorch import PyTorchProfiler
    from camshaft.contrib.lightning.profilers.simple import SimpleProfiler

__all__ = ["AdvancedProfiler", "PassThroughProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler"]

_modules = {
    "AdvancedProfiler": "advanced",
    "PassThroughProfiler": "base",
    "Profiler": "profiler",
    "PyTorchProfiler": "pytorch",
    "SimpleProfiler": "simple",
}

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
