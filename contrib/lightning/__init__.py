"""Lightning's split on Camshaft's engine: a module with the research, a Trainer with the engineering.

``import camshaft.contrib.lightning as pl`` in place of ``import lightning.pytorch as pl``, or of ``import
pytorch_lightning as pl``, runs the same program.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.callbacks.callback import Callback
    from camshaft.contrib.lightning.datamodule import LightningDataModule
    from camshaft.contrib.lightning.logo import cli_lightning_logo
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer
    from camshaft.contrib.lightning.utilities.seed import seed_everything

# Literal, because type checkers and editors read it without running anything.
__all__ = ["Callback", "LightningDataModule", "LightningModule", "Trainer", "cli_lightning_logo", "seed_everything"]

_names = {
    "Callback": "callbacks.callback",
    "LightningDataModule": "datamodule",
    "LightningModule": "module",
    "data_loader": "core.decorators",
    "Trainer": "trainer",
    "cli_lightning_logo": "logo",
    "seed_everything": "utilities.seed",
}
# What programs reach as an attribute: `pl.callbacks.ModelCheckpoint`.
_packages = {
    "callbacks",
    "cli",
    "core",
    "demos",
    "loggers",
    "logging",
    "profiler",
    "profilers",
    "serve",
    "strategies",
    "trainer",
    "tuner",
    "utilities",
}

__version__ = "2.6.0"  # of Lightning, whose interface this has

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    _load, __dir__ = lazy_names(__name__, _names)

    def __getattr__(name: str) -> Any:
        if name == "pytorch":  # programs that `import lightning as L` say `L.pytorch`
            return import_module(__name__)
        return import_module(f"{__name__}.{name}") if name in _packages else _load(name)
