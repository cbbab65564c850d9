"""Where a Trainer's checkpoints are, which of them is meant, and how one is written."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from camshaft.contrib.lightning.checkpoint_file import write
from camshaft.contrib.lightning.snapshot import restore_training, snapshot
from camshaft.contrib.lightning.trainer.metrics import TrainerMetrics
from camshaft.contrib.lightning.training import Training

__all__ = ["TrainerCheckpoints"]


class TrainerCheckpoints(TrainerMetrics):
    """The part of a Trainer that writes, finds and reads checkpoints."""

    _loaded: dict[str, Any] | None

    def save_checkpoint(
        self, filepath: str | os.PathLike[str], weights_only: bool = False, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; all processes must call this, the first one writes.

        Args:
            filepath: of the file.
            weights_only: weights and hyperparameters alone, with which a fit cannot go on.
            storage_options: not supported.

        Raises:
            AttributeError: there is no module yet.
            OSError: it cannot be written; what was there before is as it was.
        """
        if self.lightning_module is None:
            raise AttributeError("There is nothing to save: call fit, validate, test or predict first.")
        if storage_options is not None:
            raise TypeError("save_checkpoint(storage_options=...) is not supported.")
        content = snapshot(self, weights_only=weights_only)
        if self.is_global_zero:
            write(content, filepath)
        self.strategy.barrier()

    def _chosen(self, ckpt_path: Any) -> Any:
        """The path that ``ckpt_path`` means."""
        if ckpt_path is None or ckpt_path not in ("best", "last", "hpc"):
            return ckpt_path
        if ckpt_path == "best":
            best = self._best()
            if not best:
                raise ValueError(
                    f"{self.state.fn}(ckpt_path='best') found no best checkpoint: there is no ModelCheckpoint, or it "
                    "has saved none."
                )
            return best
        found = [path for directory in self._checkpoint_directories() for path in directory.glob("*.ckpt")]
        if not found:
            warnings.warn(
                f"{self.state.fn}(ckpt_path={ckpt_path!r}) found no checkpoint: it begins anew.", stacklevel=4
            )
            return None
        return max(found, key=lambda path: path.stat().st_mtime_ns)

    def _best(self) -> str:
        checkpoint = self.checkpoint_callback
        return str(getattr(checkpoint, "best_model_path", "") or "")

    @property
    def checkpoint_directory(self) -> Path:
        """Where checkpoints are written that no callback asks for."""
        return next(iter(self._checkpoint_directories()), self._default_root_dir)

    def _checkpoint_directories(self) -> list[Path]:
        directories = []
        for callback in self.checkpoint_callbacks:
            for name in ("best_model_path", "last_model_path"):
                path = getattr(callback, name, "")
                if path:
                    directories.append(Path(path).parent)
            if getattr(callback, "dirpath", None):
                directories.append(Path(callback.dirpath))
        directories.append(self._default_root_dir)
        return [directory for directory in dict.fromkeys(directories) if directory.is_dir()]

    def restore_training(self, training: Training) -> None:
        """Go on where the checkpoint was taken, if one was given."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            restore_training(self, training, loaded)
            for logger in self.loggers:
                if hasattr(logger, "resume_from"):
                    logger.resume_from(training.batches_stepped)
