"""Where programs of 2020 find Lightning's module."""

from camshaft.contrib.lightning.module import LightningModule

__all__ = ["LightningModule"]
