"""What the commands know of a run's directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from camshaft.commands import CommandError
from camshaft.handlers.checkpoint_store import METADATA_FILE, BrokenCheckpointError, CheckpointStore, SavedCheckpoint

if TYPE_CHECKING:
    from collections.abc import Sequence


def store_of(run: Path) -> CheckpointStore:
    """The checkpoints of a run, of which there is at least one, whole or not.

    Raises:
        CommandError: there is no such directory, or no checkpoint in it.
    """
    check_directory(run)
    store = CheckpointStore(run if run.name == "checkpoints" else run / "checkpoints")
    if not directories_of(store):
        raise CommandError(f"{run} has no checkpoints.")
    return store


def check_directory(run: Path) -> None:
    """Refuse what is no directory.

    Raises:
        CommandError: that says so.
    """
    if not run.exists():
        raise CommandError(f"{run} does not exist.")
    if not run.is_dir():
        raise CommandError(f"{run} is a file, not the directory of a run.")


def directories_of(store: CheckpointStore) -> list[Path]:
    """The directories of all checkpoints, also of those that are broken."""
    if not store.directory.is_dir():
        return []
    return [path for path in sorted(store.directory.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def best_of(checkpoints: Sequence[SavedCheckpoint]) -> SavedCheckpoint | None:
    """The checkpoint with the best monitored value, the first of several, or None if no value was monitored."""
    valued = [checkpoint for checkpoint in checkpoints if checkpoint.value is not None]
    valued = [checkpoint for checkpoint in valued if checkpoint.value == checkpoint.value]  # NaN is no value
    # The newest decides, should the run have been given another monitor in between.
    comparable = [checkpoint for checkpoint in valued if checkpoint.monitor == valued[-1].monitor]
    if not comparable:
        return None
    choose = max if comparable[-1].mode == "max" else min
    return choose(comparable, key=lambda checkpoint: checkpoint.value or 0.0)


def state_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """The state of a checkpoint, or of the newest whole one of a run, on the CPU, and the checkpoint's directory.

    Raises:
        CommandError: it is neither, or broken.
    """
    check_directory(path)
    try:
        if (path / METADATA_FILE).exists():
            return path, CheckpointStore(path.parent).read(path)
        newest = store_of(path).newest_whole()
    except BrokenCheckpointError as error:
        raise CommandError(str(error)) from error
    assert newest is not None  # there is one, and it is whole
    return newest[0].path, newest[1]
