"""What is known of a run without reading its weights: its record, its newest checkpoint, and what it has logged."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from camshaft.curves import Curves, read_curves
from camshaft.handlers.checkpoint_store import CheckpointStore
from camshaft.handlers.direction import best_is
from camshaft.handlers.run_file import read_record

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MARKS = ("run.json", "metrics.csv", "metrics.jsonl")  # of the directory of a run
_NOT_BEST = (
    "learning_rate",
    "gradient_norm",
    "samples_per_second",
    "seconds",
)  # numbers of which no best is looked for


class Values(NamedTuple):
    """What became of a number that was logged.

    Attributes:
        least: the smallest finite value.
        most: the largest one.
        last: the last one.
    """

    least: float
    most: float
    last: float

    def best(self, mode: str | None) -> float:
        """The best, which is the ``"max"`` or the ``"min"``, or the last where nobody knows which of them it is."""
        return self.last if mode is None else self.most if mode == "max" else self.least


class RunOverview(NamedTuple):
    """A run in short.

    Attributes:
        directory: of the run.
        record: what ``run.json`` holds; nothing where there is none.
        status: ``running``, ``finished``, ``failed``, ``stopped``, or ``unknown``.
        epoch: the last that something was kept of, or None.
        iteration: likewise.
        seconds: how long it has trained, with what earlier processes did, or None.
        values: of each number that was logged.
        monitored: what ``Checkpoint`` monitors, and whether the best of it is the ``"max"`` or the ``"min"``.
    """

    directory: Path
    record: dict[str, Any]
    status: str
    epoch: int | None
    iteration: int | None
    seconds: float | None
    values: dict[str, Values]
    monitored: dict[str, str]

    @property
    def command(self) -> str:
        """As one would type it, without the path of the interpreter."""
        if self.record.get("typed_in"):
            return "in a notebook or at a prompt"
        argv = [str(argument) for argument in self.record.get("argv", [])]
        return shlex.join([Path(argv[0]).name, *argv[1:]]) if argv else ""


def runs_in(directory: Path) -> list[RunOverview]:
    """The runs in a directory and in those within it, in the order of their paths; ``directory`` may be one itself."""
    found = []
    for folder, folders, files in os.walk(directory):
        if any(mark in files for mark in _MARKS) or Path(folder, "checkpoints").is_dir():
            folders.clear()  # in a run there are no runs
            found.append(overview_of(Path(folder)))
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def overview_of(directory: Path) -> RunOverview:
    """What is known of the run in a directory."""
    record = read_record(directory)
    ended = record.get("ended", {})
    checkpoints = CheckpointStore(directory / "checkpoints").list()
    curves = _curves_of(directory)
    if _is_running(directory, record):
        status = "running"
    elif checkpoints and checkpoints[-1].finished:
        status = "finished"
    elif record or checkpoints:
        status = ended.get("status", "stopped")
    else:  # nothing that would have noted its end
        status = "unknown"
    newest = checkpoints[-1] if checkpoints else None
    logged = max((curve[-1][0] for curve in curves.values() if curve), default=None)
    iterations = [ended.get("iteration"), newest.iteration if newest else None, logged]
    epochs = [ended.get("epoch"), newest.epoch if newest else None]
    if all(epoch is None for epoch in epochs):
        epochs.append(_logged_epoch(directory))
    return RunOverview(
        directory,
        record,
        status,
        max((epoch for epoch in epochs if epoch is not None), default=None),
        max((iteration for iteration in iterations if iteration is not None), default=None),
        _seconds_of(directory, record, status),
        values_in(curves),
        {one.monitor: one.mode for one in checkpoints if one.monitor and one.mode},
    )


def values_in(curves: Curves) -> dict[str, Values]:
    """The least, the most and the last of each curve, where one of them may be the best.

    Example:
        >>> values_in({"loss": [(1, 0.5), (2, 0.4), (3, 0.7)], "learning_rate": [(1, 1)]})
        {'loss': Values(least=0.4, most=0.7, last=0.7)}
    """
    found = {}
    for name, curve in curves.items():
        values = [value for _, value in curve if math.isfinite(value)]
        if values and not any(part in name for part in _NOT_BEST):
            found[name] = Values(min(values), max(values), values[-1])
    return found


def mode_of(name: str, runs: Iterable[RunOverview]) -> str | None:
    """Whether the best is the ``"max"`` or the ``"min"``: as ``Checkpoint`` has monitored it, else as the name tells.

    It is None where that tells nothing, or where the runs do not agree.
    """
    modes = {one.monitored[name] for one in runs if name in one.monitored}
    if modes:
        return modes.pop() if len(modes) == 1 else None
    return best_is(name)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them.

    Example:
        >>> [duration(seconds) for seconds in (None, 5.04, 75, 3700, 200000)]
        ['', '5.0 s', '1 min 15 s', '1 h 1 min', '2 d 7 h']
    """
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    for long, short, in_seconds, in_short in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        if long == "d" or seconds < 24 * 3600 * (1 if long == "h" else 1 / 24):
            whole, rest = divmod(seconds, in_seconds)
            return f"{whole:.0f} {long} {rest // in_short:.0f} {short}"
    raise AssertionError("the last unit takes whatever is left")


def _curves_of(directory: Path) -> Curves:
    try:
        return read_curves(directory)
    except (OSError, ValueError):  # nothing was logged, or it is not ours
        return {}


def _logged_epoch(directory: Path) -> int | None:
    """The epoch of the last line that was logged."""
    epochs: list[str | int | None] = []
    try:
        if (path := directory / "metrics.csv").is_file():
            with path.open(newline="", encoding="utf-8") as file:
                epochs = [row.get("epoch") for row in csv.DictReader(file)]
        elif (path := directory / "metrics.jsonl").is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            epochs = [json.loads(line).get("epoch") for line in lines if line.endswith("\n")]  # others are unfinished
        return max((int(epoch) for epoch in epochs if epoch), default=None)
    except (OSError, ValueError, AttributeError):  # it is not ours
        return None


def _is_running(directory: Path, record: dict[str, Any]) -> bool:
    lock = directory / ".lock"
    if fcntl is not None and lock.exists():
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False
    return (
        "pid" in record
        and "ended" not in record
        and record.get("hardware", {}).get("machine") == platform.node()
        and _is_alive(int(record["pid"]))
    )


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":
        return False  # there, the signal 0 is no question
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _seconds_of(directory: Path, record: dict[str, Any], status: str) -> float | None:
    if "started" not in record:
        return None
    if status == "running":
        end = time.time()
    elif "ended" in record:
        end = datetime.fromisoformat(record["ended"]["at"]).timestamp()
    else:  # when something was last kept of it
        checkpoints = directory / "checkpoints"
        kept = [directory / mark for mark in _MARKS] + [checkpoints, *checkpoints.glob("*")]
        end = max((path.stat().st_mtime for path in kept if path.exists()), default=0.0)
    since = datetime.fromisoformat(record["started"]).timestamp()
    return float(record.get("seconds_before", 0.0)) + max(0.0, end - since)
