"""A command line for a module, its data and the trainer: every argument of theirs is an option (needs jsonargparse)."""

from camshaft.contrib.lightning.cli.command_line import LightningCLI
from camshaft.contrib.lightning.cli.instantiation import instantiate_class, instantiate_module
from camshaft.contrib.lightning.cli.parser import LightningArgumentParser
from camshaft.contrib.lightning.cli.save_config import SaveConfigCallback
from camshaft.contrib.lightning.cli.types import (
    ArgsType,
    LRSchedulerCallable,
    LRSchedulerType,
    LRSchedulerTypeTuple,
    LRSchedulerTypeUnion,
    OptimizerCallable,
    ReduceLROnPlateau,
)

__all__ = [
    "ArgsType",
    "LRSchedulerCallable",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "LightningArgumentParser",
    "LightningCLI",
    "OptimizerCallable",
    "ReduceLROnPlateau",
    "SaveConfigCallback",
    "instantiate_class",
    "instantiate_module",
]
