"""The directory of checkpoints: which it is, whether it can be written to, and what is done in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["absolute", "default_directory", "link", "remove", "why_unwritable"]


def absolute(dirpath: str | os.PathLike[str] | None) -> str | None:
    """A directory by its full path, without links; None for none.

    Raises:
        MisconfigurationException: it is on another machine.

    Example:
        >>> absolute("/tmp/../tmp/runs/")
        '/tmp/runs'
    """
    if dirpath is None or not os.fspath(dirpath):
        return None
    if "://" in os.fspath(dirpath):
        raise MisconfigurationException(
            f"Checkpoints are saved to a directory of this machine, not to {os.fspath(dirpath)!r}: mount it, or copy "
            "them there afterwards."
        )
    return os.path.realpath(Path(dirpath).expanduser())


def default_directory(trainer: Trainer) -> str:
    """``checkpoints`` in the directory of a trainer's first logger, or in its ``default_root_dir``."""
    if not trainer.loggers:
        return str(Path(trainer.default_root_dir) / "checkpoints")
    logger = trainer.loggers[0]
    save_dir = trainer.default_root_dir if logger.save_dir is None else logger.save_dir
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return str(Path(save_dir) / str(logger.name) / version / "checkpoints")


def why_unwritable(dirpath: str) -> OSError | None:
    """What will prevent checkpoints from being saved there; found out without leaving anything there.

    Example:
        >>> why_unwritable(os.devnull + "/checkpoints")
        NotADirectoryError("No checkpoint can be saved in '/dev/null/checkpoints': '/dev/null' is a file. Give ...")
    """
    path = Path(dirpath)
    existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        return NotADirectoryError(
            f"No checkpoint can be saved in {str(path)!r}: {str(existing)!r} is a file. Give another directory."
        )
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return OSError(
            error.errno,
            f"No checkpoint can be saved in {str(path)!r}: no file can be made in {str(existing)!r} "
            f"({error.strerror}). Give another directory.",
        )
    return None


def link(filepath: str, linkpath: str) -> None:
    """Let ``linkpath`` lead to ``filepath``; at every moment it leads to what it led to before, or to this."""
    new, final = Path(linkpath + ".new"), Path(linkpath)
    new.unlink(missing_ok=True)
    try:
        new.symlink_to(os.path.relpath(filepath, final.parent))
    except OSError:  # a system where not everybody may make links
        shutil.copy(filepath, new)
    new.replace(final)


def remove(filepath: str) -> None:
    """Delete a checkpoint, whether it is a file, a link or a directory, if it is still there."""
    path = Path(filepath)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
