"""Writes what TensorBoard shows, as Lightning does; through tensorboardX."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from camshaft.contrib.lightning.example_input import example_input
from camshaft.contrib.lightning.loggers.directory import DirectoryLogger
from camshaft.contrib.lightning.loggers.hyperparameters import as_mapping, as_plain, flattened, write_yaml
from camshaft.contrib.lightning.loggers.logger import rank_zero_experiment
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(DirectoryLogger):
    """Writes an event file to ``save_dir/name/version_N``; ``tensorboard --logdir SAVE_DIR`` shows it.

    Where a run resumes in its version, the event file tells TensorBoard to hide what an earlier one holds from that
    step on.

    Args:
        save_dir: the directory of all experiments.
        name: of the experiment; with None or ``""`` the versions are in ``save_dir`` itself.
        version: a number, or the name of the directory; the first number that is free unless given.
        log_graph: whether to record the graph of the model, which needs its ``example_input_array``, and the package
            ``tensorboard``.
        default_hp_metric: whether hyperparameters that come without a metric get one, ``hp_metric`` of -1: TensorBoard
            shows no others.
        prefix: what stands before the name of each metric, and a ``-`` after it.
        sub_dir: a directory within that of the version, in which the files are made.
        kwargs: ``tensorboardX.SummaryWriter``'s, such as ``flush_secs``.

    Raises:
        OSError: when the run starts, if the directory cannot be written.
        ValueError: ``save_dir`` is an address, such as ``s3://…``.

    Example:
        >>> import tempfile
        >>> directory = tempfile.TemporaryDirectory()
        >>> logger = TensorBoardLogger(directory.name, name="digits")
        >>> logger.log_metrics({"loss": 0.5}, step=9)
        >>> logger.experiment.add_text("note", "anything that a SummaryWriter takes")
        >>> logger.finalize("success")
        >>> sorted(path.name[:20] for path in Path(directory.name, "digits", "version_0").iterdir())
        ['events.out.tfevents.', 'hparams.yaml']
        >>> directory.cleanup()
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._kwargs = kwargs
        self._last_hyperparameters: tuple[dict[str, Any], dict[str, Any]] | None = None

    @property
    def sub_dir(self) -> str | None:
        """The directory within that of the version."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """The directory of this version, or the one within it."""
        directory = Path(super().log_dir, self.sub_dir or "")
        return os.path.expandvars(directory.expanduser())

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer, for pictures, histograms, and whatever else it takes."""
        if self._experiment is None:
            # Costs half a second that only a run should pay.
            from camshaft.contrib.lightning.loggers.summary_writer import EventFileWriter  # noqa: PLC0415

            self._make_directory()
            self._experiment = EventFileWriter(self.log_dir, **self._kwargs)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        writer = self.experiment
        row: dict[str, Any] = {}
        for name, value in self._with_prefix(metrics).items():
            if isinstance(value, dict):
                writer.add_scalars(name, value, step)
            else:
                row[name] = value
        writer.add_row(row, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace | None = None,
        metrics: dict[str, Any] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Record the hyperparameters.

        Args:
            params: by name.
            metrics: numbers by which TensorBoard compares runs, or one number, which will be ``hp_metric``.
            step: of the metrics.
        """
        super().log_hyperparams(params)
        if metrics is None:
            metrics = {"hp_metric": -1} if self._default_hp_metric else {}
        elif not isinstance(metrics, dict):
            metrics = {"hp_metric": metrics}
        values = {name: _as_entry(value) for name, value in flattened(as_mapping(params)).items()}
        if metrics and (values, metrics) != self._last_hyperparameters:  # a trainer tells them at each of its functions
            from tensorboardX.summary import hparams  # noqa: PLC0415

            self._last_hyperparameters = (values, metrics)
            self.log_metrics(metrics, step)
            for summary in hparams(values, metrics):
                self.experiment._get_file_writer().add_summary(summary, step)

    @rank_zero_only
    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Record the graph of a model, if this logger was made with ``log_graph=True``.

        Args:
            model: with a ``forward``.
            input_array: what to call it with: a tensor or a tuple; its ``example_input_array`` by default.
        """
        if not self._log_graph:
            return
        given = example_input(model, input_array)
        if not isinstance(given, torch.Tensor | tuple):
            rank_zero_warn(
                f"TensorBoard gets no graph of {type(model).__name__}: that needs a tensor, or a tuple of what forward "
                f"takes, as self.example_input_array, but there is {given!r}.",
            )
            return
        try:
            self.experiment.add_graph(model, given)
        except Exception as error:  # noqa: BLE001 - the tracer raises whatever the model does
            hint = " (pip install tensorboard)" if isinstance(error, ModuleNotFoundError) else ""
            rank_zero_warn(f"TensorBoard gets no graph of {type(model).__name__}: {error}{hint}")

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()
        path = Path(self.log_dir, self.NAME_HPARAMS_FILE)
        if not path.exists():
            write_yaml(path, self.hparams)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self.save()
            self._experiment.close()  # it opens another file when there is more to write

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        self.experiment.hide_from(step)


def _as_entry(value: Any) -> Any:
    """What TensorBoard's table of hyperparameters takes."""
    plain = as_plain(value)
    return plain if isinstance(plain, bool | int | float | str) else str(plain)
