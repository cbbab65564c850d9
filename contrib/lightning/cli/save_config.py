"""Saves the configuration of a command line beside the logs of its run.

A callback: it saves in ``setup``, before anything is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.callbacks.callback import Callback

if TYPE_CHECKING:
    from camshaft.contrib.lightning.cli.parser import LightningArgumentParser

__all__ = ["SaveConfigCallback"]


class SaveConfigCallback(Callback):
    """Writes ``config.yaml`` to the trainer's ``log_dir``; ``--config`` with it does the run again.

    Where the logger has no directory, it goes to the trainer's ``default_root_dir``.

    Args:
        parser: knows how to write the configuration.
        config: the configuration.
        config_filename: the file's name.
        overwrite: whether it may take the place of the file of a run before.
        multifile: whether a configuration that was read from several files is written to several.
        save_to_log_dir: False where only ``save_config``, which a subclass overrides, is to save it.

    Raises:
        ValueError: it would be saved nowhere.
        RuntimeError: when the run is set up: the file is there, and ``overwrite`` is not set.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Any,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False
        if not save_to_log_dir and type(self).save_config is SaveConfigCallback.save_config:
            raise ValueError(
                "SaveConfigCallback(save_to_log_dir=False) saves nothing: subclass it and override save_config, or "
                "pass LightningCLI(save_config_callback=None)."
            )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.already_saved:
            return
        if self.save_to_log_dir:
            directory = trainer.log_dir or trainer.default_root_dir  # the same on all ranks
            path = Path(directory) / self.config_filename
            is_there = trainer.strategy.broadcast(path.is_file() if trainer.is_global_zero else False)
            if is_there and not self.overwrite:
                raise RuntimeError(
                    f"{path} is there from a run before. Delete it, log elsewhere, or let it be overwritten: "
                    "LightningCLI(save_config_kwargs={'overwrite': True}); save_config_callback=None saves none."
                )
            if trainer.is_global_zero:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.parser.save(
                    self.config, str(path), skip_unset=False, overwrite=self.overwrite, multifile=self.multifile
                )
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Save it elsewhere, too; override it. It is called on rank 0 only."""
