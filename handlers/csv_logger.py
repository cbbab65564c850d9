"""Writes the numbers of a run to a CSV file; when, says :mod:`camshaft.handlers.logger`."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camshaft.handlers.logger import Logger, Record, check_file, move_aside, write_to_disk

__all__ = ["CSVLogger"]

_POSITION = ("iteration", "epoch", "optimizer_step")


class CSVLogger(Logger):
    """Writes a table for pandas and spreadsheets: a line a record, a column a name, a cell empty where nothing is new.

    The columns ``iteration``, ``epoch`` and ``optimizer_step`` come first; those of names that appear later, such as
    the validation's, are added when they do. A resumed run goes on behind the line that its checkpoint knew, so that
    none is there twice. A new run that finds a file of an earlier one renames that to ``metrics.1.csv`` and so on.

    Args:
        path: a file that ends in ``.csv``, or a directory, in which it will be ``metrics.csv``.
        every: record what the step returns at each N-th iteration.

    Raises:
        ValueError: as :class:`Logger`.
        OSError: when the run starts, if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from camshaft import Engine
        >>> directory = tempfile.TemporaryDirectory()
        >>> logger = CSVLogger(directory.name, every=2)
        >>> state = Engine(lambda engine, batch: {"loss": batch / 2}).attach(logger).run([1, 2, 3, 4])
        >>> print(logger.path.read_text())
        iteration,epoch,optimizer_step,loss
        2,1,0,1.0
        4,1,0,2.0
        <BLANKLINE>
        >>> directory.cleanup()
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str], *, every: int = 50) -> None:
        super().__init__(every=every)
        path = Path(path)
        self.path = path if path.suffix == ".csv" else path / "metrics.csv"
        self._columns: list[str] = []

    def check_destination(self) -> None:
        check_file(self.path, self)

    def open(self, iteration: int) -> None:
        content = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = content[: content.rfind("\n") + 1]  # without a line that was cut off in the middle
        header, *lines = list(csv.reader(io.StringIO(whole, newline=""))) or [[]]
        if self.records_written is None:
            if lines and iteration == 0:
                move_aside(self.path)
                content, header, lines = "", [], []
            self._columns, self.records_written = header, len(lines)
        elif not lines:
            self._columns, self.records_written = [], 0
        elif len(lines) < self.records_written:
            warnings.warn(
                f"{self.path} has {len(lines)} lines, but the checkpoint was saved after {self.records_written}: those "
                "between are lost.",
                stacklevel=2,
            )
            self.records_written = len(lines)
        if header[: len(self._columns)] != self._columns:  # of another run; better than to mix up its columns
            self._columns = header
        if (content, header, len(lines)) != (whole, self._columns, self.records_written):
            self._rewrite(lines[: self.records_written])

    def write(self, records: list[Record]) -> None:
        names = (name for record in records for name in record.values)
        columns = list(dict.fromkeys([*(self._columns or _POSITION), *names]))
        if columns != self._columns:
            with self.path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.reader(file))[1:]
            self._columns = columns
            self._rewrite(lines)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writerows({**record.values, **_position_of(record)} for record in records)

    def _rewrite(self, lines: list[list[str]]) -> None:
        """Replace the file by one with these lines and the present columns; it is whole at every instant."""
        beside = self.path.with_name(self.path.name + ".new")
        with beside.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            if self._columns:
                table.writerow(self._columns)
            width = len(self._columns)
            table.writerows((line + [""] * width)[:width] for line in lines)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def state_dict(self) -> dict[str, Any]:
        """How many lines there are and which columns; they are on the disk before the checkpoint is."""
        state = {**super().state_dict(), "columns": list(self._columns)}
        if self._writes and self.records_written:
            write_to_disk(self.path)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._columns = list(state_dict["columns"])


def _position_of(record: Record) -> dict[str, int | None]:
    return {"iteration": record.iteration, "epoch": record.epoch, "optimizer_step": record.optimizer_step}
