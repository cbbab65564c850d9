"""Loggers with the interface of Lightning's; a Trainer takes the loggers of :mod:`camshaft.handlers` as well."""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.loggers.base import LightningLoggerBase
    from camshaft.contrib.lightning.loggers.comet import CometLogger
    from camshaft.contrib.lightning.loggers.csv_logs import CSVLogger
    from camshaft.contrib.lightning.loggers.logger import DummyLogger, Logger
    from camshaft.contrib.lightning.loggers.mlflow import MLFlowLogger
    from camshaft.contrib.lightning.loggers.neptune import NeptuneLogger
    from camshaft.contrib.lightning.loggers.tensorboard import TensorBoardLogger
    from camshaft.contrib.lightning.loggers.wandb import WandbLogger

__all__ = [
    "CSVLogger",
    "CometLogger",
    "DummyLogger",
    "LightningLoggerBase",
    "Logger",
    "MLFlowLogger",
    "NeptuneLogger",
    "TensorBoardLogger",
    "WandbLogger",
]

_modules = {
    "CSVLogger": "csv_logs",
    "CometLogger": "comet",
    "DummyLogger": "logger",
    "LightningLoggerBase": "base",
    "Logger": "logger",
    "MLFlowLogger": "mlflow",
    "NeptuneLogger": "neptune",
    "TensorBoardLogger": "tensorboard",
    "WandbLogger": "wandb",
}

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
