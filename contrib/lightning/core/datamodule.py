"""Where programs for Lightning find its data module."""

from camshaft.contrib.lightning.datamodule import LightningDataModule

__all__ = ["LightningDataModule"]
