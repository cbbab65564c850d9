"""Where programs for Lightning find the module and the data module."""

from camshaft.contrib.lightning.datamodule import LightningDataModule
from camshaft.contrib.lightning.module import LightningModule

__all__ = ["LightningDataModule", "LightningModule"]
