"""Writes the numbers of a run to ``metrics.csv``, as Lightning does."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import torch

from camshaft.contrib.lightning.loggers.directory import DirectoryLogger
from camshaft.contrib.lightning.loggers.hyperparameters import write_yaml
from camshaft.contrib.lightning.loggers.logger import rank_zero_experiment
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only

__all__ = ["CSVLogger", "ExperimentWriter"]


class CSVLogger(DirectoryLogger):
    """Writes a table to ``save_dir/name/version_N/metrics.csv``, and the hyperparameters to ``hparams.yaml`` beside it.

    A run that resumes in its version goes on behind the row of its checkpoint, so that no step is there twice. A new
    run in the version of an earlier one renames that one's table to ``metrics.1.csv`` and so on.

    Args:
        save_dir: the directory of all experiments.
        name: of the experiment; with None or ``""`` the versions are in ``save_dir`` itself.
        version: a number, or the name of the directory; the first number that is free unless given.
        prefix: what stands before the name of each metric, and a ``-`` after it.
        flush_logs_every_n_steps: write what waits after at most so many steps.

    Raises:
        OSError: when the run starts, if the directory cannot be written.
        ValueError: ``save_dir`` is an address, such as ``s3://…``.

    Example:
        >>> import tempfile
        >>> directory = tempfile.TemporaryDirectory()
        >>> logger = CSVLogger(directory.name, name="digits")
        >>> logger.log_metrics({"loss": 0.5, "epoch": 0}, step=9)
        >>> logger.log_metrics({"val_loss": 0.25, "epoch": 0}, step=9)
        >>> logger.save()
        >>> print(Path(directory.name, "digits", "version_0", "metrics.csv").read_text())
        epoch,loss,step,val_loss
        0,0.5,9,
        0,,9,0.25
        <BLANKLINE>
        >>> directory.cleanup()
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        self._saved_at = -1

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the table."""
        if self._experiment is None:
            self._make_directory()
            self._experiment = ExperimentWriter(self.log_dir)
        writer: ExperimentWriter = self._experiment
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step is None:
            step = len(self.experiment.metrics)
        self.experiment.log_metrics(self._with_prefix(metrics), step)
        if step - self._saved_at >= self._flush_logs_every_n_steps:
            self._saved_at = step
            self.save()

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        self._saved_at = step - 1
        self.experiment.resume_from(step)

    @rank_zero_only
    def save(self) -> None:
        self.experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self.save()


class ExperimentWriter:
    """Writes rows to ``metrics.csv`` in a directory; the columns of names that appear later are added when they do.

    Args:
        log_dir: the directory, which exists.

    Attributes:
        metrics: the rows that wait to be written.
        metrics_keys: the columns.
        hparams: the hyperparameters that were logged.
    """

    NAME_METRICS_FILE = "metrics.csv"
    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self.metrics: list[dict[str, Any]] = []
        self.metrics_keys: list[str] = []
        self.hparams: dict[str, Any] = {}
        self.metrics_file_path = os.path.join(log_dir, self.NAME_METRICS_FILE)  # noqa: PTH118 - a string as Lightning's
        self._path = Path(self.metrics_file_path)
        self._is_open = False  # the table is this run's
        self._last: set[tuple[int, frozenset[str]]] = set()  # rows of the step before which it resumed

    def resume_from(self, step: int) -> None:
        """Go on with the table that is there, without the rows of this step and of later ones.

        Args:
            step: the first that is new.
        """
        self.save()
        self._is_open = True
        if not self._path.exists():
            return
        rows = [row for row in self._read() if (row.get("step") or "").isdigit() and int(row["step"]) < step]
        self._last = {(step - 1, _filled(row)) for row in rows if int(row["step"]) == step - 1}
        self.metrics_keys = list(rows[0]) if rows else []
        if rows:
            self._rewrite(rows)
        else:
            self._path.unlink()

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write hyperparameters to ``hparams.yaml``."""
        self.hparams.update(params)
        write_yaml(Path(self.log_dir, self.NAME_HPARAMS_FILE), self.hparams)

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Let a row wait."""
        row = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in metrics_dict.items()}
        row["step"] = len(self.metrics) if step is None else step
        if self._last:
            if (row["step"], _filled(row)) in self._last:
                return  # the end of the epoch, which the resumed run reaches again
            self._last = {kept for kept in self._last if kept[0] >= row["step"]}
        self.metrics.append(row)

    def save(self) -> None:
        """Write the rows that wait."""
        rows, self.metrics = self.metrics, []
        if not rows:
            return
        if not self._is_open:
            self._is_open = True
            self._move_aside()
        names = {name for row in rows for name in row}
        if not names <= set(self.metrics_keys):
            columns = sorted(names.union(self.metrics_keys))
            earlier = self._read() if self.metrics_keys else []
            self.metrics_keys = columns
            self._rewrite(earlier)
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.metrics_keys, lineterminator="\n").writerows(rows)

    def _read(self) -> list[dict[str, str]]:
        content = self._path.read_text(encoding="utf-8")
        whole = content[: content.rfind("\n") + 1]  # without a row that was cut off in the middle
        return list(csv.DictReader(whole.splitlines(keepends=True)))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Replace the table by one with these rows and the present columns; it is whole at every instant."""
        beside = self._path.with_name(self._path.name + ".new")
        with beside.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, self.metrics_keys, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        beside.replace(self._path)

    def _move_aside(self) -> None:
        """Keep the table of an earlier run under another name."""
        number = 1
        while (older := self._path.with_name(f"metrics.{number}.csv")).exists():
            number += 1
        if self._path.exists():
            self._path.rename(older)


def _filled(row: dict[str, Any]) -> frozenset[str]:
    return frozenset(name for name, value in row.items() if value != "")
