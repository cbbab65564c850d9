"""The name and the place that the base of loggers had in 2020, for programs of that time."""

from camshaft.contrib.lightning.loggers.logger import Logger, rank_zero_experiment
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only

__all__ = ["LightningLoggerBase", "rank_zero_experiment", "rank_zero_only"]

LightningLoggerBase = Logger
