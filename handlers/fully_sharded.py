"""Trains one model on several processes of which each keeps only a part of its weights.

Configures the engine's step, and listens to:

- STARTED in PREPARE: shards the model and puts its new parameters into the optimizers.
- FORWARD_STARTED in PREPARE: lets only the last micro-batch of a group exchange gradients.
- EPOCH_COMPLETED in PREPARE: gives all processes the buffers of the first, before they are evaluated or kept.
- EXCEPTION_RAISED in PREPARE: says what to do where the step has called a part of the model that is not there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from camshaft.engine.distributed import initialise, world_size
from camshaft.engine.events import Events, StepEvents
from camshaft.engine.phases import Phase
from camshaft.engine.sharded import keep_skeleton, sharded_like
from camshaft.engine.training_step import TrainingStep
from camshaft.engine.used_objects import used_by
from camshaft.handlers.amp import AMP
from camshaft.handlers.data_parallel import broadcast_tensors, more_micro_batches_follow
from camshaft.handlers.device import device_of
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.optimizer_step import optimizer_steps_of

__all__ = ["FullySharded"]

SMALLEST_BLOCK = 1_000_000
"""Parameters from which on ``wrap="auto"`` shards a block by itself: smaller ones are gathered faster together."""

Wrap = Literal["auto"] | type[nn.Module] | Iterable[type[nn.Module]] | Callable[[nn.Module], bool]


class FullySharded(Handler):
    """Shards a model over several processes with torch's ``fully_shard`` (FSDP2); nothing on one process.

    Each process keeps a part of every weight, of its gradient and of the optimizer's state. A block of the model is put
    together when it computes, and let go afterwards. The program stays as it is: the optimizer made before goes on with
    the sharded parameters, which are ``DTensor`` objects, and all begin with the first process's weights.

    While ``GradientAccumulation`` gathers a group, gradients are exchanged once, by its last micro-batch; until then
    each process holds whole gradients. A checkpoint from within a group exchanges those it has, which may change the
    last bit of their sum. For evaluation (in evaluation mode, without gradients) the first call
    puts the whole model together until training goes on, so that processes may differ in their numbers of batches, of
    which each needs at least one.

    Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 16(12), 2023.

    Args:
        model: the module that the step calls.
        wrap: which parts are put together by themselves: classes of modules, or a function that tells of a module
            whether to. ``"auto"`` takes the items of each ``Sequential`` and ``ModuleList`` that have a million
            parameters or more. What is left is one more part.
        mixed_precision: the precision to compute and to exchange gradients in. Weights stay as they are, so that,
            unlike with ``AMP``, half as much is sent.
        cpu_offload: keep weights, gradients and the optimizer's state in the CPU's memory.
        reshard_after_forward: whether a part is let go between forward and backward: True saves memory, False time. By
            default all are but what is left.
        exchange_each_micro_batch: exchange gradients for each micro-batch of a group, which saves the memory of whole
            ones.
        broadcast_buffers: give all the first process's buffers at each step, as ``DataParallel`` does.
        mesh: over which processes to shard; by default over all. Over two dimensions it shards along the second and
            copies along the first.

    Raises:
        TypeError: ``model`` is no module, or ``wrap`` is something else.
        ValueError: when the run starts, there is another handler for the same model, ``AMP`` computes in another
            precision, or no part is found to ``wrap``.

    Example:
        >>> from camshaft import Engine
        >>> model = nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: model(batch).mean().item()).attach(FullySharded(model))
        >>> engine.run([torch.ones(4, 2)]).iteration
        1
    """

    exchanges_gradients = True
    listens = (
        On(Events.STARTED, Phase.PREPARE, "shard"),
        On(StepEvents.FORWARD_STARTED, Phase.PREPARE, "choose_exchange"),
        On(Events.EPOCH_COMPLETED, Phase.PREPARE, "take_buffers_of_first_process"),
        On(Events.EXCEPTION_RAISED, Phase.PREPARE, "explain"),
    )

    def __init__(
        self,
        model: nn.Module,
        wrap: Wrap = "auto",
        *,
        mixed_precision: MixedPrecisionPolicy | None = None,
        cpu_offload: bool = False,
        reshard_after_forward: bool | None = None,
        exchange_each_micro_batch: bool = False,
        broadcast_buffers: bool = True,
        mesh: DeviceMesh | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"FullySharded takes the module that the step calls, but got {model!r}.")
        self.model = model
        self._name = type(model).__name__
        self._wraps = _as_function(wrap)
        self.mixed_precision = mixed_precision or MixedPrecisionPolicy()
        self.cpu_offload = cpu_offload
        self.reshard_after_forward = reshard_after_forward
        self.exchange_each_micro_batch = exchange_each_micro_batch
        self.broadcast_buffers = broadcast_buffers
        self.mesh = mesh
        self._parts: list[FSDPModule] = []  # the model itself is the last
        self._kept_whole = False  # since an evaluation, until training goes on

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        initialise()  # where a launcher has started several processes

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        for other in handlers_of(engine):
            if other is not self and other.exchanges_gradients and getattr(other, "model", None) is self.model:
                raise ValueError(f"{self!r} and {other!r} are attached for the same model: keep one of them.")
            own = self.mixed_precision.param_dtype
            if isinstance(other, AMP) and own not in (None, other.dtype):
                raise ValueError(
                    f"{other!r} computes in {other.dtype}, but {self!r} in {own}: leave AMP out, or give it the same "
                    "precision, which float16 needs to scale the loss."
                )

    def detach(self, engine: IgniteEngine) -> None:
        if self._parts:
            raise ValueError(f"{self!r} has sharded its model, which cannot be undone: make a new model and engine.")
        super().detach(engine)

    # ------------------------------------------------------------------------------------------------ sharding

    def shard(self, engine: IgniteEngine) -> None:
        """Shard the model, unless there is only one process or it is sharded already."""
        if world_size() == 1:
            return
        if self._parts:
            self._drop_gradients()
        else:
            self._shard(engine)

    def _shard(self, engine: IgniteEngine) -> None:
        device = device_of(engine)
        self.model.to(device)  # whichever of this handler and Device comes first
        broadcast_tensors([*self.model.parameters(), *self.model.buffers()])
        keep_skeleton(self.model)
        before = dict(self.model.named_parameters(remove_duplicate=False))
        options: dict[str, Any] = {
            "mesh": self.mesh or init_device_mesh(device.type, (world_size(),)),
            "mp_policy": self.mixed_precision,
            "offload_policy": CPUOffloadPolicy(pin_memory=device.type != "cpu")
            if self.cpu_offload
            else OffloadPolicy(),
            "reshard_after_forward": self.reshard_after_forward,
        }
        for part in [*self._parts_to_wrap(), self.model]:
            self._parts.append(fully_shard(part, **options))
            part.register_forward_pre_hook(self._before_forward, prepend=True)
        # Whichever part is called first, the model as a whole is the root of all parts.
        self.model._get_fsdp_state()._lazy_init()  # type: ignore[operator]

        after = dict(self.model.named_parameters(remove_duplicate=False))
        sharded = {id(before[name]): parameter for name, parameter in after.items()}
        optimizers = [optimizer for step in optimizer_steps_of(engine) for optimizer in step.optimizers]
        optimizers += used_by(engine._process_function, torch.optim.Optimizer).values()
        for optimizer in {id(one): one for one in optimizers}.values():
            _replace_parameters(optimizer, sharded)
        step = TrainingStep.of(engine)
        step.leaves.update({id(one.sharded_param): _leaf(one) for one in self._sharded_parameters()})
        step.exchanges.append(lambda parameters, whole: self.exchange())
        step.holding_back.append(self.exchange)
        self._step = step

    def _parts_to_wrap(self) -> list[nn.Module]:
        """The parts of the model that are put together by themselves, inner ones before outer ones."""
        if self._wraps is None:
            return _large_blocks(self.model)
        found = [part for part in self.model.modules() if part is not self.model and self._wraps(part)]
        if not found:
            raise ValueError(f"{self!r} found no part of {self._name} to wrap; 'auto' needs none.")
        return found[::-1]

    # ------------------------------------------------------------------------------------------------ training

    def choose_exchange(self) -> None:
        """Before a forward pass: its backward exchanges gradients unless more micro-batches of the group follow."""
        if self._parts:
            holds_back = more_micro_batches_follow(self._step) and not self.exchange_each_micro_batch
            self._parts[-1].set_requires_gradient_sync(not holds_back)
            if self.broadcast_buffers:
                broadcast_tensors(self.model.buffers())

    def exchange(self) -> None:
        """Exchange what is held back of a group's gradients, if it is: the group ends early, or is to be saved."""
        if self._holds_back():
            self._parts[-1].set_requires_gradient_sync(True)
            # What FSDP2 does when a backward is over; it has no other way to exchange what earlier ones have left.
            self._parts[-1]._get_fsdp_state()._root_post_backward_final_callback()

    def take_buffers_of_first_process(self) -> None:
        """Between epochs, all have the buffers of the first process, such as the statistics of batch normalisation."""
        if self._parts and self.broadcast_buffers:
            broadcast_tensors(self.model.buffers())

    def _holds_back(self) -> bool:
        return any(not group.reduce_grads for group in self._groups())

    def _drop_gradients(self) -> None:
        """Drop what an earlier run has held back, when an error stopped it within a group."""
        for one in self._sharded_parameters():
            if hasattr(one, "_unsharded_param"):
                one._unsharded_param.grad = one.unsharded_accumulated_grad = None

    # ------------------------------------------------------------------------------------------------ evaluation

    def _before_forward(self, part: nn.Module, arguments: Any) -> None:
        if part.training or torch.is_grad_enabled():
            if self._kept_whole:
                self._reshard()
        elif any(isinstance(parameter, DTensor) for parameter in part.parameters()):
            self._put_together()

    def _put_together(self) -> None:
        """Put all weights together until training goes on, so that evaluation needs nothing of other processes."""
        self._parts[-1].set_reshard_after_forward(False)
        self._kept_whole = True
        with torch.inference_mode(False), torch.no_grad():  # as those that training uses, or it could not use them
            for part in self._parts:
                part.unshard()

    def _reshard(self) -> None:
        for part in self._parts:
            part.reshard()
            is_model = part is self._parts[-1]
            after_forward = not is_model if self.reshard_after_forward is None else self.reshard_after_forward
            part.set_reshard_after_forward(after_forward, recurse=False)
        self._kept_whole = False

    def explain(self, engine: IgniteEngine, error: BaseException) -> None:
        """Say why a part of the model could not be called."""
        if self._parts and "mixed torch.Tensor and DTensor" in str(error):
            error.args = (
                f"The step used weights of {self._name} that are sharded, because it called a part of "
                "the model that is not wrapped by itself, or used a weight directly. Call the model, or name the class "
                f"of that part: FullySharded(model, wrap=[Part]). ({error})",
            )

    # ------------------------------------------------------------------------------------------------ FSDP2's own

    def _groups(self) -> Iterator[Any]:
        """What FSDP2 keeps for each part that has parameters of its own."""
        groups = (part._get_fsdp_state()._fsdp_param_group for part in self._parts)
        return (group for group in groups if group is not None)

    def _sharded_parameters(self) -> Iterator[Any]:
        """What FSDP2 keeps for each parameter."""
        return (one for group in self._groups() for one in group.fsdp_params)


