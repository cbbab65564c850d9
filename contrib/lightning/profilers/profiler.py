"""The base of the profilers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_info

__all__ = ["Profiler"]


class Profiler(ABC):
    """Measures actions between ``start`` and ``stop``; a subclass says what, and puts it into words in ``summary``.

    Args:
        dirpath: the directory of the report; the trainer's ``log_dir`` unless given.
        filename: of the report, without ``.txt``; without one it is logged.

    Example:
        >>> class Count(Profiler):
        ...     calls = 0
        ...
        ...     def start(self, action_name):
        ...         self.calls += 1
        ...
        ...     def stop(self, action_name): ...
        >>> profiler = Count()
        >>> with profiler.profile("load"):
        ...     pass
        >>> profiler.calls
        1
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None) -> None:
        self.dirpath = dirpath
        self.filename = filename
        self._stage: str | None = None
        self._local_rank: int | None = None

    @abstractmethod
    def start(self, action_name: str) -> None:
        """An action begins.

        Args:
            action_name: its name.
        """

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """An action is over.

        Args:
            action_name: its name.
        """

    def summary(self) -> str:
        """The report; empty where there is nothing to say."""
        return ""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Within it, the action is measured.

        Args:
            action_name: its name.
        """
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
            local_rank: the number of this process on its machine.
            log_dir: the trainer's.
        """
        self._stage = stage
        self._local_rank = local_rank
        self.dirpath = self.dirpath or log_dir

    def describe(self) -> None:
        """Write the report to its file, or log it."""
        text = self.summary()
        if text and self.filename and self.dirpath:
            directory = Path(self.dirpath)
            directory.mkdir(parents=True, exist_ok=True)
            with (directory / self._prepare_filename()).open("a", encoding="utf-8") as file:
                file.write(text)
        elif text and self.local_rank == 0:
            rank_zero_info(text)
        self.teardown(self._stage)

    def teardown(self, stage: str | None) -> None:  # noqa: B027 - may be left out
        """A run is over.

        Args:
            stage: as in :meth:`setup`.
        """

    @property
    def local_rank(self) -> int:
        """The number of this process on its machine."""
        return self._local_rank or 0

    def _prepare_filename(self, action_name: str | None = None, extension: str = ".txt") -> str:
        """The stage, the name of the report, the rank, and the action, as far as they are there."""
        rank = None if self._local_rank is None else str(self._local_rank)
        name = "-".join(part for part in (self._stage, self.filename, rank, action_name) if part)
        return (re.sub(r'[\\/:*?"<>|\n\r\t_]+', "_", name).strip() or "profile") + extension

    def _stats_to_str(self, stats: Mapping[str, str]) -> str:
        rank = "" if self._local_rank is None else f" rank: {self._local_rank}"
        parts = [f"Profile stats for: {action}{rank}\n{text}" for action, text in stats.items()]
        return "\n".join([f"{self._heading()}Profiler Report", *parts])

    def _heading(self) -> str:
        return "" if self._stage is None else f"{self._stage.upper()} "
