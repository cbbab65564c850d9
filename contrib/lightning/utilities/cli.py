"""Where programs for Lightning 1.x find the command line."""

from camshaft.contrib.lightning.cli import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
    instantiate_class,
)

__all__ = ["LightningArgumentParser", "LightningCLI", "SaveConfigCallback", "instantiate_class"]
