"""A progress bar in colours: rich's."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.callbacks.progress.stages import StagesProgressBar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID
    from rich.style import Style

    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["RichProgressBar", "RichProgressBarTheme"]


@dataclass
class RichProgressBarTheme:
    """The styles of the parts of a :class:`RichProgressBar`, as rich writes them.

    Attributes:
        description: of what stands before the bar.
        progress_bar: of the bar while it moves.
        progress_bar_finished: of the bar that is full.
        progress_bar_pulse: of the bar where nobody knows how many batches there will be.
        batch_progress: of the number of batches.
        time: of the times.
        processing_speed: of the rate.
        metrics: of the metrics.
        metrics_text_delimiter: what stands between two metrics.
        metrics_format: how a number is written.

    Example:
        >>> RichProgressBarTheme(progress_bar="green").metrics_format
        '.3f'
    """

    description: str | Style = ""
    progress_bar: str | Style = "#6206E0"
    progress_bar_finished: str | Style = "#6206E0"
    progress_bar_pulse: str | Style = "#6206E0"
    batch_progress: str | Style = ""
    time: str | Style = "dim"
    processing_speed: str | Style = "dim underline"
    metrics: str | Style = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


class RichProgressBar(StagesProgressBar):
    """Shows a bar for each stage, in colours.

    It is drawn ten times a second at most. Where the output goes into a file or a pipe, there is a line for each epoch
    instead. Override ``configure_columns`` for other parts, and ``get_metrics`` for other numbers.

    Args:
        refresh_rate: draw so often in a second, but not more than ten times; 0 shows nothing.
        leave: whether the bar of each epoch stays when it is full; otherwise the next takes its place.
        theme: the styles.
        console_kwargs: ``rich.console.Console``'s.

    Raises:
        ModuleNotFoundError: rich is not installed.

    Example:
        >>> RichProgressBar(leave=True, theme=RichProgressBarTheme(metrics_format=".4e")).is_enabled
        True
    """

    def __init__(
        self,
        refresh_rate: int = 100,
        leave: bool = False,
        theme: RichProgressBarTheme = RichProgressBarTheme(),  # noqa: B008 - nobody changes it
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("rich") is None:
            raise ModuleNotFoundError(
                "RichProgressBar needs the package rich, which is not installed: pip install rich", name="rich"
            )
        super().__init__(leave)
        self._refresh_rate = refresh_rate
        if refresh_rate > 0:
            self._seconds_between = max(self._seconds_between, 1 / refresh_rate)
        self._console_kwargs = console_kwargs or {}
        self._console: Console | None = None
        self._tasks: dict[str, TaskID] = {}  # by stage
        self.theme = theme
        self.progress: Progress | None = None

    @property
    def refresh_rate(self) -> float:
        """It is drawn so often in a second, but not more than ten times."""
        return self._refresh_rate

    @property
    def is_enabled(self) -> bool:
        """Whether it shows anything."""
        return self._enabled and self.refresh_rate > 0

    @property
    def train_progress_bar(self) -> Task:
        """rich's task of the training."""
        return self._task("train")

    @property
    def val_progress_bar(self) -> Task:
        """rich's task of the validation."""
        return self._task("val")

    @property
    def val_sanity_check_bar(self) -> Task:
        """rich's task of the sanity check."""
        return self._task("val")

    @property
    def test_progress_bar(self) -> Task:
        """rich's task of the test."""
        return self._task("test")

    @property
    def predict_progress_bar(self) -> Task:
        """rich's task of the prediction."""
        return self._task("predict")

    def _task(self, stage: str) -> Task:
        if self.progress is None or stage not in self._tasks:
            raise TypeError(f"{type(self).__name__} has no {stage} bar: it is made when that stage begins.")
        return next(task for task in self.progress.tasks if task.id == self._tasks[stage])

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """The parts of a bar, from left to right; the metrics come after them.

        Args:
            trainer: the trainer.
        """
        from camshaft.contrib.lightning.callbacks.progress import rich_columns  # noqa: PLC0415 - only who shows it pays

        return rich_columns.columns(self.theme)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bars.

        Args:
            args: what to print.
            kwargs: ``print``'s.
        """
        if self.progress is not None and self._console is not None and "file" not in kwargs:
            kwargs.pop("flush", None)
            self._console.print(*args, **kwargs, markup=False, highlight=False)
        else:
            print(*args, **kwargs)  # noqa: T201 - what it is for

    def refresh(self, hard: bool = False) -> None:
        """Draw what is.

        Args:
            hard: for compatibility; it always is.
        """
        if self.progress is not None:
            self.progress.refresh()

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._close_all()

    # ------------------------------------------------------------------------------------------------------- drawing

    def _can_draw(self) -> bool:
        import rich  # noqa: PLC0415

        if self._console is None:
            if self._console_kwargs:
                rich.reconfigure(**self._console_kwargs)
            self._console = rich.get_console()
        return self._console.is_terminal or self._console.is_jupyter

    def _open(self, stage: str, trainer: Trainer) -> None:
        if self.progress is not None or not self._shows:
            return
        from rich.progress import Progress  # noqa: PLC0415

        from camshaft.contrib.lightning.callbacks.progress import rich_columns  # noqa: PLC0415

        # Drawn from here alone: rich's own thread would make every fork of a data loader's workers a risk.
        columns = (*self.configure_columns(trainer), rich_columns.MetricsTextColumn(self.theme.metrics))
        self.progress = Progress(*columns, console=self._console, auto_refresh=False)
        self.progress.start()

    def _begin(self, stage: str, description: str, total: int | float | None) -> None:
        if stage == "train" and self.trainer.max_epochs not in {None, -1}:
            description += f"/{self.trainer.max_epochs - 1}"
        description = description.ljust(len(f"{self.validation_description} DataLoader 0"))  # below it, in a fit
        if self.theme.description:
            description = f"[{self.theme.description}]{description}"
        if stage == "train" and self._leave and "train" in self._tasks:
            self._close_all()
        self._open(stage, self.trainer)
        if self.progress is None:
            return
        if stage in self._tasks:
            self.progress.remove_task(self._tasks[stage])
        self._tasks[stage] = self.progress.add_task(description, total=total, metrics="")
        self.progress.refresh()

    def _draw(self, stage: str, done: int, metrics: dict[str, Any] | None = None) -> None:
        if self.progress is None or stage not in self._tasks:
            return
        fields: dict[str, Any] = {} if metrics is None else {"metrics": self._as_text(metrics)}
        self.progress.update(self._tasks[stage], completed=done, **fields)
        self.progress.refresh()

    def _as_text(self, metrics: dict[str, Any]) -> str:
        numbers = (
            (name, f"{value:{self.theme.metrics_format}}" if isinstance(value, float) else str(value))
            for name, value in metrics.items()
        )
        return self.theme.metrics_text_delimiter.join(f"{name}: {number}" for name, number in numbers)

    def _close(self, stage: str) -> None:
        if self.progress is not None and stage == "val" and stage in self._tasks and self.trainer.state.fn == "fit":
            self.progress.remove_task(self._tasks.pop(stage))
            self.progress.refresh()

    def _close_all(self) -> None:
        if self.progress is not None:
            self.progress.stop()
        self.progress = None
        self._tasks = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "progress": None, "_console": None, "_tasks": {}}
