"""Saves a checkpoint when an exception ends a run.

Called at on_exception; at setup and teardown it deletes the checkpoint of an earlier failure once a fit has succeeded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from camshaft.contrib.lightning.callbacks.checkpoint import Checkpoint
from camshaft.contrib.lightning.trainer.states import TrainerFn

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["OnExceptionCheckpoint"]


class OnExceptionCheckpoint(Checkpoint):
    """Saves a checkpoint when an exception ends ``fit``; it is deleted when a later ``fit`` comes to its end.

    Args:
        dirpath: the directory.
        filename: the name, without its extension.

    Raises:
        ValueError: an empty name.

    Example:
        >>> OnExceptionCheckpoint("runs").ckpt_path
        'runs/on_exception.ckpt'
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: str | os.PathLike[str], filename: str = "on_exception") -> None:
        if not filename:
            raise ValueError("OnExceptionCheckpoint needs the name of a file, but got an empty one.")
        self.dirpath = dirpath
        self.filename = filename
        self._failed = False

    @property
    def ckpt_path(self) -> str:
        """Where it saves to."""
        return str(Path(self.dirpath) / (self.filename + self.FILE_EXTENSION))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._failed = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._failed = True
        if trainer.state.fn == TrainerFn.FITTING:
            trainer.save_checkpoint(self.ckpt_path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == TrainerFn.FITTING and not self._failed and trainer.is_global_zero:
            Path(self.ckpt_path).unlink(missing_ok=True)