def _as_function(wrap: Any) -> Callable[[nn.Module], bool] | None:
    """Tells of a module whether to wrap it; None for ``"auto"``."""
    if wrap == "auto":
        return None
    classes = (wrap,) if isinstance(wrap, type) else tuple(wrap) if isinstance(wrap, Iterable) else ()
    if classes and all(isinstance(one, type) and issubclass(one, nn.Module) for one in classes):
        return lambda module: isinstance(module, classes)
    if classes or not callable(wrap):
        raise TypeError(
            f"FullySharded wraps 'auto', classes of modules, or what a function says, but got wrap={wrap!r}."
        )
    function: Callable[[nn.Module], bool] = wrap
    return function


def _large_blocks(model: nn.Module) -> list[nn.Module]:
    """The items of containers with many parameters, none of which are tied to the rest of the model."""
    uses: dict[int, int] = {}
    for part in model.modules():
        for parameter in part.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1

    def found_in(module: nn.Module, is_item: bool) -> Iterator[nn.Module]:
        is_container = isinstance(module, (nn.Sequential, nn.ModuleList))
        parameters = list(module.parameters())
        is_large = sum(parameter.numel() for parameter in parameters) >= SMALLEST_BLOCK
        if is_item and not is_container and is_large and all(uses[id(parameter)] == 1 for parameter in parameters):
            yield module
        else:
            for child in module.children():
                yield from found_in(child, is_container)

    return list(dict.fromkeys(found_in(model, False)))


def _leaf(parameter: Any) -> Callable[[], torch.Tensor | None]:
    """Finds the whole parameter that computes, of which the loss's graph knows; None if it has never computed."""
    of = weakref.ref(parameter)
    return lambda: getattr(of(), "_unsharded_param", None)


def _replace_parameters(optimizer: torch.optim.Optimizer, sharded: dict[int, nn.Parameter]) -> None:
    """Put sharded parameters in the place of those that they were made from; state goes with its parameter."""
    for group in optimizer.param_groups:
        old = group["params"]
        group["params"] = [sharded.get(id(parameter), parameter) for parameter in old]
        if len({isinstance(parameter, DTensor) for parameter in group["params"]}) > 1 and "foreach" in group:
            group["foreach"] = group["fused"] = False  # they take parameters of one kind only
        for before, after in zip(old, group["params"], strict=True):
            if after is not before and before in optimizer.state:
                state = optimizer.state.pop(before)
                optimizer.state[after] = {
                    name: sharded_like(after, value) if _is_of(before, value) else value
                    for name, value in state.items()
                }


def _is_of(parameter: nn.Parameter, value: Any) -> bool:
    """Whether an entry of an optimizer's state belongs to the parameter element by element, unlike its step."""
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim() > 0
