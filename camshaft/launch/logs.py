"""One log of all ranks: each line with its rank before it, and a file for each rank.

The ranks write into pipes, and a thread reads them. A traceback is held back until it is clear whether the rank ends
with it: then the launcher shows the one that matters, last. If the rank goes on, the log has it as any other lines.
"""

from __future__ import annotations

import os
import re
import selectors
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, Std
from torch.distributed.elastic.multiprocessing.api import to_map

__all__ = ["MergedLogs"]

HELD_BACK = 5.0
"""Seconds after which a traceback goes to the log, if its process lives on."""

# torch writes the rank before each line of a traceback where there is a process group.
_TORCH_PREFIX = re.compile(rb"^\[rank\d+\]: ?")
# A progress bar that was not finished stands before it on the same line.
_TRACEBACK = re.compile(
    rb"(.*?)(?:\[rank\d+\]: )?((?: *\+ )?(?:Exception Group )?Traceback \(most recent call last\):)\r?\n", re.DOTALL
)


class MergedLogs(LogsSpecs):
    """Where torchrun's agent lets the ranks write.

    Args:
        log_dir: where ``rank_N.log`` is written for each rank; lines are added to a file that is there. None: nowhere.
        redirects: streams that only go to files.
        tee: streams that go to the log all the same.
        local_ranks_filter: the local ranks that the log shows; None for all.
    """

    def __init__(
        self,
        log_dir: str | None = None,
        redirects: Std | dict[int, Std] = Std.NONE,
        tee: Std | dict[int, Std] = Std.NONE,
        local_ranks_filter: set[int] | None = None,
    ) -> None:
        super().__init__(log_dir, redirects, tee, local_ranks_filter)
        self._ranks: dict[int, _Rank] = {}
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._failed = threading.Event()
        if log_dir is not None:
            Path(log_dir).mkdir(parents=True, exist_ok=True)

    @property
    def root_log_dir(self) -> str:
        return self._root_log_dir or os.devnull

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Open the pipes of the ranks that are about to start, and read them from now on."""
        self.finish()
        self._ranks = {
            local_rank: _Rank(int(environment["RANK"]), self._root_log_dir) for local_rank, environment in envs.items()
        }
        redirects, tee = to_map(self._redirects, len(envs)), to_map(self._tee, len(envs))
        streams = []
        destination = LogsDest()
        for local_rank, rank in self._ranks.items():
            envs[local_rank]["TORCHELASTIC_ERROR_FILE"] = ""
            destination.error_files[local_rank] = os.devnull
            shown = tee[local_rank] | (Std.ALL & ~redirects[local_rank])
            if self._local_ranks_filter and local_rank not in self._local_ranks_filter:
                shown = Std.NONE
            for kind, paths in ((Std.OUT, destination.stdouts), (Std.ERR, destination.stderrs)):
                stream = _Stream(rank, kind, shown=bool(kind & shown))
                streams.append(stream)
                paths[local_rank] = f"/dev/fd/{stream.written_to}"
        self._ended, self._failed = threading.Event(), threading.Event()
        follow = threading.Thread(
            target=_follow, args=(streams, self._ended, self._failed), name="camshaft logs", daemon=True
        )
        self._thread = follow
        self._thread.start()
        return destination

    def keep_tracebacks(self) -> None:
        """Hold back tracebacks for as long as it takes: a rank has failed, and the launcher ends the others."""
        self._failed.set()

    def finish(self) -> None:
        """Read what the ranks, which have ended, have left in the pipes."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def last_traceback(self, local_rank: int) -> tuple[float | None, str]:
        """The traceback that a rank wrote last of all, and when it came; None and nothing if there is none."""
        rank = self._ranks[local_rank]
        return rank.traceback_at, rank.traceback.decode(errors="replace")

    def show_last_traceback(self, local_rank: int) -> None:
        """Show a traceback that was held back, of a rank that ended well nevertheless."""
        self._ranks[local_rank].release()

    def file_of(self, local_rank: int) -> str | None:
        """The file of a rank, if it has one."""
        return self._ranks[local_rank].path


