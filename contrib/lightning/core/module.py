"""Where programs for Lightning find its module."""

from camshaft.contrib.lightning.module import LightningModule

__all__ = ["LightningModule"]
