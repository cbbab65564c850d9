"""The parts of a RichProgressBar."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.style import Style
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from camshaft.contrib.lightning.callbacks.progress.rich_progress import RichProgressBarTheme

__all__ = [
    "BatchesProcessedColumn",
    "CustomTimeColumn",
    "MetricsTextColumn",
    "ProcessingSpeedColumn",
    "columns",
]


def columns(theme: RichProgressBarTheme) -> list[Any]:
    """All but the metrics, from left to right.

    Args:
        theme: their styles.
    """
    return [
        TextColumn("[progress.description]{task.description}"),
        BarColumn(
            complete_style=theme.progress_bar,
            finished_style=theme.progress_bar_finished,
            pulse_style=theme.progress_bar_pulse,
        ),
        BatchesProcessedColumn(theme.batch_progress),
        CustomTimeColumn(theme.time),
        ProcessingSpeedColumn(theme.processing_speed),
    ]


class _StyledColumn(ProgressColumn):
    wraps = False

    def __init__(self, style: str | Style) -> None:
        self.style = style
        super().__init__(Column(no_wrap=not self.wraps))

    def text(self, task: Task) -> str:
        """What it says of a task."""
        raise NotImplementedError(f"{type(self).__name__} does not say anything.")

    def render(self, task: Task) -> Text:
        return Text(self.text(task), style=self.style)


class BatchesProcessedColumn(_StyledColumn):
    """How many batches are done, of how many."""

    def text(self, task: Task) -> str:
        return f"{int(task.completed)}/{'--' if task.total is None else int(task.total)}"


class CustomTimeColumn(_StyledColumn):
    """How long it has taken, and how long it will."""

    def text(self, task: Task) -> str:
        elapsed = task.finished_time if task.finished else task.elapsed
        times = (
            "-:--:--" if time is None else str(timedelta(seconds=int(time))) for time in (elapsed, task.time_remaining)
        )
        return " • ".join(times)


class ProcessingSpeedColumn(_StyledColumn):
    """Batches a second."""

    def text(self, task: Task) -> str:
        speed = task.finished_speed or task.speed or (task.completed / task.elapsed if task.elapsed else 0.0)
        return f"{speed:.2f}it/s"


class MetricsTextColumn(_StyledColumn):
    """The metrics, which the bar has made a text of."""

    wraps = True

    def text(self, task: Task) -> str:
        return str(task.fields.get("metrics", ""))
