"""Measures how long each action takes."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from pathlib import Path

from camshaft.contrib.lightning.profilers.profiler import Profiler

__all__ = ["SimpleProfiler"]


class SimpleProfiler(Profiler):
    """Reports the mean and total duration of each action, those that took longest first.

    Args:
        dirpath: the directory of the report; the trainer's ``log_dir`` unless given.
        filename: of the report, without ``.txt``; without one it is logged.
        extended: whether to report the number of calls and the share of all time as well.

    Attributes:
        current_actions: when actions that are under way began.
        recorded_durations: seconds that each took, by the action.

    Example:
        >>> profiler = SimpleProfiler()
        >>> for batch in range(3):
        ...     with profiler.profile("load"):
        ...         pass
        >>> print(profiler.summary())
        Profiler Report
        ------------------...
        |  Action  |  Mean duration (s)  |  Num calls  |  Total time (s)  |  Percentage %  |
        ------------------...
        |  Total   |  -                  |  3          |  ...             |  100 %         |
        ------------------...
        |  load    |  ...                |  3          |  ...             |  ...           |
        ------------------...
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None, extended: bool = True) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.current_actions: dict[str, float] = {}
        self.recorded_durations: dict[str, list[float]] = defaultdict(list)
        self.start_time = time.perf_counter()

    def start(self, action_name: str) -> None:
        """An action begins.

        Args:
            action_name: its name.

        Raises:
            ValueError: it has begun already.
        """
        if action_name in self.current_actions:
            raise ValueError(f"SimpleProfiler was told to start {action_name!r}, which is under way: stop it first.")
        self.current_actions[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """An action is over.

        Args:
            action_name: its name.

        Raises:
            ValueError: it has not begun.
        """
        now = time.perf_counter()
        if action_name not in self.current_actions:
            raise ValueError(
                f"SimpleProfiler was told to stop {action_name!r}, which is not under way: start it first."
            )
        self.recorded_durations[action_name].append(now - self.current_actions.pop(action_name))

    def summary(self) -> str:
        heading = f"{self._heading()}Profiler Report\n"
        if not self.recorded_durations:
            return heading
        totals = {action: math.fsum(times) for action, times in self.recorded_durations.items()}
        calls = {action: len(times) for action, times in self.recorded_durations.items()}
        titles: tuple[str, ...]
        first: list[tuple[str, ...]]
        rows: list[tuple[str, ...]]
        if self.extended:
            elapsed = time.perf_counter() - self.start_time
            titles = ("Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %")
            first = [("Total", "-", f"{sum(calls.values())}", f"{elapsed:.5}", "100 %")]
            rows = [
                (
                    action,
                    f"{total / calls[action]:.5}",
                    f"{calls[action]}",
                    f"{total:.5}",
                    f"{100 * total / elapsed:.5}",
                )
                for action, total in sorted(totals.items(), key=lambda entry: -entry[1])
            ]
        else:
            titles = ("Action", "Mean duration (s)", "Total time (s)")
            first = []
            means = {action: total / calls[action] for action, total in totals.items()}
            rows = [
                (action, f"{mean:.5}", f"{totals[action]:.5}")
                for action, mean in sorted(means.items(), key=lambda entry: -entry[1])
            ]
        return heading + _as_table([titles], first, rows)


def _as_table(*blocks: list[tuple[str, ...]]) -> str:
    """Blocks of rows with rules between them."""
    rows = [row for block in blocks for row in block]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "-" * (sum(widths) + 5 * len(widths) + 1)
    lines = [rule]
    for block in filter(None, blocks):
        lines += [
            "|" + "|".join(f"  {cell:<{width}}  " for cell, width in zip(row, widths, strict=True)) + "|"
            for row in block
        ]
        lines.append(rule)
    return "\n".join([*lines, ""])
