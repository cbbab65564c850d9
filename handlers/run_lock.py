"""Lets one process at a time write into the directory of a run."""

from __future__ import annotations

import errno
import os
import time
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock; there a second process is not noticed
    fcntl = None  # type: ignore[assignment]

__all__ = ["RunLock"]

_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}  # some network file systems


_LONGEST_WAIT = 5.0  # seconds, for what a process that is dead by now had forked a moment ago


class RunLock:
    """An advisory lock on a run's directory, which the system takes back when the process ends, however it ends.

    Args:
        directory: of the run; made if it is not there.

    Example:
        >>> import tempfile
        >>> lock = RunLock(Path(tempfile.mkdtemp()))
        >>> lock.acquire()
        >>> lock.acquire()  # the same process may go on
        >>> lock.release()
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"
        self._descriptor: int | None = None
        _locks.add(self)

    def acquire(self) -> None:
        """Take the lock for this process.

        Raises:
            BlockingIOError: another process has it; the message has its pid.
            OSError: the directory cannot be written.
        """
        if fcntl is None or self._descriptor is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        end = time.monotonic() + _LONGEST_WAIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                holder = os.pread(descriptor, 32, 0).decode().strip()
                is_held = error.errno not in _WITHOUT_LOCKS and holder != str(os.getpid())
                if is_held and not _is_alive(holder) and time.monotonic() < end:
                    time.sleep(0.01)
                    continue
                os.close(descriptor)
                if not is_held:
                    return
                raise BlockingIOError(
                    f"The process {holder} is training in {self.path.parent}: wait for it, end it, or choose another "
                    "directory."
                ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


def _is_alive(pid: str) -> bool:
    """Whether there may be such a process; one of another machine is taken for dead."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


_locks: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _let_go_of_locks() -> None:
    """In a forked process: it shares its parent's locks, and would keep them when the parent is killed."""
    for lock in _locks:
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_locks)
