"""Tries out validation before training, so that a mistake in it is not found only after the first epoch.

Listens to:

- STARTED in EVALUATE: runs each attached Evaluate on its first batches, and takes back what that changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.handlers.evaluate import Evaluate
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.trial import data_kept, without_a_trace

__all__ = ["SanityCheck", "evaluate_briefly"]


class SanityCheck(Handler):
    """Runs every attached ``Evaluate`` on its first batches before training begins.

    An error in the evaluator's step, its data or its metrics shows at once. Metrics, random numbers, loaders and the
    evaluator's counters are then as they were; functions of the user that listen to the evaluator are called. A run
    that goes on from a checkpoint has passed it already, and skips it.

    Args:
        batches: how many of each.

    Raises:
        ValueError: ``batches`` is not positive; when the run starts, if no ``Evaluate`` is attached.

    Example:
        >>> from ignite.metrics import Average
        >>> from torch import nn
        >>> from camshaft import Engine
        >>> from camshaft.handlers import Metrics
        >>> model = nn.Linear(1, 1)
        >>> def evaluation_step(engine, batch):
        ...     print("validates")
        ...     return model(batch).mean()
        >>> evaluator = Engine(evaluation_step).attach(Metrics(output=Average()))
        >>> trainer = Engine(lambda engine, batch: print("trains"))
        >>> trainer = trainer.attach(Evaluate(evaluator, [model.weight.data] * 2), SanityCheck())
        >>> state = trainer.run([None])
        validates
        trains
        validates
        validates
    """

    alone = True
    listens = (On(Events.STARTED, Phase.EVALUATE, "try_out"),)

    def __init__(self, batches: int = 1) -> None:
        if batches < 1:
            raise ValueError(f"SanityCheck tries out at least one batch, but got batches={batches!r}.")
        self.batches = batches

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        if not _evaluations(engine):
            raise ValueError(
                f"{self!r} tries out validation, but no Evaluate is attached. Attach Evaluate(evaluator, data), or "
                "leave SanityCheck out."
            )

    def try_out(self, engine: Any) -> None:
        """Run each evaluator on its first batches."""
        if engine.state.iteration > 0:
            return
        for evaluation in _evaluations(engine):
            parts = (evaluation, evaluation.evaluator.state, engine.state)
            with data_kept(evaluation.data), without_a_trace(parts):
                evaluation._produced = set()
                evaluate_briefly(evaluation, engine, self.batches)


def evaluate_briefly(evaluation: Evaluate, engine: IgniteEngine, batches: int) -> None:
    """Run an evaluator on its first batches alone."""
    with shortened(evaluation, batches):
        evaluation.evaluate(engine)


@contextmanager
def shortened(evaluation: Evaluate, batches: int) -> Iterator[None]:
    """Within this context the evaluator runs on the first batches of its data alone."""
    data, epoch_length = evaluation.data, evaluation.epoch_length
    wanted = batches if epoch_length is None else min(batches, epoch_length)
    if isinstance(data, Sized):
        evaluation.epoch_length = min(wanted, len(data))
    else:  # asking for more than there is would begin it anew
        evaluation.data, evaluation.epoch_length = _First(data, wanted), None
    try:
        yield
    finally:
        evaluation.data, evaluation.epoch_length = data, epoch_length


class _First:
    """The first batches of data that does not say how many it has."""

    def __init__(self, data: Any, batches: int) -> None:
        self.data, self.batches = data, batches

    def __iter__(self) -> Iterator[Any]:
        return islice(self.data, self.batches)


def _evaluations(engine: IgniteEngine) -> list[Evaluate]:
    return [handler for handler in handlers_of(engine) if isinstance(handler, Evaluate)]
