"""Camshaft trains PyTorch models: you write the step, handlers do the engineering, and it is Ignite.

Every public name of `camshaft.engine` and `camshaft.handlers` is also here, `launch` and `summary`. Names load when
they are first used, so that `import camshaft` imports neither torch nor Ignite.
"""

from typing import TYPE_CHECKING

from camshaft import handlers
from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.engine import (
        CallableEventWithFilter,
        Engine,
        EventEnum,
        Events,
        EventsList,
        Phase,
        RemovableEventHandle,
        State,
        StepEvents,
        TensorLoader,
        seed_everything,
    )
    from camshaft.handlers import (
        AMP,
        EMA,
        BatchSizeFinder,
        Checkpoint,
        Compile,
        CSVLogger,
        CUDAGraph,
        DataParallel,
        Device,
        DistributedSampling,
        EarlyStopping,
        Evaluate,
        FastDevRun,
        Freeze,
        FullySharded,
        GradientAccumulation,
        GradientClipping,
        GradientMonitor,
        Handler,
        JSONLinesLogger,
        LivePlot,
        Logger,
        LRFinder,
        LRScheduler,
        Metrics,
        On,
        OptimizerStep,
        Overfit,
        Preemption,
        Prefetch,
        Profiler,
        ProgressBar,
        RichProgress,
        RunRecord,
        SanityCheck,
        TensorBoardLogger,
        TerminateOnNaN,
        TimeLimit,
        Trace,
    )
    from camshaft.launch import launch
    from camshaft.model_summary import Summary, summary

__version__ = "0.1.0"

# The lists are literal because type checkers and editors read them without running anything.
__all__ = [
    "CallableEventWithFilter",
    "Engine",
    "EventEnum",
    "Events",
    "EventsList",
    "Phase",
    "RemovableEventHandle",
    "State",
    "StepEvents",
    "TensorLoader",
    "seed_everything",
]
_modules = dict.fromkeys(__all__, "engine")

__all__ += [
    "AMP",
    "BatchSizeFinder",
    "CSVLogger",
    "CUDAGraph",
    "Checkpoint",
    "Compile",
    "DataParallel",
    "Device",
    "DistributedSampling",
    "EMA",
    "EarlyStopping",
    "Evaluate",
    "FastDevRun",
    "Freeze",
    "FullySharded",
    "GradientAccumulation",
    "GradientClipping",
    "GradientMonitor",
    "Handler",
    "JSONLinesLogger",
    "LRFinder",
    "LRScheduler",
    "LivePlot",
    "Logger",
    "Metrics",
    "On",
    "OptimizerStep",
    "Overfit",
    "Preemption",
    "Prefetch",
    "Profiler",
    "ProgressBar",
    "RichProgress",
    "RunRecord",
    "SanityCheck",
    "TensorBoardLogger",
    "TerminateOnNaN",
    "TimeLimit",
    "Trace",
]
_modules |= dict.fromkeys(handlers.__all__, "handlers")

__all__ += ["launch"]
_modules |= {"launch": "launch"}

__all__ += ["Summary", "summary"]
_modules |= {"Summary": "model_summary", "summary": "model_summary"}

__all__ += ["__version__"]

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
