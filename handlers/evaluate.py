"""Runs an evaluator: validation during training, or a test at its end.

Listens to:

- EPOCH_COMPLETED (or the event that is asked for) in EVALUATE: runs the evaluator over its data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine.events import Events
from camshaft.engine.loading_ahead import pause_loading
from camshaft.engine.phases import Phase
from camshaft.engine.used_objects import modules_used_by
from camshaft.handlers.device import device_of
from camshaft.handlers.handler import Handler, On

if TYPE_CHECKING:
    from camshaft.handlers.ema import EMA

__all__ = ["Evaluate"]


class Evaluate(Handler):
    """Runs ``evaluator`` over ``data`` and copies its metrics to the trainer's ``state.metrics`` under a prefix.

    Meanwhile gradients are off (``torch.inference_mode``) and every module is in evaluation mode; afterwards each
    module and each of its parts is in the mode that it was in.

    Args:
        evaluator: an engine whose step predicts; attach ``Metrics``, ``Device`` and ``AMP`` to it as to any other.
        data: what it runs over.
        at: when: each epoch by default; ``Events.EPOCH_COMPLETED(every=5)`` or
            ``Events.ITERATION_COMPLETED(every=1000)`` for other rhythms, ``Events.COMPLETED`` for a test at the end.
        prefix: before the names of its metrics, ``"val_"`` by default.
        modules: which modules are put into evaluation mode. Left out, those that the evaluator's step uses are found in
            its code.
        ema: evaluate with the moving averages that this handler keeps instead of the weights.
        epoch_length: evaluate on only so many batches.

    Raises:
        TypeError: ``evaluator`` is no engine.
        ValueError: when the run starts, if the evaluator's step uses no module and none is named.

    Example:
        >>> from ignite.metrics import MeanSquaredError
        >>> from camshaft import Engine
        >>> from camshaft.handlers import Metrics
        >>> model = nn.Linear(1, 1)
        >>> trainer = Engine(lambda engine, batch: None)
        >>> evaluator = Engine(lambda engine, batch: (model(batch), model(batch)))
        >>> evaluator = evaluator.attach(Metrics(error=MeanSquaredError()))
        >>> trainer = trainer.attach(Evaluate(evaluator, [torch.ones(4, 1)]))
        >>> trainer.run([None]).metrics, model.training
        ({'val_error': 0.0}, True)
    """

    def __init__(
        self,
        evaluator: IgniteEngine,
        data: Iterable[Any],
        *,
        at: Any = Events.EPOCH_COMPLETED,
        prefix: str = "val_",
        modules: Iterable[nn.Module] = (),
        ema: EMA | None = None,
        epoch_length: int | None = None,
    ) -> None:
        if not isinstance(evaluator, IgniteEngine):
            raise TypeError(f"Evaluate runs an engine, but got {evaluator!r}: Evaluate(Engine(evaluation_step), data).")
        self.evaluator = evaluator
        self.data = data
        self.prefix = prefix
        self.modules = tuple(modules)
        self.ema = ema
        self.epoch_length = epoch_length
        self.listens = (On(at, Phase.EVALUATE, "evaluate"),)
        self._produced: set[str] = set()
        self._last_run: int | None = None

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        if engine is self.evaluator:
            raise ValueError(f"{self!r} is attached to its own evaluator; attach it to the engine that trains.")
        if not self._modules():
            raise ValueError(
                f"{self!r} found no module in the evaluator's step, so it cannot put any into evaluation mode. "
                "Name them: Evaluate(evaluator, data, modules=[model])."
            )

    def evaluate(self, engine: Any) -> None:
        """Run the evaluator once."""
        pause_loading(engine)
        averages: AbstractContextManager[Any] = nullcontext() if self.ema is None else self.ema.applied()
        # XLA's operators refuse inference tensors.
        inference_mode = torch.inference_mode(mode=device_of(self.evaluator).type != "xla")
        with averages, evaluation_mode(self._modules()), inference_mode, torch.no_grad():
            self.evaluator.state.max_epochs = self.evaluator.state.max_iters = None  # a run of its own each time
            self.evaluator.run(self.data, max_epochs=1, epoch_length=self.epoch_length)
        metrics = {self.prefix + name: value for name, value in self.evaluator.state.metrics.items()}
        engine.state.metrics.update(metrics)
        self._produced.update(metrics)
        self._last_run = engine.state.iteration

    def produced_at(self, name: str) -> int | None:
        if self._last_run is None:  # it has yet to find out which metrics the evaluator has
            return 0 if name.startswith(self.prefix) else None
        return self._last_run if name in self._produced else None

    def state_dict(self) -> dict[str, Any]:
        return {"produced": sorted(self._produced), "last_run": self._last_run}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._produced = set(state_dict["produced"])
        self._last_run = state_dict["last_run"]

    def _modules(self) -> tuple[nn.Module, ...]:
        return self.modules or tuple(modules_used_by(self.evaluator._process_function).values())


@contextmanager
def evaluation_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context the modules are in evaluation mode; afterwards each part is in the mode that it was in.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluation_mode([model]):
        ...     model.training
        False
        >>> model.training, model[0].training, model[1].training
        (True, True, False)
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
