"""What the loggers that write files have in common: a directory for each version, and the hyperparameters in it."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from camshaft.contrib.lightning.loggers.hyperparameters import as_mapping, write_yaml
from camshaft.contrib.lightning.loggers.logger import Logger
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only
from camshaft.handlers.logger import check_directory

__all__ = ["DirectoryLogger"]


class DirectoryLogger(Logger):
    """A logger that writes to ``save_dir/name/version_N``.

    Args:
        save_dir: the directory of all experiments.
        name: of the experiment; with None or ``""`` the versions are in ``save_dir`` itself.
        version: a number, or the name of the directory; the first number that is free unless given.
        prefix: what stands before the name of each metric, and a ``-`` after it.

    Raises:
        ValueError: ``save_dir`` is an address, such as ``s3://…``.

    Attributes:
        hparams: the hyperparameters that were logged.
    """

    LOGGER_JOIN_CHAR = "-"
    NAME_HPARAMS_FILE = "hparams.yaml"

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None,
        version: int | str | None,
        prefix: str,
    ) -> None:
        save_dir = os.fspath(save_dir)
        if "://" in save_dir:
            raise ValueError(
                f"{type(self).__name__} writes to a local directory, but got save_dir={save_dir!r}: log to a local one "
                "and copy it, or mount that place."
            )
        self._save_dir = save_dir
        self._name = name or ""
        self._version = version
        self._prefix = prefix
        self._experiment: Any = None
        self.hparams: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return self._name

    @property
    def version(self) -> int | str:
        """The number of the version, or the name of its directory."""
        if self._version is None:
            self._version = self._next_version()
        return self._version

    @property
    def save_dir(self) -> str:
        """The directory of all experiments."""
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """The directory of all versions."""
        return os.path.join(self.save_dir, self.name)  # noqa: PTH118 - Lightning's directories are strings

    @property
    def log_dir(self) -> str:
        """The directory of this version."""
        version = self.version
        return os.path.join(self.root_dir, version if isinstance(version, str) else f"version_{version}")  # noqa: PTH118

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None, *args: Any, **kwargs: Any) -> None:
        """Keep the hyperparameters, and write them to ``hparams.yaml``."""
        self.hparams.update(as_mapping(params))
        self._make_directory()
        write_yaml(Path(self.log_dir, self.NAME_HPARAMS_FILE), self.hparams)

    def _make_directory(self) -> None:
        """Make the directory of this version, or say at once that it cannot be written."""
        check_directory(Path(self.log_dir), self)

    def _next_version(self) -> int:
        root = Path(self.root_dir)
        numbers = [path.name.removeprefix("version_") for path in root.glob("version_*") if path.is_dir()]
        return max((int(number) for number in numbers if number.isdigit()), default=-1) + 1

    def _with_prefix(self, metrics: dict[str, Any]) -> dict[str, Any]:
        if not self._prefix:
            return metrics
        return {f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}": value for name, value in metrics.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_experiment": None}  # its files stay with this process
