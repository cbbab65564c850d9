"""Where programs of 2019 find the loggers."""

from camshaft.contrib.lightning.loggers import (
    CometLogger,
    LightningLoggerBase,
    MLFlowLogger,
    NeptuneLogger,
    TensorBoardLogger,
    WandbLogger,
)
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only

__all__ = [
    "CometLogger",
    "LightningLoggerBase",
    "MLFlowLogger",
    "NeptuneLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "rank_zero_only",
]
