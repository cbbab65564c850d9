"""The profiler that measures nothing."""

from camshaft.contrib.lightning.profilers.profiler import Profiler

__all__ = ["PassThroughProfiler"]


class PassThroughProfiler(Profiler):
    """Measures nothing, for programs that call their profiler whether there is one or not.

    Example:
        >>> with PassThroughProfiler().profile("load") as action:
        ...     print(action)
        load
    """

    def start(self, action_name: str) -> None:
        pass

    def stop(self, action_name: str) -> None:
        pass
