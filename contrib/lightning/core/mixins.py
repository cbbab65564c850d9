"""Where programs for Lightning find what gives a class hyperparameters."""

from camshaft.contrib.lightning.hyperparameters import HyperparametersMixin

__all__ = ["HyperparametersMixin"]
