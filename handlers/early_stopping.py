"""Ends a run that no longer improves.

Listens to:

- STARTED in MEASURE: forgets an earlier run where a new one begins.
- EPOCH_COMPLETED (or the event that is asked for) in DECIDE: reads the value; terminates the run.
- COMPLETED in RESTORE: brings back the best weights, before anything is evaluated with them and after the last group of
  micro-batches has made its step. In SAVE, when no progress bar is shown any more: tells why the run has ended.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.engine.used_objects import modules_used_by
from camshaft.handlers.ema import EMA, unwrapped
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.monitor import Mode, Monitor
from camshaft.handlers.notices import tell

__all__ = ["EarlyStopping"]


class EarlyStopping(Handler):
    """Terminates the run when a value has not improved for ``patience`` times in a row.

    NaN is never an improvement. A value that was not made anew since the last time, because validation is run more
    seldom, is not counted. What it knows is kept in checkpoints and goes on when the run is resumed; a new run of the
    same engine starts afresh.

    Args:
        monitor: the name of a metric in ``state.metrics``, or of an entry of what the step returns.
        patience: how many values in a row without improvement end the run.
        mode: whether ``"min"`` or ``"max"`` is best; ``"auto"`` takes the maximum of what is called an accuracy or the
            like, else the minimum.
        min_delta: an improvement must be larger than this, an absolute difference.
        restore_best: bring back the weights of the best value when the run completes, whatever ended it: of a module,
            of several, or with True of those that the step uses and of the averages of attached ``EMA`` handlers. A
            copy of them is held beside the model. At TERMINATE the weights are still the last, so that a run can be
            resumed from what is saved there.
        at: when to read the value.

    Attributes:
        monitor: with the ``best`` value so far.
        counter: values in a row without improvement.
        best_epoch: in which the best value came, None before there is one.

    Raises:
        ValueError: ``patience`` is not a positive integer; when the run starts, if ``restore_best`` finds no module;
            after the first epoch, if nothing produces the value.

    Example:
        >>> from camshaft import Engine
        >>> losses = iter([0.9, 0.5, 0.6, float("nan"), 0.1])
        >>> stopping = EarlyStopping("loss", patience=2)
        >>> engine = Engine(lambda engine, batch: next(losses)).attach(stopping)
        >>> engine.run([None], max_epochs=5).epoch, stopping.monitor.best
        (4, 0.5)
    """

    def __init__(
        self,
        monitor: str,
        patience: int = 3,
        *,
        mode: Mode = "auto",
        min_delta: float = 0.0,
        restore_best: bool | nn.Module | Iterable[nn.Module] | None = None,
        at: Any = Events.EPOCH_COMPLETED,
    ) -> None:
        if patience < 1 or patience % 1:
            raise ValueError(f"EarlyStopping needs a patience of at least 1, an integer, but got {patience!r}.")
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience = patience
        self.counter = 0
        self.best_epoch: int | None = None
        self._finds_modules = restore_best is True
        self._modules: dict[str, nn.Module] = {}
        if isinstance(restore_best, nn.Module):
            self._modules = {"0": restore_best}
        elif restore_best is not None and not isinstance(restore_best, bool):
            self._modules = {str(i): module for i, module in enumerate(restore_best)}
        self._averages: dict[str, EMA] = {}
        self._best_weights: dict[str, dict[str, Any]] = {}
        self._loaded = False
        self.listens = (
            On(Events.STARTED, Phase.MEASURE, "start"),
            On(at, Phase.DECIDE, "decide"),
            On(Events.COMPLETED, Phase.SAVE, "tell_why"),
        )
        if self._restores:
            self.listens = (*self.listens, On(Events.COMPLETED, Phase.RESTORE, "restore"))

    @property
    def _restores(self) -> bool:
        return self._finds_modules or bool(self._modules)

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        if self._finds_modules and not modules_used_by(engine._process_function):
            raise ValueError(
                f"{self!r} found no module in the step whose weights it could bring back. "
                "Name it: EarlyStopping(..., restore_best=model)."
            )

    def start(self, engine: IgniteEngine) -> None:
        """Find what to keep the best of, and start afresh unless a run is resumed."""
        if self._finds_modules:
            self._modules = modules_used_by(engine._process_function)
            averages = [handler for handler in handlers_of(engine) if isinstance(handler, EMA)]
            self._averages = {f"EMA {i}": ema for i, ema in enumerate(averages)}
        if engine.state.iteration == 0 and not self._loaded:
            self.monitor.reset()
            self.counter = 0
            self.best_epoch = None
            self._best_weights = {}
        self._loaded = False

    def decide(self, engine: IgniteEngine) -> None:
        """Read the value, and terminate the run if it has not improved for too long."""
        value = self.monitor.read(engine)
        if value is None:
            return
        if self.monitor.improves(value):
            self.counter = 0
            self.best_epoch = engine.state.epoch
            self._keep_weights()
            return
        self.counter += 1
        if self.has_ended_run:
            engine.terminate()

    def restore(self, engine: IgniteEngine) -> None:
        """Bring back the weights of the best value, if there was one."""
        for name, module in self._modules.items():
            if name in self._best_weights:
                unwrapped(module).load_state_dict(self._best_weights[name])
        for name, ema in self._averages.items():
            if name in self._best_weights:
                ema.load_state_dict(self._best_weights[name])

    @property
    def has_ended_run(self) -> bool:
        return self.counter >= self.patience

    def tell_why(self, engine: IgniteEngine) -> None:
        """Tell that the run has ended early, and what its weights are."""
        if not (self.has_ended_run and engine.should_terminate):
            return
        best = "" if self.best_epoch is None else f" (best {self.monitor.best:.4g} in epoch {self.best_epoch})"
        times = "once" if self.counter == 1 else f"{self.counter} times in a row"
        weights = "best" if self._best_weights else "last"
        tell(
            engine,
            "EarlyStopping: %s has not improved %s%s: the run ends in epoch %d, with the %s weights.",
            self.monitor.name,
            times,
            best,
            engine.state.epoch,
            weights,
        )

    def _keep_weights(self) -> None:
        for name, module in self._modules.items():
            self._best_weights[name] = _copied(unwrapped(module).state_dict())
        for name, ema in self._averages.items():
            self._best_weights[name] = _copied(ema.state_dict())

    def state_dict(self) -> dict[str, Any]:
        state = {"monitor": self.monitor.state_dict(), "counter": self.counter, "best_epoch": self.best_epoch}
        return {**state, "best_weights": dict(self._best_weights)} if self._restores else state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.monitor.load_state_dict(state_dict["monitor"])
        self.counter = state_dict["counter"]
        self.best_epoch = state_dict.get("best_epoch")
        self._best_weights = dict(state_dict.get("best_weights", {})) if self._restores else {}
        self._loaded = True


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that stays as it is when training goes on."""
    copied: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            copied[name] = value.detach().clone()
        elif isinstance(value, Mapping):
            copied[name] = _copied(value)
        else:
            copied[name] = copy.deepcopy(value)
    return copied
