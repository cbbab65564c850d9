"""Trains parts of a model later than the rest, or never.

Freezes them when it is attached, and listens to:

- EPOCH_STARTED in PREPARE: thaws them when it is time to; freezes them again where another run begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ignite.engine import Engine as IgniteEngine
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.engine.sharded import reshard
from camshaft.handlers.cuda_graph import CUDAGraph
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.optimizer_step import optimizer_steps_of

__all__ = ["Freeze"]


class Freeze(Handler):
    """Freezes modules until an epoch is over, or for good.

    Their parameters get no gradients, for which backward then does no work, and no optimizer changes them. Their batch
    normalisation is in evaluation mode: it normalises with the statistics that it has and does not change these, also
    where the step calls ``model.train()``. Dropout goes on. What required no gradient before requires none afterwards.

    Give the optimizer all parameters from the start, each with the learning rate that it is to have once it is thawed:
    it passes over those without gradients. So a run that goes on from a checkpoint needs nothing more to be exact.
    Parts that are thawed one after the other have a ``Freeze`` each.

    Gradual unfreezing: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018.

    Args:
        modules: what to freeze, each with all its parts.
        until_epoch: the last epoch that they are frozen in, counted from 1; None for all.
        but: modules within these that are trained all the same, such as the head of a model.

    Attributes:
        frozen: whether they are, just now.

    Raises:
        TypeError: something that is no module.
        ValueError: ``until_epoch`` is not positive; there is nothing to freeze; when the run starts, if two such
            handlers have a parameter in common, or what is to be thawed is in no optimizer.

    Example:
        >>> import torch
        >>> from camshaft import Engine, Events, OptimizerStep
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters(), "lr": 0.1}]
        >>> engine = Engine(lambda engine, batch: model(batch).square().mean())
        >>> engine = engine.attach(OptimizerStep(torch.optim.SGD(groups)), Freeze(model, until_epoch=1, but=model[2]))
        >>> @engine.on(Events.EPOCH_STARTED)
        ... def show(engine):
        ...     print(engine.state.epoch, [parameter.requires_grad for parameter in model.parameters()])
        >>> state = engine.run([torch.ones(3, 2)], max_epochs=2)
        1 [False, False, True, True]
        2 [True, True, True, True]
    """

    listens = (On(Events.EPOCH_STARTED, Phase.PREPARE, "begin_epoch"),)

    def __init__(
        self, *modules: nn.Module, until_epoch: int | None = None, but: nn.Module | Iterable[nn.Module] = ()
    ) -> None:
        self.modules = modules
        self.but = (but,) if isinstance(but, nn.Module) else tuple(but)
        for module in (*self.modules, *self.but):
            if not isinstance(module, nn.Module):
                raise TypeError(f"Freeze takes modules, as in Freeze(model.encoder), but got {module!r}.")
        if until_epoch is not None and (
            isinstance(until_epoch, bool) or not isinstance(until_epoch, int) or until_epoch < 1
        ):
            raise ValueError(
                f"until_epoch is the last epoch in which modules are frozen, 1 or more, or None, not {until_epoch!r}."
            )
        self.until_epoch = until_epoch
        self.frozen = False
        # Where they stand rather than the parameters themselves, in whose place FullySharded puts others.
        self._parameters = list(self._own_parameters())
        self._trainable = [(module, name) for module, name in self._parameters if _get(module, name).requires_grad]
        self._norms: list[tuple[nn.Module, bool, Any]] = []  # with the mode that each was in, and its hook
        if not self._trainable:
            raise ValueError(
                f"{self!r} has no parameter to freeze: name modules that have some that require gradients."
            )

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        self.freeze()  # before DataParallel, when the run starts, looks which gradients it is to exchange

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        self.thaw()

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        own = {id(_get(module, name)) for module, name in self._parameters}
        for other in handlers_of(engine):
            if isinstance(other, Freeze) and other is not self:
                shared = sum(id(_get(module, name)) in own for module, name in other._parameters)
                if shared:
                    raise ValueError(
                        f"{self!r} and {other!r} have {shared} parameter(s) in common: leave them out of one, by `but`."
                    )
        steps = optimizer_steps_of(engine)
        stepped = {id(parameter) for step in steps for parameter in step.parameters}
        lost = [name for module, name in self._trainable if id(_get(module, name)) not in stepped]
        if steps and lost and self.until_epoch is not None:
            raise ValueError(
                f"{self!r} thaws {len(lost)} parameter(s) that no OptimizerStep on this engine trains. Give the "
                "optimizer all parameters, also those that are frozen at first."
            )

    def begin_epoch(self, engine: IgniteEngine) -> None:
        """Freeze or thaw, by the number of the epoch."""
        frozen = self.until_epoch is None or engine.state.epoch <= self.until_epoch
        if frozen == self.frozen:
            return
        for handler in handlers_of(engine):
            if handler.exchanges_gradients and isinstance(model := getattr(handler, "model", None), nn.Module):
                reshard(model)  # FullySharded puts others in the place of its parameters for an evaluation
        if frozen:
            self.freeze()
        else:
            self.thaw()
        for handler in handlers_of(engine):
            if isinstance(handler, CUDAGraph):
                handler.begin(engine)  # what it has recorded is another step

    def freeze(self) -> None:
        """Freeze the modules now."""
        if self.frozen:
            return
        self.frozen = True
        for module, name in self._trainable:
            parameter = _get(module, name).requires_grad_(False)
            parameter.grad = None  # with which an optimizer would still step it
        for module in self._own_modules():
            if isinstance(module, _NormBase):
                self._norms.append((module, module.training, module.register_forward_pre_hook(_evaluate)))
                module.eval()

    def thaw(self) -> None:
        """Let the modules be trained again."""
        if not self.frozen:
            return
        self.frozen = False
        for module, name in self._trainable:
            _get(module, name).requires_grad_(True)
        while self._norms:
            module, training, hook = self._norms.pop()
            hook.remove()
            module.train(training)

    def _own_modules(self) -> Iterator[nn.Module]:
        """Each part once, without those to be trained all the same."""
        seen = {id(part) for module in self.but for part in module.modules()}
        for module in self.modules:
            for part in module.modules():
                if id(part) not in seen:
                    seen.add(id(part))
                    yield part

    def _own_parameters(self) -> Iterator[tuple[nn.Module, str]]:
        """Where its parameters stand, each once; without those shared with a part that is trained."""
        seen = {id(parameter) for module in self.but for parameter in module.parameters()}
        for module in self._own_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield module, name


def _get(module: nn.Module, name: str) -> nn.Parameter:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _evaluate(module: nn.Module, inputs: Any) -> None:
    """Before a frozen module computes: a step may have called ``model.train()``."""
    if module.training:
        module.eval()
