"""Learning rates and batch sizes, found by trying them."""

from camshaft.contrib.lightning.tuner.tuning import Tuner

__all__ = ["Tuner"]
