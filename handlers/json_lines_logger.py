"""Writes the numbers of a run to a file of JSON lines; when, says :mod:`camshaft.handlers.logger`."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

from camshaft.handlers.logger import Logger, Record, check_file, move_aside, write_to_disk

__all__ = ["JSONLinesLogger"]


class JSONLinesLogger(Logger):
    """Writes a JSON object a record, each in a line of its own: for ``jq``, databases and programs that follow a run.

    Each has ``iteration``, ``epoch``, ``optimizer_step`` and ``time`` (seconds since the epoch of Unix), then the
    values by name. JSON has no number for them, so NaN and the infinities are the strings ``"NaN"``, ``"Infinity"`` and
    ``"-Infinity"``. A resumed run goes on behind the line that its checkpoint knew, so that none is there twice. A new
    run that finds a file of an earlier one renames that to ``metrics.1.jsonl`` and so on.

    Args:
        path: a file that ends in ``.jsonl``, or a directory, in which it will be ``metrics.jsonl``.
        every: record what the step returns at each N-th iteration.

    Raises:
        ValueError: as :class:`Logger`.
        OSError: when the run starts, if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from camshaft import Engine
        >>> directory = tempfile.TemporaryDirectory()
        >>> logger = JSONLinesLogger(directory.name, every=2)
        >>> state = Engine(lambda engine, batch: {"loss": batch / 2}).attach(logger).run([1, 2, 3, 4])
        >>> [json.loads(line)["loss"] for line in logger.path.read_text().splitlines()]
        [1.0, 2.0]
        >>> directory.cleanup()
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str], *, every: int = 50) -> None:
        super().__init__(every=every)
        path = Path(path)
        self.path = path if path.suffix == ".jsonl" else path / "metrics.jsonl"

    def check_destination(self) -> None:
        check_file(self.path, self)

    def open(self, iteration: int) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # cut off in the middle
            lines.pop()
        if self.records_written is None:
            if lines and iteration == 0:
                move_aside(self.path)
                return
            self.records_written = len(lines)
        elif len(lines) < self.records_written:
            warnings.warn(
                f"{self.path} has {len(lines)} lines, but the checkpoint was saved after {self.records_written}: those "
                "between are lost.",
                stacklevel=2,
            )
            self.records_written = len(lines)
        length = sum(map(len, lines[: self.records_written]))
        if length < len(content):
            os.truncate(self.path, length)

    def write(self, records: list[Record]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_as_object(record), allow_nan=False) + "\n" for record in records)

    def state_dict(self) -> dict[str, Any]:
        """How many lines there are; they are on the disk before the checkpoint is."""
        state = super().state_dict()
        if self._writes and self.records_written:
            write_to_disk(self.path)
        return state


def _as_object(record: Record) -> dict[str, Any]:
    position = {"iteration": record.iteration, "epoch": record.epoch, "optimizer_step": record.optimizer_step}
    values = {name: _as_json(value) for name, value in record.values.items()}
    return {**position, "time": round(record.time, 3), **values}


def _as_json(number: float) -> float | str:
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
