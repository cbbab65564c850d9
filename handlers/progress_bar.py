"""Shows how far a run is, how fast it goes, and its newest numbers.

Listens to:

- STARTED, EPOCH_STARTED in REPORT: opens a bar for the epoch.
- ITERATION_COMPLETED in REPORT: looks at the clock, and moves the bar if it is time to.
- EPOCH_COMPLETED in PREPARE: fills the bar before a validation begins. In REPORT: adds the metrics of the epoch to it
  and closes it.
- COMPLETED in REPORT: shows what the end of the run has added, such as a test.
- TERMINATE, INTERRUPT in REPORT, and EXCEPTION_RAISED in PREPARE, before a function of the user can raise the error
  again: closes the bar.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from time import perf_counter
from typing import Any, TextIO

import ignite.distributed as idist
import torch

from camshaft.engine.clock import compilation_seconds
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.monitor import metrics_of, outputs_of, values_of
from camshaft.handlers.scalars import Scalars

__all__ = ["ProgressBar"]

# In a terminal. With tqdm's own, the bar would change its width with every digit; a full one makes room for numbers.
_MOVING = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_WIDTH = 80  # columns of a terminal that does not know them
_FULL = "{desc} {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"


class ProgressBar(Handler):
    """A bar for each epoch: iterations, their rate, the loss and whatever else the step returns, the newest metrics.

    Beside iterations a second it shows samples a second, of all processes together, where a loader says the size of its
    batches or there is a tensor in the batch, whose first dimension is taken for it; a smaller last batch counts as a
    full one.

    It is tqdm's, in a terminal or, with ipywidgets, in a notebook. In a notebook without them, and where the output
    goes into a file or a pipe, there is one line for each epoch instead. An accelerator is never waited for: its
    numbers are sent for at one refresh and shown at the next. In a distributed run the first process alone shows
    something: the metrics of all, and what its own step returns.

    Args:
        description: what stands before the bar instead of the number of the epoch. Give one to an evaluator's bar.
        leave: whether the bar stays when it is full. By default it does unless it has a description of its own, so that
            a validation's bar leaves no line behind.
        refresh_seconds: how long a bar stands still at least, 0.1 by default.
        file: where it is shown; by default ``sys.stderr``, or in a notebook, which marks that as an error,
            ``sys.stdout``.

    Raises:
        ValueError: ``refresh_seconds`` is negative.

    Example:
        >>> from camshaft import Engine
        >>> engine = Engine(lambda engine, batch: batch / 2).attach(ProgressBar(file=sys.stdout))
        >>> state = engine.run([1, 2, 3, 4], max_epochs=2)
        epoch 1/2: 4 iterations in 0.0 s (... it/s), loss=2
        epoch 2/2: 4 iterations in 0.0 s (... it/s), loss=2
    """

    listens = (
        On(Events.STARTED, Phase.REPORT, "begin"),
        On(Events.EPOCH_STARTED, Phase.REPORT, "begin_epoch"),
        On(Events.ITERATION_COMPLETED, Phase.REPORT, "advance"),
        On(Events.EPOCH_COMPLETED, Phase.PREPARE, "fill"),
        On(Events.EPOCH_COMPLETED, Phase.REPORT, "finish_epoch"),
        On(Events.INTERRUPT, Phase.REPORT, "pause"),
        On(Events.TERMINATE, Phase.REPORT, "stop"),
        On(Events.COMPLETED, Phase.REPORT, "finish"),
        On(Events.EXCEPTION_RAISED, Phase.PREPARE, "close_at_error"),
    )

    def __init__(
        self,
        description: str | None = None,
        *,
        leave: bool | None = None,
        refresh_seconds: float = 0.1,
        file: TextIO | None = None,
    ) -> None:
        if not refresh_seconds >= 0:
            raise ValueError(f"ProgressBar is refreshed every so many seconds, but got {refresh_seconds!r}.")
        self.description = description
        self.leave = description is None if leave is None else leave
        self.refresh_seconds = refresh_seconds
        self.file = file
        self._shows = False
        self._bar_class: Any = None  # None where lines are written instead
        self._in_notebook = False
        self._bar: Any = None
        self._next_refresh = math.inf
        self._done_before = 0  # iterations of the first epoch that were done before the run, where it resumes
        self._first_iteration = 0  # of this epoch, counting from 0
        self._epoch_began_at = self._epoch_ended_at = 0.0
        self._compiled_before = self._compiled = 0.0  # seconds: before this epoch and in it
        self._samples = 0  # in a batch, of all processes together
        self._epoch_is_open = False
        self._sent_for: tuple[list[str], Scalars] | None = None
        self._shown = ""
        self._old: dict[str, Any] = {}  # metrics of an earlier run
        self._metrics_told: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------------------ the run

    def begin(self, engine: Any) -> None:
        """Choose between a bar and lines."""
        self.close()
        state = engine.state
        self._shows = idist.get_rank() == 0
        self._old = self._metrics_told = metrics_of(engine)
        self._shown = ""
        self._done_before = state.iteration % state.epoch_length if state.epoch_length else 0
        if self._shows:
            self._choose_bar()

    def begin_epoch(self, engine: Any) -> None:
        """Open the epoch's bar."""
        self._first_iteration = engine.state.iteration - self._done_before
        self._epoch_began_at = perf_counter()
        self._compiled_before = compilation_seconds(engine.state)
        self._epoch_is_open = True
        self._samples = 0
        if self._shows and self._bar_class is not None:
            self._open(engine)
        elif self._shows:
            self._next_refresh = 0.0  # to see the size of a batch

    def advance(self, engine: Any) -> None:
        """Move the bar, if it is time."""
        if perf_counter() >= self._next_refresh:
            self._refresh(engine)

    def fill(self, engine: Any) -> None:
        """Move the bar to its end; a validation that follows is not counted in its rate."""
        if self._bar is not None:
            self._refresh(engine)
        self._epoch_ended_at = perf_counter()
        self._compiled = compilation_seconds(engine.state) - self._compiled_before

    def finish_epoch(self, engine: Any) -> None:
        """Show the epoch's metrics and close its bar, or write its line."""
        if not self._shows:
            return
        if self._bar is not None:
            pause = perf_counter() - self._epoch_ended_at + self._compiled
            self._bar.start_t += pause
            self._bar.last_print_t += pause  # a bar last printed before it began would not be shown
        if self.leave:
            self._metrics_told = metrics_of(engine)
            numbers = self._shown = _as_text(in_order(values_of(engine), engine))
            if self._bar is not None:
                self._bar.set_postfix_str(self._beside_bar(engine, numbers), refresh=False)
                if self._bar.bar_format == _MOVING:
                    self._bar.bar_format = _FULL
            elif self._bar_class is None:
                self._write_line(self._line(engine, numbers))
        self.close()
        self._done_before = 0

    def finish(self, engine: Any) -> None:
        """Show the metrics that came after the last epoch ended."""
        self.close()
        if self._shows and self.leave:
            metrics = metrics_of(engine)
            new = {name: value for name, value in metrics.items() if value is not self._metrics_told.get(name)}
            if new:
                self._write_line(f"end of the run: {_as_text(new)}")

    def stop(self, engine: Any) -> None:
        """Finish an epoch that is cut short like any other."""
        if self._epoch_is_open:
            self.fill(engine)
            self.finish_epoch(engine)

    def pause(self, engine: Any) -> None:
        """Close the bar while the run is interrupted; the next iteration opens another."""
        if self._bar is not None:
            self._refresh(engine)
        self.close()
        if self._shows and self._bar_class is not None:
            self._next_refresh = 0.0

    def close(self) -> None:
        """Close the bar, if one is open."""
        self._next_refresh = math.inf
        self._epoch_is_open = False
        self._sent_for = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close_at_error(self, engine: Any, error: BaseException) -> None:
        """Leave the bar where the error was, so that its message begins on a line of its own."""
        if self._bar is not None:
            self._move(engine)  # its numbers are not asked for: the device may be what has failed
        self.close()

    # ------------------------------------------------------------------------------------------------ the bar

    def _choose_bar(self) -> None:
        if _has_widgets():
            from tqdm.auto import tqdm  # noqa: PLC0415 - only a run that shows a bar pays for it
        else:  # tqdm.auto would warn, in a notebook, that it is missing
            from tqdm import tqdm  # noqa: PLC0415

        self._in_notebook = any(ancestor.__name__ == "tqdm_notebook" for ancestor in tqdm.__mro__)
        if self._in_notebook or self._output().isatty():
            # Without tqdm's monitor: a thread of its own makes every fork of a data loader's workers a risk.
            self._bar_class = type("Bar", (tqdm,), {"monitor_interval": 0})
        else:
            self._bar_class = None

    def _open(self, engine: Any) -> None:
        state = engine.state
        total = state.epoch_length
        if state.max_iters is not None:
            left = state.max_iters - self._first_iteration
            total = left if total is None else min(total, left)
        done = state.iteration - self._first_iteration
        output = self._output()
        has_width = self._in_notebook or _width_of(output) > 0  # a terminal that knows none says 0, and sees nothing
        self._bar = self._bar_class(
            desc=self._description(engine),
            total=total,
            initial=done,
            leave=self.leave,
            file=output,
            dynamic_ncols=has_width,
            ncols=None if has_width else _WIDTH,
            mininterval=0,
            miniters=1,
            bar_format=None if total is None or self._in_notebook else _MOVING,
        )
        self._next_refresh = perf_counter() + self.refresh_seconds

    def _refresh(self, engine: Any) -> None:
        self._samples = max(self._samples, _samples_in_batch(engine) * idist.get_world_size())
        if self._bar_class is None:
            self._next_refresh = math.inf
            return
        if self._bar is None:
            self._open(engine)
        self._collect()
        if self._sent_for is None:
            metrics = {name: value for name, value in metrics_of(engine).items() if value is not self._old.get(name)}
            values = in_order({**metrics, **outputs_of(engine)}, engine)
            self._sent_for = (list(values), Scalars(list(values.values())))
            self._collect()  # from the CPU it is there at once
        self._bar.set_postfix_str(self._beside_bar(engine, self._shown), refresh=False)
        self._move(engine)
        self._next_refresh = perf_counter() + self.refresh_seconds

    def _move(self, engine: Any) -> None:
        done = engine.state.iteration - self._first_iteration - self._bar.n
        if done > 0:
            self._bar.update(done)
        else:
            self._bar.refresh()

    def _collect(self) -> None:
        if self._sent_for is not None and self._sent_for[1].arrived:
            names, scalars = self._sent_for
            self._shown = _join(names, scalars)
            self._sent_for = None

    def _beside_bar(self, engine: Any, numbers: str) -> str:
        """The rate in samples, and the numbers."""
        end = self._epoch_ended_at if self._epoch_ended_at >= self._epoch_began_at else perf_counter()
        compiled = compilation_seconds(engine.state) - self._compiled_before
        rate = self._samples_per_second(engine, end - self._epoch_began_at - compiled)
        return ", ".join(filter(None, (rate, numbers)))

    def _samples_per_second(self, engine: Any, seconds: float) -> str:
        iterations = engine.state.iteration - self._first_iteration - self._done_before
        if not self._samples or not iterations or seconds <= 0:
            return ""
        rate = self._samples * iterations / seconds
        return f"{rate:,.0f} samples/s" if rate >= 100 else f"{rate:.3g} samples/s"

    def _line(self, engine: Any, numbers: str) -> str:
        iterations = engine.state.iteration - self._first_iteration - self._done_before
        seconds = self._epoch_ended_at - self._epoch_began_at - self._compiled
        line = f"{self._description(engine)}: {iterations} iterations in {seconds:.1f} s"
        if seconds > 0:
            rates = (f"{iterations / seconds:.4g} it/s", self._samples_per_second(engine, seconds))
            line += f" ({', '.join(filter(None, rates))})"
        if self._compiled > 0:
            line += f" after {self._compiled:.1f} s of compilation"
        return f"{line}, {numbers}" if numbers else line

    def _write_line(self, line: str) -> None:
        if self._bar_class is not None:
            self._bar_class.write(line, file=self._output())  # around the bars of others
        else:
            print(line, file=self._output(), flush=True)

    def _description(self, engine: Any) -> str:
        if self.description is not None:
            return self.description
        epoch, epochs = engine.state.epoch, engine.state.max_epochs
        return f"epoch {epoch}" if epochs is None else f"epoch {epoch:{len(str(epochs))}}/{epochs}"

    def _output(self) -> TextIO:
        if self.file is not None:
            return self.file
        in_notebook = type(sys.stderr).__module__ == "ipykernel.iostream"
        return sys.stdout if in_notebook else sys.stderr


