"""The handlers: each answers to an engine's events with one concern of training, in a file of its own.

A new handler is one file here, one line in each of the three lists below, and one in `camshaft/__init__.py`'s two.
"""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.handlers.amp import AMP
    from camshaft.handlers.batch_size_finder import BatchSizeFinder
    from camshaft.handlers.checkpoint import Checkpoint
    from camshaft.handlers.compile import Compile
    from camshaft.handlers.csv_logger import CSVLogger
    from camshaft.handlers.cuda_graph import CUDAGraph
    from camshaft.handlers.data_parallel import DataParallel
    from camshaft.handlers.device import Device
    from camshaft.handlers.distributed_sampling import DistributedSampling
    from camshaft.handlers.early_stopping import EarlyStopping
    from camshaft.handlers.ema import EMA
    from camshaft.handlers.evaluate import Evaluate
    from camshaft.handlers.fast_dev_run import FastDevRun
    from camshaft.handlers.freeze import Freeze
    from camshaft.handlers.fully_sharded import FullySharded
    from camshaft.handlers.gradient_accumulation import GradientAccumulation
    from camshaft.handlers.gradient_clipping import GradientClipping
    from camshaft.handlers.gradient_monitor import GradientMonitor
    from camshaft.handlers.handler import Handler, On
    from camshaft.handlers.json_lines_logger import JSONLinesLogger
    from camshaft.handlers.live_plot import LivePlot
    from camshaft.handlers.logger import Logger
    from camshaft.handlers.lr_finder import LRFinder
    from camshaft.handlers.lr_scheduler import LRScheduler
    from camshaft.handlers.metrics import Metrics
    from camshaft.handlers.optimizer_step import OptimizerStep
    from camshaft.handlers.overfit import Overfit
    from camshaft.handlers.preemption import Preemption
    from camshaft.handlers.prefetch import Prefetch
    from camshaft.handlers.profiler import Profiler
    from camshaft.handlers.progress_bar import ProgressBar
    from camshaft.handlers.rich_progress import RichProgress
    from camshaft.handlers.run_record import RunRecord
    from camshaft.handlers.sanity_check import SanityCheck
    from camshaft.handlers.tensorboard_logger import TensorBoardLogger
    from camshaft.handlers.terminate_on_nan import TerminateOnNaN
    from camshaft.handlers.time_limit import TimeLimit
    from camshaft.handlers.trace import Trace

# Literal, because type checkers and editors read it without running anything.
__all__ = [
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

_modules = {
    "AMP": "amp",
    "BatchSizeFinder": "batch_size_finder",
    "CSVLogger": "csv_logger",
    "CUDAGraph": "cuda_graph",
    "Checkpoint": "checkpoint",
    "Compile": "compile",
    "DataParallel": "data_parallel",
    "Device": "device",
    "DistributedSampling": "distributed_sampling",
    "EMA": "ema",
    "EarlyStopping": "early_stopping",
    "Evaluate": "evaluate",
    "FastDevRun": "fast_dev_run",
    "Freeze": "freeze",
    "FullySharded": "fully_sharded",
    "GradientAccumulation": "gradient_accumulation",
    "GradientClipping": "gradient_clipping",
    "GradientMonitor": "gradient_monitor",
    "Handler": "handler",
    "JSONLinesLogger": "json_lines_logger",
    "LRFinder": "lr_finder",
    "LRScheduler": "lr_scheduler",
    "LivePlot": "live_plot",
    "Logger": "logger",
    "Metrics": "metrics",
    "On": "handler",
    "OptimizerStep": "optimizer_step",
    "Overfit": "overfit",
    "Preemption": "preemption",
    "Prefetch": "prefetch",
    "Profiler": "profiler",
    "ProgressBar": "progress_bar",
    "RichProgress": "rich_progress",
    "RunRecord": "run_record",
    "SanityCheck": "sanity_check",
    "TensorBoardLogger": "tensorboard_logger",
    "TerminateOnNaN": "terminate_on_nan",
    "TimeLimit": "time_limit",
    "Trace": "trace",
}

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
