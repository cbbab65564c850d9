"""Where programs of 2020 find the profilers."""

from camshaft.contrib.lightning.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, SimpleProfiler

__all__ = ["AdvancedProfiler", "BaseProfiler", "PassThroughProfiler", "SimpleProfiler"]

BaseProfiler = Profiler
