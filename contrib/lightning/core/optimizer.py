"""Where programs for Lightning find the optimizer that ``self.optimizers()`` gives."""

from camshaft.contrib.lightning.optimization import LightningOptimizer

__all__ = ["LightningOptimizer"]