def _samples_in_batch(engine: Any) -> int:
    """How many samples a batch of this process has, or 0 where nobody knows."""
    size = getattr(engine.state.dataloader, "batch_size", None)
    return size if isinstance(size, int) else _length_of_first_tensor(engine.state.batch)


def _length_of_first_tensor(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.dim() else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((length for part in parts if (length := _length_of_first_tensor(part))), 0)


def _width_of(output: Any) -> int:
    """Columns of a terminal; 1 of what is no file of the system, which tqdm looks at by itself."""
    try:
        return os.get_terminal_size(output.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 1


def in_order(values: Mapping[str, Any], engine: Any) -> dict[str, Any]:
    """``values``, the most important first: the loss, what else the step returned, what was measured, the rest."""
    handlers = handlers_of(engine)
    measured = [name for name in values if any(handler.produced_at(name) is not None for handler in handlers)]
    order = ["loss", *outputs_of(engine), *measured, *values]
    return {name: values[name] for name in order if name in values}


def _as_text(values: Mapping[str, Any]) -> str:
    return _join(list(values), Scalars(list(values.values())))


def _join(names: list[str], scalars: Scalars) -> str:
    numbers = zip(names, scalars.numbers(), strict=True)
    return ", ".join(
        f"{name}={number}" if isinstance(number, int) else f"{name}={number:.4g}" for name, number in numbers
    )


@functools.cache  # to look for a package takes longer than an epoch of few iterations
def _has_widgets() -> bool:
    return find_spec("ipywidgets") is not None
