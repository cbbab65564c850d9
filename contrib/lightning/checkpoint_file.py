"""Checkpoint files that the real Lightning reads, too: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from camshaft.contrib.lightning.loading import read_checkpoint

__all__ = ["read", "write"]


def write(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint; what was there before stays until the new one is whole and on the disk.

    Args:
        content: tensors and plain values.
        path: of the file; its directory is made.

    Raises:
        OSError: it cannot be written; the message names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> write({"epoch": 1, "state_dict": {"weight": torch.ones(2)}}, path)
        >>> read(path)["state_dict"]
        {'weight': tensor([1., 1.])}
    """
    path = Path(path)
    writing = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        writing.replace(path)
        _sync_directory(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a bare RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(
            f"The checkpoint {path} could not be written: {cause}. What was there before is as it was."
        ) from error
    finally:
        writing.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint, ours or Lightning's.

    Args:
        path: of the file.
        map_location: where its tensors go.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is truncated, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load does not notice a flipped bit
        if broken is not None:
            raise ValueError(f"The checkpoint {path} is damaged: {broken} in it is not what was written.")
    return read_checkpoint(path, map_location)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
