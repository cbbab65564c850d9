"""Measures each function that is called within an action."""

from __future__ import annotations

import cProfile
import io
import pstats
from pathlib import Path
from typing import Any

from camshaft.contrib.lightning.profilers.profiler import Profiler

__all__ = ["AdvancedProfiler"]


class AdvancedProfiler(Profiler):
    """Reports, for each action, which functions were called and how long they took, through Python's ``cProfile``.

    Args:
        dirpath: the directory of the report; the trainer's ``log_dir`` unless given.
        filename: of the report, without ``.txt``; without one it is logged.
        line_count_restriction: at most so many lines for each action, or such a share of them if it is not whole.
        dump_stats: whether to write what was measured to ``.prof`` files as well, which other programs read.

    Raises:
        ValueError: when the report is made, if ``dump_stats`` has no directory.

    Example:
        >>> profiler = AdvancedProfiler()
        >>> with profiler.profile("sort"):
        ...     _ = sorted([3, 1, 2])
        >>> "{built-in method builtins.sorted}" in profiler.summary()
        True
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self.profiled_actions: dict[str, cProfile.Profile] = {}
        self._under_way: list[cProfile.Profile] = []

    def start(self, action_name: str) -> None:
        if self._under_way:
            self._under_way[-1].disable()  # Python measures for one at a time
        profile = self.profiled_actions.setdefault(action_name, cProfile.Profile())
        self._under_way.append(profile)
        profile.enable()

    def stop(self, action_name: str) -> None:
        """An action is over; the one in which it began is measured again.

        Args:
            action_name: its name.

        Raises:
            ValueError: it has not begun.
        """
        profile = self.profiled_actions.get(action_name)
        if profile is None:
            raise ValueError(f"AdvancedProfiler was told to stop {action_name!r}, which never began: start it first.")
        profile.disable()
        if profile in self._under_way:
            self._under_way.remove(profile)
        if self._under_way:
            self._under_way[-1].enable()

    def summary(self) -> str:
        texts = {}
        for action, profile in self.profiled_actions.items():
            if self.dump_stats:
                self._dump(action, profile)
            text = io.StringIO()
            stats = pstats.Stats(profile, stream=text).strip_dirs().sort_stats("cumulative")
            stats.print_stats(self.line_count_restriction)
            texts[action] = text.getvalue()
        return self._stats_to_str(texts)

    def _dump(self, action: str, profile: cProfile.Profile) -> None:
        if not self.dirpath:
            raise ValueError("AdvancedProfiler(dump_stats=True) needs a directory: give it dirpath.")
        directory = Path(self.dirpath)
        directory.mkdir(parents=True, exist_ok=True)
        profile.dump_stats(directory / self._prepare_filename(action, ".prof"))

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        self.profiled_actions.clear()  # those of the run before

    def teardown(self, stage: str | None) -> None:
        for profile in self._under_way:  # an error has ended the run
            profile.disable()
        self._under_way.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        # What was measured cannot be pickled.
        return type(self), (self.dirpath, self.filename, self.line_count_restriction, self.dump_stats)
