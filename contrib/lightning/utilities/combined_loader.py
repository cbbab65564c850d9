"""Where programs for Lightning find `CombinedLoader`."""

from camshaft.contrib.lightning.combined_loader import CombinedLoader

__all__ = ["CombinedLoader"]
