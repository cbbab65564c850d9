"""Backward and the optimizers' step.

Puts itself behind the engine's step, which then returns the loss, and listens to:

- STARTED in PREPARE: drops gradients that an earlier run left.
- EPOCH_COMPLETED, COMPLETED in PREPARE: a group of micro-batches that the data left incomplete makes its step.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.distributed import world_size
from camshaft.engine.events import Events, StepEvents
from camshaft.engine.phases import Phase
from camshaft.engine.sharded import part_here, sharded_like
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.handler import Handler, On, handlers_of

try:
    from torch.autograd.graph import _engine_run_backward as _run_backward
except ImportError:  # torch promises nothing about it
    _run_backward = None  # type: ignore[assignment]

__all__ = ["OptimizerStep", "optimizer_steps_of", "refuse_reevaluation"]


class OptimizerStep(Handler):
    """Carries the loss that the step returns on to the weights: backward, the optimizers' ``step()``, ``zero_grad()``.

    The step returns a scalar loss, or a mapping with ``"loss"`` whose other entries are at hand in ``state.output``, or
    None to skip a batch. ``GradientAccumulation``, ``GradientClipping`` and ``AMP`` change how it is done.

    A step with several optimizers and losses (GANs, reinforcement learning) is given one ``OptimizerStep`` for each and
    calls them itself; all that is attached then serves each of them. The backward of each reaches only its own
    parameters.

    An optimizer whose ``step()`` evaluates the loss several times (LBFGS) is given the returned loss first and then
    calls the step anew for the same batch; the moments of a step and ``state.output`` are of the first evaluation.

    Args:
        optimizers: the optimizers that make a step for one loss.

    Attributes:
        steps: how many steps it has made, without those that ``AMP("fp16")`` skipped because a gradient overflowed;
            ``state.optimizer_step`` is that of the one that stepped last.
        scaler: scales the loss for fp16; set by ``AMP``.
        reevaluates: whether its optimizer evaluates the loss several times a step.

    Raises:
        TypeError: no optimizer, or something else.
        ValueError: LBFGS or the like beside another optimizer; one whose gradients Accelerate scales or shards; it is
            attached to another engine; when the run starts, if two of an engine share parameters.

    Example:
        >>> from camshaft import Engine
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: model(batch).square().mean())
        >>> engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
        <Engine of <lambda>, 4 subscribers>
        >>> state = engine.run([torch.ones(4, 2)] * 5)
        >>> state.optimizer_step, state.output.requires_grad
        (5, False)
    """

    listens = (
        On(Events.STARTED, Phase.PREPARE, "begin"),
        On(Events.EPOCH_COMPLETED | Events.COMPLETED, Phase.PREPARE, "finish_group"),
    )

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TypeError(f"OptimizerStep takes optimizers of torch.optim, but got {optimizer!r}.")
        optimizers = tuple(map(_unprepared, optimizers))
        if not optimizers:
            raise TypeError("OptimizerStep needs an optimizer: OptimizerStep(torch.optim.AdamW(model.parameters())).")
        self.optimizers = optimizers
        self.scaler: torch.amp.GradScaler | None = None
        self.steps = 0
        self.reevaluates = any(map(_requires_closure, optimizers))
        if self.reevaluates and len(optimizers) > 1:
            raise ValueError(
                f"{self!r}: an optimizer whose step evaluates the loss several times, such as LBFGS, must be the only "
                "one, because the others would change the weights under it."
            )
        self._micro_batches = 0  # in the group under way
        self._weight: Any = 0.0  # of the group under way
        self._last_seed: torch.Tensor | None = None
        self._engine: weakref.ref[IgniteEngine] | None = None

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters of its optimizers."""
        return [
            parameter
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]

    @property
    def completes_group(self) -> bool:
        """Whether the next micro-batch is the last of its group."""
        return self._micro_batches + 1 == self._step.group_size

    def attach(self, engine: IgniteEngine) -> None:
        other = self._engine() if self._engine is not None else None
        if other is not None and other is not engine:
            raise ValueError(f"{self!r} is attached to another engine; detach it there, or make a second one.")
        super().attach(engine)
        self._step = TrainingStep.of(engine)
        self._step.backwards.append(self)
        self._step.called_by_hand = False
        self._engine = weakref.ref(engine)
        moments = self._step.moments
        self._backward_started = moments[StepEvents.BACKWARD_STARTED]
        self._backward_completed = moments[StepEvents.BACKWARD_COMPLETED]
        self._step_started = moments[StepEvents.OPTIMIZER_STEP_STARTED]
        self._step_completed = moments[StepEvents.OPTIMIZER_STEP_COMPLETED]

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        self._step.backwards.remove(self)
        self._engine = self.scaler = None

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        own = {id(parameter) for parameter in self.parameters}
        for other in optimizer_steps_of(engine):
            shared = 0 if other is self else sum(id(parameter) in own for parameter in other.parameters)
            if shared:
                raise ValueError(
                    f"{self!r} and {other!r} share {shared} parameter(s), which would be stepped twice. Give each "
                    "parameter to one of them, or all optimizers of one loss to one: OptimizerStep(a, b)."
                )
        function = engine._process_function
        function = function.function if isinstance(function, TrainingStep) else function
        if _is_ignites_training_step(function):
            raise ValueError(
                f"{self!r} is attached to a trainer of Ignite's create_supervised_trainer, whose step does its own "
                "backward() and optimizer.step(): leave OptimizerStep out, or write the step as a function that "
                "returns the loss."
            )

    def __call__(self, loss: torch.Tensor, weight: torch.Tensor | float | None = None) -> None:
        """Do the same by hand, from within the step: backward of ``loss`` and, if its group is whole, the step.

        Args:
            loss: a scalar with its graph.
            weight: of this micro-batch in its group, where ``GradientAccumulation`` weighs.

        Raises:
            RuntimeError: it is not attached to an engine.
            ValueError: its optimizer evaluates the loss several times, or the weight is missing.
        """
        engine = self._engine() if self._engine is not None else None
        if engine is None:
            raise RuntimeError(f"{self!r} is called in a step but attached to no engine: engine.attach(...) it first.")
        if self.reevaluates:
            raise ValueError(
                f"{self!r} evaluates the loss several times in one step, so it cannot be called by hand with one "
                "value: let the step return the loss instead."
            )
        if weight is None and self._step.weight_key is not None:
            raise ValueError(f"{self!r} is called without the weight that GradientAccumulation needs: pass weight=…")
        self._step.called_by_hand = True
        with torch.autocast(loss.device.type, enabled=False):  # backward runs outside of the step's autocast
            self.update(engine, loss, weight)
        torch.clear_autocast_cache()  # which holds the weights as they were; the step may go on to use them

    def update(self, engine: Any, loss: torch.Tensor, weight: torch.Tensor | float | None) -> None:
        """Backward of one micro-batch, and the optimizers' step if it completes its group."""
        step = self._step
        if self._backward_started:
            self._backward_started.fire(engine)
        seed = self._seed(loss, weight)
        if len(step.backwards) == 1:
            _backward(loss, seed)
        else:  # a generator's loss must leave no gradients in the discriminator
            loss.backward(seed, inputs=self._leaves())
        if self._backward_completed:
            self._backward_completed.fire(engine)
        self._micro_batches += 1
        if self._micro_batches == step.group_size:
            self._make_step(engine, self._closure(engine, loss) if self.reevaluates else None)

    def begin(self, engine: IgniteEngine) -> None:
        """Start with no gradients: what an earlier run left, when an error stopped it within a group, is dropped."""
        self._micro_batches, self._weight = 0, 0.0
        self._last_seed = None  # the size of a group may have changed
        self._zero_grad()

    def finish_group(self, engine: IgniteEngine) -> None:
        """Make the step of a group that is incomplete when the epoch ends, normalised by what it holds."""
        if self._micro_batches:
            self._make_step(engine)

    def _leaves(self) -> list[torch.Tensor]:
        """The tensors in a loss's graph that stand for the parameters: themselves, unless they are sharded."""
        leaves = self._step.leaves
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        found = [leaves[id(one)]() if id(one) in leaves else one for one in trained]
        return [leaf for leaf in found if leaf is not None]

    def _seed(self, loss: torch.Tensor, weight: torch.Tensor | float | None) -> torch.Tensor:
        """The gradient to start backward from: what dividing or scaling the loss would do, without a node for it."""
        step = self._step
        seed = self._last_seed
        if seed is None or (seed.dtype, seed.device, seed.shape) != (loss.dtype, loss.device, loss.shape):
            seed = self._last_seed = torch.full_like(loss, 1.0, requires_grad=False)
            seed /= step.group_size if step.weight_key is None else 1
        if weight is not None:
            self._weight = self._weight + weight
            seed = seed * weight
        return seed if self.scaler is None else self.scaler.scale(seed).to(loss.dtype)

    def _make_step(self, engine: Any, closure: Callable[[], torch.Tensor] | None = None) -> None:
        step = self._step
        for exchange in step.exchanges:
            exchange(self.parameters, self._micro_batches == step.group_size)
        if self.scaler is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        self._normalise(step)
        self._micro_batches = 0
        self.steps += 1
        engine.state.optimizer_step = self.steps
        self.step_weights(engine, lambda: self._step_optimizers(engine, closure))

    def step_weights(self, engine: Any, step_optimizers: Callable[[], None]) -> None:
        """Call what comes before a step, such as clipping, then ``step_optimizers``, and drop the gradients.

        This is the part of a step that ``CUDAGraph`` records, with the optimizers' steps in a form of its own.
        """
        self._step.stepping = self
        if self._step_started:
            self._step_started.fire(engine)
        step_optimizers()
        self._step.stepping = None
        self._zero_grad()

    def _step_optimizers(self, engine: Any, closure: Callable[[], torch.Tensor] | None) -> None:
        """Let each optimizer make its step, and call what listens to that, unless a gradient has overflowed."""
        if self.scaler is not None and not self._scaled_step(self.scaler):
            self.steps -= 1
            engine.state.optimizer_step = self.steps
            return
        if self.scaler is None:
            for optimizer in self.optimizers:
                optimizer.step() if closure is None else optimizer.step(closure)  # type: ignore[arg-type]
        if self._step_completed:
            self._step_completed.fire(engine)

    def _scaled_step(self, scaler: torch.amp.GradScaler) -> bool:
        """Make the step unless a gradient overflowed, and adapt the scale; tells whether any optimizer stepped."""
        stepped: list[torch.optim.Optimizer] = []
        for optimizer in self.optimizers:
            if not any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"]):
                continue  # all of its parameters are frozen, which torch refuses
            hook = optimizer.register_step_post_hook(lambda optimizer, *_: stepped.append(optimizer))
            scaler.step(optimizer)
            hook.remove()
        scaler.update()
        return bool(stepped)

    def _closure(self, engine: Any, loss: torch.Tensor) -> Callable[[], torch.Tensor]:
        """What the optimizer calls for the loss and its gradients: those of now are known already."""
        known = [loss.detach()]

        def closure() -> torch.Tensor:
            if known:
                return known.pop()
            self._zero_grad()
            loss = self._step.loss_again(engine)
            loss.backward()
            return loss.detach()

        return closure

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            if getattr(optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad:
                optimizer.zero_grad()
                continue
            # The same as torch's own, without its mark for the profiler, which takes ten times as long.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _normalise(self, step: TrainingStep) -> None:
        """Turn the sum over the group into its mean: over the weights, or over fewer micro-batches than expected."""
        if step.weight_key is not None:
            factor = self._one_by_weight(step)
            self._weight = 0.0
        elif self._micro_batches != step.group_size:
            factor = step.group_size / self._micro_batches
        else:
            return
        gradients = [part_here(parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def _one_by_weight(self, step: TrainingStep) -> Any:
        """What to multiply the weighted sum over the group with; zero where nothing in it has a weight.

        With several processes the sum is by now the mean over them, so it is divided by the mean of their weights.
        """
        weight = self._weight
        if step.exchanges:
            weight = torch.as_tensor(weight, dtype=torch.float64, device=self.parameters[0].device) / world_size()
            dist.all_reduce(weight)
        if isinstance(weight, torch.Tensor):  # nobody waits to know its value
            return torch.where(weight == 0, 0.0, 1 / weight)
        return 1 / weight if weight else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The number of steps and, within a group of micro-batches, what is added up so far."""
        state: dict[str, Any] = {"steps": self.steps}
        if self._micro_batches:
            for bring_to_parameters in self._step.holding_back:
                bring_to_parameters()
            state["micro_batches"], state["weight"] = self._micro_batches, self._weight
            state["gradients"] = [parameter.grad for parameter in self.parameters]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.steps = state_dict["steps"]
        self._micro_batches = state_dict.get("micro_batches", 0)
        self._weight = state_dict.get("weight", 0.0)
        gradients = state_dict.get("gradients", [None] * len(self.parameters))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            own = None if gradient is None else sharded_like(parameter, gradient)
            parameter.grad = None if own is None else own.to(parameter.device, copy=True)
        engine: Any = self._engine() if self._engine is not None else None
        if engine is not None:
            engine.state.optimizer_step = self.steps


def optimizer_steps_of(engine: IgniteEngine) -> list[OptimizerStep]:
    """The ``OptimizerStep`` handlers attached to an engine.

    Example:
        >>> from camshaft import Engine
        >>> optimizer_steps_of(Engine(lambda engine, batch: None))
        []
    """
    return [handler for handler in handlers_of(engine) if isinstance(handler, OptimizerStep)]


def refuse_reevaluation(handler: Handler, engine: IgniteEngine) -> None:
    """Refuse optimizers that evaluate the loss several times a step, for a handler that needs its gradients once.

    Raises:
        ValueError: there is one.
    """
    for step in optimizer_steps_of(engine):
        if step.reevaluates:
            raise ValueError(
                f"{handler!r} does not go with {type(step.optimizers[0]).__name__}, which evaluates the loss and its "
                "gradients several times in one step. Leave it out, or take another optimizer."
            )


def _backward(loss: torch.Tensor, seed: torch.Tensor) -> None:
    """``loss.backward(seed)``, straight to autograd's engine: on the way torch looks for kinds of input not met here.

    That is a third of the backward of a tiny model, and nothing beside that of a large one.
    """
    if _run_backward is None or type(loss) is not torch.Tensor:
        loss.backward(seed)
    else:
        _run_backward((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _unprepared(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer itself, of one that Accelerate has prepared: the wrapper's part is done here."""
    if not type(optimizer).__module__.startswith("accelerate."):
        return optimizer
    inner: Any = getattr(optimizer, "optimizer", None)
    if type(optimizer).__name__ != "AcceleratedOptimizer" or getattr(optimizer, "scaler", None) is not None:
        raise ValueError(
            f"OptimizerStep cannot do the backward for a {type(optimizer).__name__} whose gradients Accelerate scales "
            "or shards. Let the step do accelerator.backward(loss) and optimizer.step() itself and leave OptimizerStep "
            "out, or make the Accelerator without mixed_precision='fp16' and attach AMP('fp16')."
        )
    prepared: torch.optim.Optimizer = inner
    return prepared


def _is_ignites_training_step(function: Any) -> bool:
    name = getattr(function, "__qualname__", "")
    return getattr(function, "__module__", "") == "ignite.engine" and name.startswith("supervised_training_step")


def _requires_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
