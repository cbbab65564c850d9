"""Camshaft trains PyTorch models: you write the step, handlers do the engineering, and it is Ignite.

Every public name of `camshaft.engine` and `camshaft.handlers` is also here, and `launch`. Names load when they are
first used, so that `import camshaft` imports neither torch nor Ignite.
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
        seed_everything,
    )
    from camshaft.handlers import (
        AMP,
        EMA,
        Checkpoint,
        CSVLogger,
        DataParallel,
        Device,
        DistributedSampling,
        EarlyStopping,
        Evaluate,
        FullySharded,
        GradientAccumulation,
        GradientClipping,
        Handler,
        Logger,
        LRScheduler,
        Metrics,
        On,
        OptimizerStep,
        Preemption,
        ProgressBar,
        RunRecord,
        TensorBoardLogger,
        TerminateOnNaN,
        TimeLimit,
    )
    from camshaft.launch import launch

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
    "seed_everything",
]
_modules = dict.fromkeys(__all__, "engine")

__all__ += [
    "AMP",
    "CSVLogger",
    "Checkpoint",
    "DataParallel",
    "Device",
    "DistributedSampling",
    "EMA",
    "EarlyStopping",
    "Evaluate",
    "FullySharded",
    "GradientAccumulation",
    "GradientClipping",
    "Handler",
    "LRScheduler",
    "Logger",
    "Metrics",
    "On",
    "OptimizerStep",
    "Preemption",
    "ProgressBar",
    "RunRecord",
    "TensorBoardLogger",
    "TerminateOnNaN",
    "TimeLimit",
]
_modules |= dict.fromkeys(handlers.__all__, "handlers")

__all__ += ["launch"]
_modules |= {"launch": "launch"}

__all__ += ["__version__"]

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
