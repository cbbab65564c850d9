"""Checkpoints as directories that are either whole or absent.

A checkpoint is written under another name beside its own, with a digest of each file, flushed to the disk, and renamed.
Reading compares the digests and never runs code from the file. Only reading and writing of a state import torch, so
that the command line can list checkpoints at once.

Several processes write one checkpoint together by the steps that ``write`` consists of: one begins and commits it, each
writes files of its own in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

__all__ = ["BrokenCheckpointError", "CheckpointStore", "SavedCheckpoint"]

STATE_FILE = "state.pt"
METADATA_FILE = "metadata.json"
SHARDS_FOLDER = "shards"  # of tensors whose parts lie on several processes
_WRITING, _REPLACED = ".writing-", ".replaced-"


class BrokenCheckpointError(RuntimeError):
    """A checkpoint that is truncated, changed or incomplete; the message says which and how."""


class SavedCheckpoint(NamedTuple):
    """A checkpoint on the disk and what its metadata says.

    Attributes:
        path: its directory.
        iteration: the last completed iteration.
        epoch: of that iteration.
        value: of what is monitored, or None.
        finished: whether the run had ended.
        number: of all that were written here, the how-manieth; the highest is the newest, whatever its iteration.
        monitor: the name of what is monitored, or None.
        mode: whether the best of it is the ``"min"`` or the ``"max"``.
        origin: the path of the checkpoint, given by hand, from which the run began, or None.
        processes: how many have saved it together.
    """

    path: Path
    iteration: int
    epoch: int
    value: float | None
    finished: bool
    number: int = 0
    monitor: str | None = None
    mode: str | None = None
    origin: str | None = None
    processes: int = 1


_Found = tuple[list[SavedCheckpoint], list[str]]  # `list` is something else within the class
_Files = dict[str, dict[str, Any]]  # the size and the digest of each file


class CheckpointStore:
    """The checkpoints in one directory.

    Args:
        directory: made when the first one is written.

    Example:
        >>> import tempfile
        >>> import torch
        >>> store = CheckpointStore(tempfile.mkdtemp())
        >>> path = store.write("iteration=3", {"model": {"weight": torch.ones(2)}}, {"iteration": 3, "epoch": 1})
        >>> store.read(path)
        {'model': {'weight': tensor([1., 1.])}}
        >>> [checkpoint.iteration for checkpoint in store.list()]
        [3]
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def write(self, name: str, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> Path:
        """Write a checkpoint; it is there, whole, when this returns, and not at all when this raises.

        Args:
            name: of its directory; a checkpoint that has it is replaced once the new one is whole.
            state: tensors and plain values, in mappings and lists.
            metadata: ``iteration``, ``epoch`` and further plain values that can be read without the state.

        Raises:
            OSError: the disk is full or the directory cannot be written; the message names it.
        """
        try:
            self.begin(name)
            return self.commit(name, metadata, self.write_file(name, STATE_FILE, state))
        finally:
            self.abandon(name)

    def begin(self, name: str) -> None:
        """Make the directory in which a checkpoint is written."""
        writing = self.writing(name)
        with self.telling(name):
            self.directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir()

    def write_file(self, name: str, file_name: str, state: Mapping[str, Any]) -> _Files:
        """Write one file of a checkpoint that was begun; returns its entry for :meth:`commit`."""
        import torch  # noqa: PLC0415 - not for the command line

        with self.telling(name), _synced_file(self.writing(name) / file_name) as file:
            digesting: Any = _DigestingFile(file)
            torch.save(dict(state), digesting)
        return {file_name: {"bytes": digesting.bytes, "sha256": digesting.sha256.hexdigest()}}

    def entry_of(self, name: str, path: Path) -> _Files:
        """The entry for :meth:`commit` of a file that another library wrote into a checkpoint that was begun."""
        with self.telling(name):
            size, digest = _size_and_digest(path)
        return {path.relative_to(self.writing(name)).as_posix(): {"bytes": size, "sha256": digest}}

    def commit(self, name: str, metadata: Mapping[str, Any], files: _Files) -> Path:
        """Put a checkpoint in its place, all of whose files are written and flushed."""
        final, writing = self.directory / name, self.writing(name)
        with self.telling(name):
            number = 1 + max((checkpoint.number for checkpoint in self.list()), default=0)
            content = {**metadata, "number": number, "files": files}
            with _synced_file(writing / METADATA_FILE) as file:
                file.write(json.dumps({**content, "sha256": _digest(content)}, indent=1).encode())
            for folder in {(writing / file_name).parent for file_name in files} | {writing}:
                _sync_directory(folder)
            self._put_in_place(writing, final)
        return final

    def abandon(self, name: str) -> None:
        """Remove what is left of a checkpoint that was begun."""
        shutil.rmtree(self.writing(name), ignore_errors=True)

    def writing(self, name: str) -> Path:
        """The directory in which a checkpoint is written until it is whole."""
        return self.directory / f"{_WRITING}{name}"

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Within this context, what goes wrong is said in a sentence that names the checkpoint and the space left."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a bare RuntimeError
            free = shutil.disk_usage(_existing(self.directory)).free
            raise OSError(
                f"The checkpoint {self.directory / name} could not be written: {_reason(error)} "
                f"({free / 1e6:.0f} MB are free there). Earlier checkpoints are as they were."
            ) from error

    def read(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Read a checkpoint's state on the CPU, after comparing its digests; what is sharded is put together.

        Args:
            path: its directory.

        Raises:
            BrokenCheckpointError: it is not whole, or not what was written.
        """
        path = Path(path)
        self.verify(path)
        return self._put_together(path, self.load(path, STATE_FILE))

    def load(self, path: Path, file_name: str) -> dict[str, Any]:
        """Load one file of a checkpoint whose digests are known to be right; of what is sharded, the names."""
        import torch  # noqa: PLC0415 - not for the command line

        try:
            state: dict[str, Any] = torch.load(path / file_name, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise BrokenCheckpointError(
                f"The checkpoint {path} is broken: its digests are right, but {file_name} does not hold tensors and "
                f"plain values alone ({_first_line(error)})."
            ) from error
        return state

    def _put_together(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        if not (path / SHARDS_FOLDER).is_dir():
            return state
        from camshaft.handlers.sharded_state import read_whole  # noqa: PLC0415 - not for the command line

        return read_whole(path, state)

    def verify(self, path: Path) -> None:
        """Compare a checkpoint's digests, without loading its state.

        Args:
            path: its directory.

        Raises:
            BrokenCheckpointError: it is not whole, or not what was written.
        """
        for name, expected in self._metadata(path)["files"].items():
            try:
                size, digest = _size_and_digest(path / name)
            except OSError as error:
                raise BrokenCheckpointError(f"The checkpoint {path} is broken: {_reason(error)}.") from error
            if digest != expected["sha256"]:
                written = expected["bytes"]
                how = f"{written} bytes were written, {size} are there" if size != written else "its digest is another"
                raise BrokenCheckpointError(f"The checkpoint {path} is broken: {name} is not what was written ({how}).")

    def list(self) -> list[SavedCheckpoint]:
        """All checkpoints whose metadata is whole, the oldest first; their states are not read."""
        return self._survey()[0]

    def newest_whole(
        self, *, running: bool = False, together: bool = True
    ) -> tuple[SavedCheckpoint, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its state; a warning names each newer one that is broken.

        Args:
            running: take one of a finished run only if no other is whole.
            together: put together what is sharded; else its names stand in the state.

        Returns:
            None if there is no checkpoint at all.

        Raises:
            BrokenCheckpointError: there are some, but none is whole; nothing is deleted.
        """
        checkpoints, broken = self._survey()
        if running:
            checkpoints.sort(key=lambda checkpoint: not checkpoint.finished)
        for checkpoint in reversed(checkpoints):
            try:
                self.verify(checkpoint.path)
                state = self.load(checkpoint.path, STATE_FILE)
                if together:
                    state = self._put_together(checkpoint.path, state)
            except BrokenCheckpointError as error:
                broken.append(str(error))
                continue
            for message in broken:
                warnings.warn(f"{message} {checkpoint.path.name} is used instead.", stacklevel=2)
            return checkpoint, state
        if broken:
            raise BrokenCheckpointError(
                f"No checkpoint in {self.directory} is whole, and nothing was deleted. " + " ".join(broken)
            )
        return None

    def delete(self, path: Path) -> None:
        """Delete a checkpoint so that at no moment a part of it looks like one."""
        doomed = self.directory / f"{_WRITING}{path.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)

    def clear_leftovers(self) -> None:
        """Remove what a killed process left unfinished, and bring back what it was about to replace."""
        for path in self.directory.glob(f"{_WRITING}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.directory.glob(f"{_REPLACED}*"):
            final = self.directory / path.name.removeprefix(_REPLACED)
            if final.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(final)

    def _survey(self) -> _Found:
        """The checkpoints by age, and what is wrong with those whose metadata cannot be read."""
        found, broken = [], []
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else ():
            if path.name.startswith(".") or not path.is_dir():
                continue
            try:
                metadata = self._metadata(path)
            except BrokenCheckpointError as error:
                broken.append(str(error))
                continue
            found.append(
                SavedCheckpoint(
                    path,
                    metadata["iteration"],
                    metadata["epoch"],
                    metadata.get("value"),
                    metadata.get("finished", False),
                    metadata.get("number", 0),
                    metadata.get("monitor"),
                    metadata.get("mode"),
                    metadata.get("origin"),
                    metadata.get("processes", 1),
                )
            )
        return sorted(found, key=lambda checkpoint: (checkpoint.number, checkpoint.iteration)), broken

    def _metadata(self, path: Path) -> dict[str, Any]:
        try:
            metadata: dict[str, Any] = json.loads((path / METADATA_FILE).read_bytes())
            digest = metadata.pop("sha256")
            whole = digest == _digest(metadata)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise BrokenCheckpointError(
                f"The checkpoint {path} is broken: {METADATA_FILE}: {_reason(error)}."
            ) from error
        if not whole:
            raise BrokenCheckpointError(f"The checkpoint {path} is broken: {METADATA_FILE} is not what was written.")
        return metadata

    def _put_in_place(self, writing: Path, final: Path) -> None:
        replaced = self.directory / f"{_REPLACED}{final.name}"
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():  # a directory cannot be renamed over another; clear_leftovers() mends a kill between the two
            final.rename(replaced)
        try:
            writing.rename(final)
        except OSError:
            if replaced.exists():
                replaced.rename(final)
            raise
        _sync_directory(self.directory)
        shutil.rmtree(replaced, ignore_errors=True)


class _DigestingFile:
    """A file for ``torch.save`` to write into that keeps the digest of what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        written = self.file.write(data)
        self.bytes += written
        return written

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def _synced_file(path: Path) -> Iterator[IO[bytes]]:
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size_and_digest(path: Path) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _reason(error: BaseException) -> str:
    cause = error.__context__ if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError) else error
    return getattr(cause, "strerror", None) or f"{type(cause).__name__}: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
