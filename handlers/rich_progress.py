"""Shows how far a run is, with a table of the last and the best of its metrics, by the library rich.

Listens to what :class:`~camshaft.handlers.ProgressBar` listens to, in the same phases.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from camshaft.handlers.direction import more_is_better
from camshaft.handlers.monitor import metrics_of, values_of
from camshaft.handlers.progress_bar import ProgressBar, in_order
from camshaft.handlers.scalars import Scalars

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["RichProgress"]

_WIDE = 110  # columns of a terminal, from which the table stands beside the bars and not below them
_NO_BEST = ("learning_rate", "norm", "seconds", "memory")  # parts of names of what has no best


class RichProgress(ProgressBar):
    """``ProgressBar`` in colours: the bars, and beside them each metric's last value, its best, and that one's epoch.

    Each epoch leaves a line above; the table stays when the run is over. A ``RichProgress("validation")`` on the
    evaluator shows its bar below that of training. Where the output goes into a file or a pipe, or into a notebook
    without ipywidgets, there is one line for each epoch, as of ``ProgressBar``, without control characters. It needs
    the library rich.

    Args:
        description: what stands before the bar instead of the number of the epoch. Give one to an evaluator's bar.
        leave: whether an epoch leaves a line. By default it does unless the bar has a description of its own.
        refresh_seconds: how long the display stands still at least, 0.1 by default.
        file: where it is shown, ``sys.stderr`` by default.

    Raises:
        ImportError: rich is not installed.
        ValueError: ``refresh_seconds`` is negative.

    Example:
        >>> import sys
        >>> from camshaft import Engine
        >>> engine = Engine(lambda engine, batch: batch / 2).attach(RichProgress(file=sys.stdout))
        >>> state = engine.run([1, 2, 3, 4])
        epoch 1/1: 4 iterations in 0.0 s (... it/s), loss=2
    """

    def __init__(
        self,
        description: str | None = None,
        *,
        leave: bool | None = None,
        refresh_seconds: float = 0.1,
        file: TextIO | None = None,
    ) -> None:
        super().__init__(description, leave=leave, refresh_seconds=refresh_seconds, file=file)
        if find_spec("rich") is None:
            raise ImportError("RichProgress needs the library rich: pip install rich, or attach ProgressBar.")
        self._display: _Display | None = None
        self._began_display = False

    def begin(self, engine: Any) -> None:
        """Open the display, or find that of the engine around this one."""
        self._stop_display()
        super().begin(engine)

    def finish_epoch(self, engine: Any) -> None:
        """Add what is known at the end of an epoch to the table."""
        if self._shows and self.leave and self._display is not None:
            self._display.note(in_order(values_of(engine), engine), engine.state.epoch)
        super().finish_epoch(engine)

    def finish(self, engine: Any) -> None:
        """Add what the end of the run has brought, and leave the table."""
        if self._shows and self.leave and self._display is not None:
            self._display.note(metrics_of(engine), engine.state.epoch)
        super().finish(engine)
        self._stop_display()

    def stop(self, engine: Any) -> None:
        """Finish an epoch that is cut short, and leave the table if no COMPLETED follows."""
        super().stop(engine)
        if engine.should_terminate == "skip_completed":
            self._stop_display()

    def pause(self, engine: Any) -> None:
        """Leave the display while the run is interrupted; the next iteration opens another."""
        super().pause(engine)
        self._stop_display()
        if self._shows:
            self._choose_bar()

    def close_at_error(self, engine: Any, error: BaseException) -> None:
        """Leave the display where the error was."""
        super().close_at_error(engine, error)
        self._stop_display()

    def _choose_bar(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - an optional dependency

        output = self._output()
        around = _Display.shown_on.get(id(output))
        if around is not None:
            self._display, self._bar_class = around, around.bar
            return
        console = Console(file=self.file, stderr=self.file is None, width=_width_of(output))
        self._in_notebook = console.is_jupyter
        if find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal:
            known = self._display.metrics if self._display is not None else {}  # before an interruption
            self._display = _Display(console, output, known, owns_streams=self.file is None)
            self._began_display, self._bar_class = True, self._display.bar
        else:
            self._display = self._bar_class = None

    def _stop_display(self) -> None:
        if self._began_display and self._display is not None:
            self._display.stop()
        self._began_display = False

    def _write_line(self, line: str) -> None:
        if self._display is not None:
            self._display.write(line)
        else:
            super()._write_line(line)


class _Metric(NamedTuple):
    """A row of the table."""

    last: float
    best: float | None
    epoch: int  # of the best


class _Display:
    """What is seen: the bars of the engines that run within each other, and the table.

    Attributes:
        shown_on: those that are open now, by the identity of the stream.
        console: rich's.
        metrics: the rows of the table, by name.
    """

    shown_on: dict[int, _Display] = {}  # noqa: RUF012 - of all displays together

    def __init__(self, console: Console, output: object, metrics: Mapping[str, _Metric], *, owns_streams: bool) -> None:
        from rich.live import Live  # noqa: PLC0415
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        self.console = console
        self.metrics = dict(metrics)
        self._output = id(output)

        class Numbers(ProgressColumn):
            """What a narrow terminal cuts, and not the bar."""

            def render(self, task: Task) -> Text:
                return Text(task.fields["numbers"], style="green", no_wrap=True, overflow="ellipsis")

        whole = partial(Column, no_wrap=True)
        self.progress = Progress(
            TextColumn("{task.description}", table_column=whole()),
            BarColumn(20, table_column=whole()),
            MofNCompleteColumn(table_column=whole()),
            TimeElapsedColumn(table_column=whole()),
            TextColumn("<", table_column=whole()),
            TimeRemainingColumn(table_column=whole()),
            Numbers(),
            console=console,
            auto_refresh=False,
        )
        # Without its thread, which makes every fork of a data loader's workers a risk.
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=owns_streams, redirect_stderr=owns_streams
        )
        self._live.start()
        self.shown_on[self._output] = self

    def bar(self, **options: Any) -> _RichBar:
        """A bar among those shown; the options are tqdm's."""
        return _RichBar(self, **options)

    def note(self, values: Mapping[str, Any], epoch: int) -> None:
        """Take over the values at the end of an epoch."""
        for name, number in zip(values, Scalars(list(values.values())).numbers(), strict=True):
            known = self.metrics.get(name)
            best, at = (known.best, known.epoch) if known is not None else (None, epoch)
            if any(part in name for part in _NO_BEST):
                best = None
            elif best is None or math.isnan(best) or (number > best if more_is_better(name) else number < best):
                best, at = number, epoch
            self.metrics[name] = _Metric(number, best, at)

    def write(self, line: str) -> None:
        """Write a line above what moves."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Draw everything anew."""
        from rich.console import Group  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        parts: list[Any] = [self.progress, *([self._table()] if self.metrics else [])]
        if self.console.width >= _WIDE and len(parts) > 1:
            beside = Table.grid(padding=(0, 3))
            beside.add_row(*parts)
            self._live.update(beside, refresh=True)
        else:
            self._live.update(Group(*parts), refresh=True)

    def stop(self) -> None:
        """Leave the table where it is."""
        self.shown_on.pop(self._output, None)
        self._live.update(self._table() if self.metrics else "", refresh=True)
        self._live.stop()

    def _table(self) -> Table:
        from rich import box  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table("metric", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for title in ("last", "best", "in epoch"):
            table.add_column(title, justify="right")
        for name, metric in self.metrics.items():
            best = ("", "") if metric.best is None else (f"{metric.best:.4g}", str(metric.epoch))
            table.add_row(name, f"{metric.last:.4g}", *best, style="bold" if metric.best == metric.last else None)
        return table


class _RichBar:
    """One bar, with those of tqdm's methods and attributes that ``ProgressBar`` uses."""

    def __init__(self, display: _Display, *, desc: str, total: int | None, initial: int, leave: bool, **_: Any) -> None:
        self._display, self._description, self._total, self._leave = display, desc, total, leave
        self.n = self._initial = initial
        self.start_t = self.last_print_t = perf_counter()
        self.bar_format = None
        self._numbers = ""
        self._task = display.progress.add_task(desc, total=total, completed=initial, numbers="")
        display.refresh()

    def set_postfix_str(self, numbers: str, refresh: bool) -> None:
        self._numbers = numbers
        self._display.progress.update(self._task, numbers=numbers)

    def update(self, iterations: int) -> None:
        self.n += iterations
        self._display.progress.update(self._task, completed=self.n)
        self._display.refresh()

    def refresh(self) -> None:
        self._display.refresh()

    def close(self) -> None:
        self._display.progress.remove_task(self._task)
        if self._leave:
            seconds = perf_counter() - self.start_t
            of = "" if self._total is None else f"/{self._total}"
            rate = f", {(self.n - self._initial) / seconds:.4g} it/s" if seconds > 0 else ""
            numbers = f", {self._numbers}" if self._numbers else ""
            self._display.write(f"{self._description} {self.n}{of} [{seconds:.1f} s{rate}{numbers}]")
        self._display.refresh()


def _width_of(output: Any) -> int | None:
    """Columns of the terminal; None, for rich to find out, where it does not say."""
    try:
        return os.get_terminal_size(output.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return None