class _Rank:
    """What is known of one rank: its file, and the traceback that it wrote last."""

    def __init__(self, rank: int, log_dir: str | None) -> None:
        self.rank = rank
        self.path = None if log_dir is None else str(Path(log_dir, f"rank_{rank}.log"))
        # Closed by the thread that reads, at its end.
        self.file = None if self.path is None else Path(self.path).open("ab", buffering=0)  # noqa: SIM115
        self.traceback = b""
        self.traceback_at: float | None = None
        self.held_by: _Stream | None = None

    def release(self) -> None:
        """Show the traceback that is held back."""
        if self.held_by is not None:
            for line in self.traceback.splitlines(keepends=True):
                self.held_by.show(line)
            self.held_by = None


class _Stream:
    """The standard output, or error, of one rank."""

    def __init__(self, rank: _Rank, kind: Std, *, shown: bool) -> None:
        self.rank = rank
        self.console: BinaryIO | None = (sys.stdout if kind == Std.OUT else sys.stderr).buffer if shown else None
        self.is_terminal = self.console is not None and self.console.isatty()
        self.is_error = kind == Std.ERR
        self.read_from, self.written_to = os.pipe()
        os.set_blocking(self.read_from, False)
        self._line = b""  # the beginning of one whose end has not come

    def read(self) -> bool:
        """Take what has come; whether there was anything."""
        try:
            chunk = os.read(self.read_from, 1 << 16)
        except BlockingIOError:
            return False
        if self.rank.file is not None:
            self.rank.file.write(chunk)
        text = self._line + chunk
        # A terminal shows a progress bar, which ends its lines with \r, as it moves.
        lines = re.split(rb"(?<=\n)|(?<=\r)(?!\n)" if self.is_terminal else rb"(?<=\n)", text)
        self._line = lines.pop()
        for line in lines:
            self._take(line)
        return bool(chunk)

    def _take(self, line: bytes) -> None:
        if self.is_error:
            line = _TORCH_PREFIX.sub(b"", line)
            traceback = _TRACEBACK.fullmatch(line)
            if traceback and self.rank.held_by is None:
                line, header = traceback.groups()
                if line:
                    self.show(line + b"\n")
                self.rank.held_by, self.rank.traceback_at = self, time.time()
                self.rank.traceback, line = b"", header + b"\n"
            if self.rank.held_by is not None:
                self.rank.traceback += line
                return
            self.rank.traceback, self.rank.traceback_at = b"", None  # of which this line says that it was not the end
        self.show(line)

    def close(self) -> None:
        """Take all that is left."""
        give_up_at = time.time() + 1.0  # a process that a rank left behind may go on writing
        while self.read() and time.time() < give_up_at:
            pass
        if self._line:
            self._take(self._line + b"\n")
        os.close(self.read_from)
        os.close(self.written_to)

    def show(self, line: bytes) -> None:
        """Write a line to the log."""
        if self.console is None:
            return
        if not self.is_terminal:  # of a bar that moved, what a terminal would show in the end
            line = line.rstrip(b"\r\n").rsplit(b"\r", 1)[-1] + b"\n"
        try:
            self.console.write(line if line == b"\r" else b"[rank %d] %s" % (self.rank.rank, line))
            self.console.flush()
        except OSError:  # nobody reads any more, as after `| head`; the ranks must not wait for a full pipe
            self.console = None


def _follow(streams: list[_Stream], ended: threading.Event, failed: threading.Event) -> None:
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.read_from, selectors.EVENT_READ, stream)
        while not ended.is_set():
            for key, _ in selector.select(timeout=0.1):
                key.data.read()
            for stream in streams:
                since = stream.rank.traceback_at
                if since is not None and time.time() - since > HELD_BACK and not failed.is_set():
                    stream.rank.release()
    for stream in streams:
        stream.close()
    for file in {stream.rank.file for stream in streams}:
        if file is not None:
            file.close()
