"""The handlers: each answers to an engine's events with one concern of training, in a file of its own.

A new handler is one file here, one line in each of the three lists below, and one in `camshaft/__init__.py`'s two.
"""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.handlers.amp import AMP
    from camshaft.handlers.checkpoint import Checkpoint
    from camshaft.handlers.csv_logger import CSVLogger
    from camshaft.handlers.data_parallel import DataParallel
    from camshaft.handlers.device import Device
    from camshaft.handlers.distributed_sampling import DistributedSampling
    from camshaft.handlers.early_stopping import EarlyStopping
    from camshaft.handlers.ema import EMA
    from camshaft.handlers.evaluate import Evaluate
    from camshaft.handlers.fully_sharded import FullySharded
    from camshaft.handlers.gradient_accumulation import GradientAccumulation
    from camshaft.handlers.gradient_clipping import GradientClipping
    from camshaft.handlers.handler import Handler, On
    from camshaft.handlers.logger import Logger
    from camshaft.handlers.lr_scheduler import LRScheduler
    from camshaft.handlers.metrics import Metrics
    from camshaft.handlers.optimizer_step import OptimizerStep
    from camshaft.handlers.preemption import Preemption
    from camshaft.handlers.progress_bar import ProgressBar
    from camshaft.handlers.run_record import RunRecord
    from camshaft.handlers.tensorboard_logger import TensorBoardLogger
    from camshaft.handlers.terminate_on_nan import TerminateOnNaN
    from camshaft.handlers.time_limit import TimeLimit

# Literal, because type checkers and editors read it without running anything.
__all__ = [
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

_modules = {
    "AMP": "amp",
    "CSVLogger": "csv_logger",
    "Checkpoint": "checkpoint",
    "DataParallel": "data_parallel",
    "Device": "device",
    "DistributedSampling": "distributed_sampling",
    "EMA": "ema",
    "EarlyStopping": "early_stopping",
    "Evaluate": "evaluate",
    "FullySharded": "fully_sharded",
    "GradientAccumulation": "gradient_accumulation",
    "GradientClipping": "gradient_clipping",
    "Handler": "handler",
    "LRScheduler": "lr_scheduler",
    "Logger": "logger",
    "Metrics": "metrics",
    "On": "handler",
    "OptimizerStep": "optimizer_step",
    "Preemption": "preemption",
    "ProgressBar": "progress_bar",
    "RunRecord": "run_record",
    "TensorBoardLogger": "tensorboard_logger",
    "TerminateOnNaN": "terminate_on_nan",
    "TimeLimit": "time_limit",
}

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
