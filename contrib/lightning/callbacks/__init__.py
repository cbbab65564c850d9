"""The callbacks: each answers to a trainer's hooks with one concern of training, in a file of its own."""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.callbacks.batch_size_finder import BatchSizeFinder
    from camshaft.contrib.lightning.callbacks.callback import Callback
    from camshaft.contrib.lightning.callbacks.checkpoint import Checkpoint
    from camshaft.contrib.lightning.callbacks.device_stats_monitor import DeviceStatsMonitor
    from camshaft.contrib.lightning.callbacks.early_stopping import EarlyStopping
    from camshaft.contrib.lightning.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
    from camshaft.contrib.lightning.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
    from camshaft.contrib.lightning.callbacks.lambda_function import LambdaCallback
    from camshaft.contrib.lightning.callbacks.lr_finder import LearningRateFinder
    from camshaft.contrib.lightning.callbacks.lr_monitor import LearningRateMonitor
    from camshaft.contrib.lightning.callbacks.model_checkpoint import ModelCheckpoint
    from camshaft.contrib.lightning.callbacks.model_summary import ModelSummary
    from camshaft.contrib.lightning.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
    from camshaft.contrib.lightning.callbacks.prediction_writer import BasePredictionWriter
    from camshaft.contrib.lightning.callbacks.progress import ProgressBar, RichProgressBar, TQDMProgressBar
    from camshaft.contrib.lightning.callbacks.pruning import ModelPruning
    from camshaft.contrib.lightning.callbacks.rich_model_summary import RichModelSummary
    from camshaft.contrib.lightning.callbacks.spike import SpikeDetection
    from camshaft.contrib.lightning.callbacks.stochastic_weight_avg import StochasticWeightAveraging
    from camshaft.contrib.lightning.callbacks.throughput_monitor import ThroughputMonitor
    from camshaft.contrib.lightning.callbacks.timer import Timer
    from camshaft.contrib.lightning.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

# Literal, because type checkers and editors read it without running anything.
__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]

_modules = {
    "BackboneFinetuning": "finetuning",
    "BaseFinetuning": "finetuning",
    "BasePredictionWriter": "prediction_writer",
    "BatchSizeFinder": "batch_size_finder",
    "Callback": "callback",
    "Checkpoint": "checkpoint",
    "DeviceStatsMonitor": "device_stats_monitor",
    "EMAWeightAveraging": "weight_averaging",
    "EarlyStopping": "early_stopping",
    "GradientAccumulationScheduler": "gradient_accumulation_scheduler",
    "LambdaCallback": "lambda_function",
    "LearningRateFinder": "lr_finder",
    "LearningRateMonitor": "lr_monitor",
    "ModelCheckpoint": "model_checkpoint",
    "ModelPruning": "pruning",
    "ModelSummary": "model_summary",
    "OnExceptionCheckpoint": "on_exception_checkpoint",
    "ProgressBar": "progress",
    "RichModelSummary": "rich_model_summary",
    "RichProgressBar": "progress",
    "SpikeDetection": "spike",
    "StochasticWeightAveraging": "stochastic_weight_avg",
    "TQDMProgressBar": "progress",
    "ThroughputMonitor": "throughput_monitor",
    "Timer": "timer",
    "WeightAveraging": "weight_averaging",
}

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
