"""Runs everything once, on one batch, and writes no files: to see that a program works before it is left alone.

Stands around ``engine.run()``, and listens to:

- STARTED in PREPARE: makes the run one short epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from ignite.engine import Engine as IgniteEngine
from ignite.handlers import Checkpoint as IgniteCheckpoint
from ignite.handlers.base_logger import BaseHandler as IgniteLogging

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.handlers.checkpoint import Checkpoint
from camshaft.handlers.evaluate import Evaluate
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.logger import Logger
from camshaft.handlers.profiler import Profiler
from camshaft.handlers.run_record import RunRecord
from camshaft.handlers.sanity_check import evaluate_briefly, shortened

__all__ = ["FastDevRun"]

_WRITE_FILES = (Checkpoint, Logger, Profiler, RunRecord)


class FastDevRun(Handler):
    """Lets the next ``engine.run()`` be one epoch of one batch, with all that is attached but what writes files.

    ``Checkpoint``, loggers, ``Profiler`` and ``RunRecord`` are detached for that time, so that nothing is written and
    no earlier run is taken up; functions of the user are called as ever. Each ``Evaluate`` runs on as many batches,
    also one whose time does not come within such a short run. The weights are trained by these batches.

    Args:
        batches: how many.

    Raises:
        ValueError: ``batches`` is not positive; when the run starts, if a checkpoint or logger of Ignite is attached,
            which cannot be told to write nothing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from camshaft import Engine
        >>> model = torch.nn.Linear(1, 1)
        >>> engine = Engine(lambda engine, batch: print("trains"))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     engine = engine.attach(Checkpoint(directory, model=model), FastDevRun())
        ...     state = engine.run(range(1000), max_epochs=100)
        ...     list(Path(directory).iterdir()), state.iteration, len(engine.handlers)
        trains
        ([], 1, 2)
    """

    alone = True
    listens = (On(Events.STARTED, Phase.PREPARE, "shorten"),)

    def __init__(self, batches: int = 1) -> None:
        if batches < 1:
            raise ValueError(f"FastDevRun takes at least one batch, but got batches={batches!r}.")
        self.batches = batches

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        engine.run = partial(self._run, engine, engine.run)  # type: ignore[method-assign]

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        del engine.run

    def shorten(self, engine: Any) -> None:
        """Let the run be one epoch of so many batches."""
        state = engine.state
        state.epoch_length = self.batches if state.epoch_length is None else min(self.batches, state.epoch_length)
        state.max_epochs, state.max_iters = 1, None

    def _run(self, engine: Any, run: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_those_of_ignite(engine)
        evaluations = [handler for handler in handlers_of(engine) if isinstance(handler, Evaluate)]
        with ExitStack() as undo:
            for one in (engine, *(evaluation.evaluator for evaluation in evaluations)):
                undo.enter_context(_without_files(one))
            for evaluation in evaluations:
                undo.enter_context(shortened(evaluation, self.batches))
            state = run(*args, **kwargs)
            for evaluation in evaluations:
                if evaluation._last_run != state.iteration:
                    evaluate_briefly(evaluation, engine, self.batches)
        engine.logger.info("FastDevRun: %d batch(es) of everything ran; nothing was written.", self.batches)
        return state


@contextmanager
def _without_files(engine: IgniteEngine) -> Iterator[None]:
    """Within this context nothing of ours that writes files is attached; afterwards it is, in the order of before."""
    order = list(handlers_of(engine))
    detached = [handler for handler in order if isinstance(handler, _WRITE_FILES)]
    for handler in detached:
        handler.detach(engine)
    try:
        yield
    finally:
        for handler in detached:
            handler.attach(engine)
        handlers_of(engine)[:] = order


def _refuse_those_of_ignite(engine: IgniteEngine) -> None:
    for entries in engine._event_handlers.values():
        for function, *_ in entries:
            writer = getattr(function, "_parent", lambda: function)()  # noqa: B023 - called at once
            if isinstance(writer, (IgniteCheckpoint, IgniteLogging)):
                raise ValueError(
                    f"FastDevRun writes no files, but {type(writer).__name__} of Ignite is attached and cannot be told "
                    "so: leave it out for this run, or use Camshaft's Checkpoint and loggers."
                )
