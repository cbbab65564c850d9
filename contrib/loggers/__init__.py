"""Loggers that send the numbers of a run to a vendor's service: handlers, on one base with those that write files."""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.loggers.clearml import ClearMLLogger
    from camshaft.contrib.loggers.comet import CometLogger
    from camshaft.contrib.loggers.mlflow import MLflowLogger
    from camshaft.contrib.loggers.neptune import NeptuneLogger
    from camshaft.contrib.loggers.service import ServiceLogger
    from camshaft.contrib.loggers.visdom import VisdomLogger
    from camshaft.contrib.loggers.wandb import WandBLogger

__all__ = [
    "ClearMLLogger",
    "CometLogger",
    "MLflowLogger",
    "NeptuneLogger",
    "ServiceLogger",
    "VisdomLogger",
    "WandBLogger",
]

_modules = {
    "ClearMLLogger": "clearml",
    "CometLogger": "comet",
    "MLflowLogger": "mlflow",
    "NeptuneLogger": "neptune",
    "ServiceLogger": "service",
    "VisdomLogger": "visdom",
    "WandBLogger": "wandb",
}

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
