"""Trains copies of a model on several processes.

Configures the engine's step, and listens to:

- STARTED in PREPARE: wraps the model.
- FORWARD_STARTED in PREPARE: lets only the last micro-batch of a group exchange gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from camshaft.engine.distributed import initialise, world_size
from camshaft.engine.events import Events, StepEvents
from camshaft.engine.phases import Phase
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.device import device_of
from camshaft.handlers.handler import Handler, On

__all__ = ["DataParallel"]


class DataParallel(Handler):
    """Trains one model on several processes with torch's ``DistributedDataParallel``; nothing on one process.

    The step goes on to call the model as ever: its ``forward`` is sent through the wrapper, of which nobody needs to
    know. While ``GradientAccumulation`` gathers a group, gradients are exchanged once, by its last micro-batch. In
    evaluation the model is called directly, so that processes may differ in their numbers of batches.

    Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 13(12), 2020.

    Args:
        model: the module that the step calls.
        options: for ``DistributedDataParallel``: ``static_graph``, ``find_unused_parameters``, ``bucket_cap_mb`` and so
            on; ``gradient_as_bucket_view`` is True by default here, which saves the memory of a second copy.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> from camshaft import Engine
        >>> model = nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: model(batch).mean().item()).attach(DataParallel(model))
        >>> engine.run([torch.ones(4, 2)]).iteration
        1
    """

    exchanges_gradients = True
    listens = (
        On(Events.STARTED, Phase.PREPARE, "wrap"),
        On(StepEvents.FORWARD_STARTED, Phase.PREPARE, "choose_exchange"),
    )

    def __init__(self, model: nn.Module, **options: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"DataParallel takes the module that the step calls, but got {model!r}.")
        self.model = model
        self.options = {"gradient_as_bucket_view": True, **options}
        self._wrapped: DistributedDataParallel | None = None

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        initialise()  # where a launcher has started several processes

    def wrap(self, engine: IgniteEngine) -> None:
        """Wrap the model, unless there is only one process or it is wrapped already."""
        if world_size() == 1:
            return
        if self._wrapped is None:
            device = device_of(engine)
            self.model.to(device)  # whichever of this handler and Device comes first
            device_ids = None if device.type == "cpu" else [device]
            base = type(self.model)
            self._wrapped = DistributedDataParallel(_Direct(self.model, base), device_ids=device_ids, **self.options)
            self.model.__class__ = _parallel(base)
            _wrappers[self.model] = self._wrapped
        self._step = TrainingStep.of(engine)
        self._step.exchange_gradients = self.exchange

    def choose_exchange(self) -> None:
        """Before a forward pass: its backward exchanges gradients unless more micro-batches of the group follow."""
        if self._wrapped is not None:
            step = self._step
            more_follow = not step.called_by_hand and not all(backward.completes_group for backward in step.backwards)
            self._wrapped.require_backward_grad_sync = not more_follow

    def exchange(self, parameters: Iterable[nn.Parameter]) -> None:
        """Exchange the gradients of a group that ended before the micro-batch that would have done so."""
        own = {id(parameter) for parameter in self.model.parameters()}
        for parameter in parameters:
            if id(parameter) in own and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        if self._wrapped is not None:
            self._step.exchange_gradients = None
            self.model.__class__ = type(self.model).__mro__[1]
            del _wrappers[self.model]
            self._wrapped = None


# The wrapper of each model; a copy of a model, such as an average of its weights, has none and is called directly.
_wrappers: weakref.WeakKeyDictionary[nn.Module, DistributedDataParallel] = weakref.WeakKeyDictionary()


def _parallel(base: type[nn.Module]) -> type[nn.Module]:
    """The class of a wrapped model: its own, but that training goes through the wrapper."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        wrapper = _wrappers.get(self)
        if wrapper is not None and self.training and torch.is_grad_enabled():
            return wrapper(*args, **kwargs)
        return base.forward(self, *args, **kwargs)

    return type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__})


class _Direct(nn.Module):
    """What the wrapper wraps: calls the forward of the model's own class, which leads to no wrapper."""

    def __init__(self, model: nn.Module, base: type[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.base = base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.forward(self.model, *args, **kwargs)
