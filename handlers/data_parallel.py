"""Trains copies of a model on several processes.

Configures the engine's step, and listens to:

- STARTED in PREPARE: wraps the model.
- FORWARD_STARTED in PREPARE: lets only the last micro-batch of a group exchange gradients.
- EPOCH_COMPLETED in PREPARE: gives all processes the buffers of the first, before they are evaluated or kept.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from operator import itemgetter
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
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.optimizer_step import optimizer_steps_of

__all__ = ["DataParallel", "broadcast_tensors", "more_micro_batches_follow"]


class DataParallel(Handler):
    """Trains one model on several processes with torch's ``DistributedDataParallel``; nothing on one process.

    The step goes on to call the model as ever: its ``forward`` is sent through the wrapper, of which nobody needs to
    know. While ``GradientAccumulation`` gathers a group, gradients are exchanged once, by its last micro-batch. In
    evaluation the model is called directly, so that processes may differ in their numbers of batches.

    The model may be called several times in a step, for one loss. Gradients are exchanged during backward; where that
    cannot be, they are exchanged after it, just before the optimizer's step: if the step does not call the model but
    its parts (``model.encoder(x)``), and if it calls several ``OptimizerStep`` objects itself (GANs), of which each
    reaches only some of the parameters. Several models have a ``DataParallel`` each.

    Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 13(12), 2020.

    Args:
        model: the module that the step calls.
        options: for ``DistributedDataParallel``: ``static_graph``, ``find_unused_parameters``, ``bucket_cap_mb`` and so
            on; ``gradient_as_bucket_view`` is True by default here, which saves the memory of a second copy.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: when the run starts, another such handler has the same model, or there are several ``OptimizerStep``
            handlers beside ``static_graph``.

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
        On(Events.EPOCH_COMPLETED, Phase.PREPARE, "take_buffers_of_first_process"),
    )

    def __init__(self, model: nn.Module, **options: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"DataParallel takes the module that the step calls, but got {model!r}.")
        self.model = model
        self.options = {"gradient_as_bucket_view": True, **options}
        self._wrapped: DistributedDataParallel | None = None
        self._exchanged = False  # by the backward of the last micro-batch
        self._has_exchanged = False  # any backward
        self._takes_buffers = True  # at the next call of the model: of each step the first one
        self._frozen: set[int] = set()  # when it was wrapped

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        initialise()  # where a launcher has started several processes

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        for other in handlers_of(engine):
            if other is not self and other.exchanges_gradients and getattr(other, "model", None) is self.model:
                raise ValueError(f"{self!r} and {other!r} are attached for the same model: keep one of them.")
        if self.options.get("static_graph") and len(optimizer_steps_of(engine)) > 1:
            raise ValueError(
                f"{self!r} expects the same graph in each backward, which several OptimizerStep handlers do not have: "
                "leave static_graph out."
            )

    def wrap(self, engine: IgniteEngine) -> None:
        """Wrap the model, unless there is only one process or it is wrapped already."""
        if world_size() == 1:
            return
        self._step = TrainingStep.of(engine)
        if self.exchange not in self._step.exchanges:
            device = device_of(engine)
            self.model.to(device)  # whichever of this handler and Device comes first
            self._frozen = {id(parameter) for parameter in self.model.parameters() if not parameter.requires_grad}
            if all(id(parameter) in self._frozen for parameter in self.model.parameters()):
                broadcast_tensors([*self.model.parameters(), *self.model.buffers()])  # torch wraps no such model
            else:
                device_ids = None if device.type == "cpu" else [device]
                base = type(self.model)
                self._wrapped = _Wrapper(_Direct(self.model, base), device_ids=device_ids, **self.options)
                self._wrapped.settle_buckets()
                self.model.__class__ = _parallel(base, weakref.ref(self))
            self._step.exchanges.append(self.exchange)

    def choose_exchange(self) -> None:
        """Before a forward pass: its backward exchanges gradients unless more micro-batches of the group follow."""
        if self._wrapped is not None:
            # Of several OptimizerSteps each goes backward through some of the models, and it is not known before
            # through which; torch would wait for the gradients of all that were called.
            several = len(self._step.backwards) > 1
            # A static graph is learnt in the first backward, which must exchange: once too often does no harm.
            learns = bool(self.options.get("static_graph")) and not self._has_exchanged
            exchanges = learns or not more_micro_batches_follow(self._step)
            self._wrapped.require_backward_grad_sync = exchanges and not several
            self._exchanged = False
            self._takes_buffers = True

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model through the wrapper."""
        assert self._wrapped is not None
        # A second call of one step would overwrite in place what the first one's backward is yet to use.
        self._wrapped.require_forward_param_sync = self._takes_buffers
        self._takes_buffers = False
        self._exchanged = self._wrapped.require_backward_grad_sync
        self._has_exchanged |= self._exchanged
        return self._wrapped(*args, **kwargs)

    def exchange(self, parameters: Sequence[nn.Parameter], whole: bool) -> None:
        """Exchange the gradients of a group where its last backward has not done so.

        Args:
            parameters: that are about to be stepped.
            whole: whether the group has as many micro-batches as it should.
        """
        exchanged, self._exchanged = self._exchanged, False
        if whole and exchanged and not self._frozen:
            return
        own = {id(parameter) for parameter in self.model.parameters()}
        trained = [one for one in parameters if id(one) in own and one.requires_grad]
        if whole and exchanged:
            trained = [one for one in trained if id(one) in self._frozen]  # until now: the wrapper passes them over
        if self.options.get("find_unused_parameters"):  # which of them were used may differ between the processes
            _fill_gradients(trained)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        for bucket in _buckets(gradients):
            together = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(together)
            together /= world_size()
            _copy_parts(together, bucket)

    def take_buffers_of_first_process(self) -> None:
        """Between epochs, all have the buffers of the first process, such as the statistics of batch normalisation."""
        if world_size() > 1 and self.options.get("broadcast_buffers", True):
            broadcast_tensors(self.model.buffers())

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        step = TrainingStep.of(engine)
        if self.exchange in step.exchanges:
            step.exchanges.remove(self.exchange)
        if self._wrapped is not None:
            self.model.__class__ = type(self.model).__mro__[1]
            self._wrapped = None


def more_micro_batches_follow(step: TrainingStep) -> bool:
    """Whether the next micro-batch is not the last of its group; of a step that goes backward itself, each may be."""
    return not step.called_by_hand and not all(backward.completes_group for backward in step.backwards)


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Give all processes the values of the first, in place; all must call this with the same shapes."""
    with torch.no_grad():
        for bucket in _buckets([tensor.detach() for tensor in tensors]):
            together = torch.cat([tensor.flatten() for tensor in bucket])
            dist.broadcast(together, src=0)
            _copy_parts(together, bucket)


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one type and device at a time, about 25 MiB of them, to be sent together."""
    of_kind: dict[Any, list[torch.Tensor]] = {}
    for tensor in tensors:
        of_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in of_kind.values():
        ends = accumulate(tensor.nbytes for tensor in same)
        numbered = zip((end // _BUCKET_BYTES for end in ends), same, strict=True)
        yield from ([tensor for _, tensor in bucket] for _, bucket in groupby(numbered, key=itemgetter(0)))


_BUCKET_BYTES = 25 * 2**20


def _copy_parts(together: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    parts = together.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _fill_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give zeros to the parameters that have a gradient on another process but not here."""
    if parameters:
        here = [parameter.grad is not None for parameter in parameters]
        anywhere = torch.tensor(here, dtype=torch.uint8, device=parameters[0].device)
        dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        for parameter, found in zip(parameters, anywhere.tolist(), strict=True):
            if found and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _parallel(base: type[nn.Module], handler: weakref.ref[DataParallel]) -> type[nn.Module]:
    """The class of a wrapped model: its own, but that training goes through the wrapper."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        parallel = handler()
        # A copy of the model, such as an average of its weights, is called directly.
        if parallel is not None and parallel.model is self and self.training and torch.is_grad_enabled():
            return parallel.call(*args, **kwargs)
        return base.forward(self, *args, **kwargs)

    return type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__})


class _Wrapper(DistributedDataParallel):
    """Adds up gradients in an order that is settled before the first step.

    Otherwise torch learns the order from the first backward. A run that goes on from a checkpoint would learn it anew,
    and of three processes or more would add up one step's gradients in another order, to other bits.
    """

    def _build_params_for_reducer(self) -> tuple[list[nn.Parameter], list[bool]]:
        parameters, expect_sparse = super()._build_params_for_reducer()  # type: ignore[no-untyped-call]
        return parameters[::-1], expect_sparse[::-1]  # gradients of the last layers come first

    def settle_buckets(self) -> None:
        """Take that order for the one that was learnt."""
        self.reducer._push_all_rebuilt_params()
        self.reducer._rebuild_buckets()
        _alive.add(self)


_alive: weakref.WeakSet[_Wrapper] = weakref.WeakSet()


def _let_go_of_groups() -> None:
    """Wrappers in global variables outlive the process group, whose threads then end after the interpreter."""
    for wrapper in _alive:
        for name in ("reducer", "logger", "process_group"):
            wrapper.__dict__.pop(name, None)


atexit.register(_let_go_of_groups)


class _Direct(nn.Module):
    """What the wrapper wraps: calls the forward of the model's own class, which leads to no wrapper."""

    def __init__(self, model: nn.Module, base: type[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.base = base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.forward(self.model, *args, **kwargs)
