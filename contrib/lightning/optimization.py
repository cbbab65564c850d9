"""How a module's loss reaches its weights: what ``configure_optimizers`` returns, and who makes the steps.

- automatic: :class:`ModuleStep`, an ``OptimizerStep`` that also calls the module's hooks;
- by hand (``automatic_optimization = False``): :class:`ManualOptimization`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from camshaft.contrib.lightning.hooks import Hooks, is_overridden
from camshaft.contrib.lightning.old_hooks import backward_with, makes_step_after_backward, step_with, zero_grad_with
from camshaft.contrib.lightning.schedules import LRSchedulerConfig, schedule_configs
from camshaft.engine.events import StepEvents
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.optimizer_step import OptimizerStep

__all__ = ["Configured", "LightningOptimizer", "ManualOptimization", "ModuleStep", "configured"]


class Configured(NamedTuple):
    """What ``configure_optimizers`` came to.

    Attributes:
        optimizers: of torch.
        schedules: with how often each is stepped.
        frequencies: for how many batches each optimizer steps before the next one's turn; empty: all in every batch.
    """

    optimizers: list[Optimizer]
    schedules: list[LRSchedulerConfig]
    frequencies: list[int]


def configured(returned: Any, *, automatic: bool, monitor: str | None = None) -> Configured:
    """What ``configure_optimizers`` returned, in any of its forms.

    Args:
        returned: an optimizer; a list or tuple of them; a mapping with ``"optimizer"`` and ``"lr_scheduler"``, or
            several; two lists, of optimizers and of schedulers; None.
        automatic: whether the schedules are stepped for the user.
        monitor: what a schedule monitors that does not say so itself.

    Raises:
        ValueError: it has none of these forms.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        >>> [config.interval for config in configured(([optimizer], [schedule]), automatic=True).schedules]
        ['epoch']
    """
    optimizers: list[Any] = []
    schedules: list[Any] = []
    frequencies: list[int] = []
    if returned is None:
        pass
    elif _is_optimizer(returned):
        optimizers = [returned]
    elif isinstance(returned, (list, tuple)) and all(map(_is_optimizer, returned)):
        optimizers = list(returned)
    elif _are_mappings(returned):
        several = [returned] if isinstance(returned, Mapping) else returned
        optimizers, schedules, frequencies = _in_mappings(several, monitor)
    elif _is_two_lists(returned):
        optimizers = list(returned[0])
        schedules = list(returned[1]) if isinstance(returned[1], (list, tuple)) else [returned[1]]
    else:
        raise ValueError(
            f"configure_optimizers() returned {returned!r}. It may return an optimizer, a list of them, a mapping with "
            "'optimizer' and 'lr_scheduler', a list of such mappings, two lists (optimizers and schedulers), or None."
        )
    optimizers = [one.optimizer if isinstance(one, LightningOptimizer) else one for one in optimizers]
    configs = schedule_configs(schedules, monitor, automatic=automatic)
    for config in configs:
        if not any(getattr(config.scheduler, "optimizer", optimizer) is optimizer for optimizer in optimizers):
            raise ValueError(
                f"configure_optimizers() returned the scheduler {config.scheduler!r} but not its optimizer."
            )
    return Configured(optimizers, configs, frequencies)


def _is_optimizer(thing: Any) -> bool:
    return isinstance(thing, (Optimizer, LightningOptimizer)) or (
        not isinstance(thing, (Mapping, list, tuple)) and hasattr(thing, "step") and hasattr(thing, "param_groups")
    )


def _is_two_lists(returned: Any) -> bool:
    two = isinstance(returned, (list, tuple)) and len(returned) == 2
    return two and isinstance(returned[0], (list, tuple)) and all(map(_is_optimizer, returned[0]))


def _are_mappings(returned: Any) -> bool:
    several = [returned] if isinstance(returned, Mapping) else returned
    return isinstance(several, (list, tuple)) and all(isinstance(one, Mapping) for one in several)


def _in_mappings(returned: Any, monitor: str | None) -> tuple[list[Any], list[Any], list[int]]:
    """The optimizers, schedules and frequencies in mappings, one for each optimizer."""
    optimizers = [_optimizer_in(one) for one in returned]
    schedules = [
        {"monitor": one.get("monitor", monitor), **_as_mapping(one["lr_scheduler"])}
        for one in returned
        if one.get("lr_scheduler") is not None
    ]
    frequencies = [one["frequency"] for one in returned if one.get("frequency") is not None]
    if frequencies and len(frequencies) != len(optimizers):
        raise ValueError("configure_optimizers() gave a frequency to some optimizers only: give one to each.")
    return optimizers, schedules, frequencies


def _optimizer_in(returned: Mapping[str, Any]) -> Any:
    if "optimizer" not in returned:
        raise ValueError(f"configure_optimizers() returned {dict(returned)!r}, which has no 'optimizer'.")
    return returned["optimizer"]


def _as_mapping(schedule: Any) -> dict[str, Any]:
    return dict(schedule) if isinstance(schedule, Mapping) else {"scheduler": schedule}


class LightningOptimizer:
    """An optimizer as a module gets it from ``self.optimizers()``.

    Args:
        optimizer: of torch.

    Attributes:
        steps: how many steps it has made.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.steps = 0
        self.make_step: Callable[[LightningOptimizer, Callable[[], Any] | None], Any] | None = None
        self._module: Any = None

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of torch."""
        return self._optimizer

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Make a step; ``closure``, where there is one, computes the loss and its gradients first."""
        if self.make_step is None:
            return self._optimizer.step(closure, **kwargs)
        return self.make_step(self, closure)

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Within this context only its own parameters require gradients.

        Args:
            sync_grad: accepted; gradients are exchanged by the last backward of each step.
        """
        with self._module.toggled_optimizer(self):
            yield

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_optimizer"], name)

    def __repr__(self) -> str:
        return f"LightningOptimizer({self._optimizer!r})"


class ModuleStep(OptimizerStep):
    """Carries a module's loss on to its weights, and calls its hooks and those of the callbacks on the way.

    Gradients are dropped before the first backward of a group, and the last batch of an epoch completes its group.

    Args:
        trainer: that trains.
        hooks: of the run.
        optimizer: as the module gets it.
        index: its place among all.
    """

    def __init__(self, trainer: Any, hooks: Hooks, optimizer: LightningOptimizer, index: int = 0) -> None:
        super().__init__(optimizer.optimizer)
        module = hooks.module
        self.index = index
        self.trainer = trainer
        self.optimizer = optimizer
        self.before_zero_grad = hooks.of("on_before_zero_grad")
        self.zero_grad: Callable[..., Any] | None = None
        if is_overridden("optimizer_zero_grad", module):
            self.zero_grad = zero_grad_with(module.optimizer_zero_grad, index)
        self.before_backward = hooks.of("on_before_backward")
        self.backward: Callable[[torch.Tensor], Any] | None = None
        if is_overridden("backward", module):
            self.backward = backward_with(module.backward, trainer, optimizer.optimizer, index)
        self.after_backward = hooks.of("on_after_backward")
        self.divides_by_all = False  # an incomplete group by the size of a complete one, as Lightning does

    def update(self, engine: Any, loss: torch.Tensor, weight: torch.Tensor | float | None) -> None:
        self.accumulate(engine, loss)
        if self.completes_group_now:
            self._make_step(engine)

    @property
    def completes_group_now(self) -> bool:
        """Whether the batch whose gradients came last is the last of its group."""
        return self._micro_batches == self._step.group_size or (self._micro_batches > 0 and self.trainer.is_last_batch)

    def accumulate(self, engine: Any, loss: torch.Tensor) -> None:
        """Backward of one batch."""
        if self._micro_batches == 0:
            self.drop_gradients()
        for hook in self.before_backward:
            hook(loss)
        if self._backward_started:
            self._backward_started.fire(engine)
        seed = None if self._step.group_size == 1 and self.scaler is None else self._seed(loss, None)
        if self.backward:
            self.backward(loss if seed is None else loss * seed)
        elif len(self._step.backwards) == 1:
            loss.backward(seed)
        else:
            loss.backward(seed, inputs=[parameter for parameter in self.parameters if parameter.requires_grad])
        if self._backward_completed:
            self._backward_completed.fire(engine)
        for hook in self.after_backward:
            hook()
        self._micro_batches += 1

    def drop_gradients(self) -> None:
        """Before the first backward of a group."""
        for hook in self.before_zero_grad:
            hook(self.optimizers[0])
        if self.zero_grad:
            self.zero_grad(self.trainer.current_epoch, self.trainer.batch_idx, self.optimizers[0])
        else:
            self.optimizers[0].zero_grad()

    def step_with_closure(self, engine: Any, evaluate: Callable[[], torch.Tensor | None]) -> None:
        """One batch of a module with an ``optimizer_step`` of its own, or an optimizer that evaluates several times.

        Args:
            engine: that trains.
            evaluate: computes the loss.
        """
        self._step.called_by_hand = True
        closure = _Closure(self, engine, evaluate)
        if self._micro_batches + 1 < self._step.group_size and not self.trainer.is_last_batch:
            closure.accumulate()
            return
        self.steps += 1
        engine.state.optimizer_step = self.steps
        self.optimizer.make_step = self._make_step_with
        try:
            self._call_optimizer_step(closure)
        finally:
            self.optimizer.make_step = self._step.stepping = None
        torch.clear_autocast_cache()
        self._micro_batches = 0
        self.optimizer.steps = engine.state.optimizer_step = self.steps
        if self._step_completed:
            self._step_completed.fire(engine)

    def _call_optimizer_step(self, closure: _Closure) -> None:
        module = self.trainer.lightning_module
        optimizer_step = module.optimizer_step
        if makes_step_after_backward(optimizer_step):
            closure.evaluate_ahead()
            optimizer_step = step_with(optimizer_step, self.index)
        optimizer_step(self.trainer.current_epoch, self.trainer.batch_idx, self.optimizer, closure)
        if not closure.evaluated:
            raise RuntimeError(
                f"{type(module).__name__}.optimizer_step() has not computed the loss: it must call "
                "optimizer.step(closure=optimizer_closure), or optimizer_closure() itself."
            )

    def _make_step_with(self, optimizer: LightningOptimizer, closure: Callable[[], Any] | None) -> Any:
        """What ``optimizer.step(closure)`` does from within ``optimizer_step``."""

        def evaluate() -> Any:
            loss = closure() if closure is not None else None
            if self._micro_batches:  # not where training_step returned None
                self._make_ready()
            return loss

        if self.scaler is None:
            return optimizer.optimizer.step(evaluate)
        loss = evaluate()
        if not self._micro_batches or not self._scaled_step(self.scaler):
            self.steps -= 1
        return loss

    def _make_ready(self) -> None:
        """Make the gradients of a group whole, and have them clipped."""
        engine: Any = self._engine() if self._engine is not None else None
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizers[0])
        self._normalise(self._step)
        self._step.stepping = self
        if self._step_started:
            self._step_started.fire(engine)

    def _make_step(self, engine: Any, closure: Callable[[], torch.Tensor] | None = None) -> None:
        super()._make_step(engine, closure)
        self.optimizer.steps = self.steps

    def _normalise(self, step: TrainingStep) -> None:
        if not self.divides_by_all:
            super()._normalise(step)

    def _zero_grad(self) -> None:
        """Not after a step: gradients stay until the next group begins."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.steps = self.steps


class _Closure:
    """Computes the loss of a batch and its gradients, for an optimizer that may ask for them several times.

    Args:
        step: that carries the loss on.
        engine: that trains.
        evaluate: computes the loss.

    Attributes:
        evaluated: whether it was called.
    """

    def __init__(self, step: ModuleStep, engine: Any, evaluate: Callable[[], torch.Tensor | None]) -> None:
        self.evaluated = False
        self._step = step
        self._engine = engine
        self._evaluate = evaluate
        self._micro_batches = step._micro_batches
        self._ahead: list[Any] = []

    def __call__(self) -> Any:
        if self._ahead:
            return self._ahead.pop()
        self.evaluated = True
        self._step._micro_batches = self._micro_batches  # a further evaluation starts with new gradients
        loss = self.accumulate()
        if loss is None and self._micro_batches == 0:
            self._step.drop_gradients()  # lest the optimizer use those of the step before once more
        return loss

    def accumulate(self) -> Any:
        """The loss of the batch, after its backward."""
        with torch.enable_grad():
            loss = self._evaluate()
        if loss is not None:
            with torch.autocast(loss.device.type, enabled=False):
                self._step.accumulate(self._engine, loss)
        return loss

    def evaluate_ahead(self) -> None:
        """Do now what the next call is to give."""
        self._ahead.append(self())


class ManualOptimization:
    """Backward and steps where the module decides when: ``self.manual_backward(loss)`` and ``optimizer.step()``.

    Args:
        hooks: of the run.
        engine: that trains, whose ``StepEvents`` are fired.
        scaler: for 16-bit precision.
    """

    def __init__(self, hooks: Hooks, engine: Any, scaler: torch.amp.GradScaler | None) -> None:
        self.module = hooks.module
        self.scaler = scaler
        self._engine = engine
        self._moments = TrainingStep.of(engine).moments
        self._before_backward = hooks.of("on_before_backward")
        self._after_backward = hooks.of("on_after_backward")
        self._before_step = hooks.of("on_before_optimizer_step")
        self._has_backward = is_overridden("backward", self.module)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward of one loss."""
        for hook in self._before_backward:
            hook(loss)
        self._fire(StepEvents.BACKWARD_STARTED)
        scaled: torch.Tensor = loss if self.scaler is None else self.scaler.scale(loss)
        with torch.autocast(loss.device.type, enabled=False):
            if self._has_backward:
                self.module.backward(scaled, *args, **kwargs)
            else:
                scaled.backward(*args, **kwargs)
        self._fire(StepEvents.BACKWARD_COMPLETED)
        for hook in self._after_backward:
            hook()

    def make_step(self, optimizer: LightningOptimizer, closure: Callable[[], Any] | None) -> Any:
        """The step of one optimizer."""
        torch_optimizer = optimizer.optimizer

        def evaluate() -> Any:
            with torch.enable_grad():
                loss = closure() if closure is not None else None
            if self.scaler is not None:
                self.scaler.unscale_(torch_optimizer)
            for hook in self._before_step:
                hook(torch_optimizer)
            self._fire(StepEvents.OPTIMIZER_STEP_STARTED)
            return loss

        if self.scaler is not None:
            loss = evaluate()
            self.scaler.step(torch_optimizer)
            self.scaler.update()
        else:
            loss = torch_optimizer.step(evaluate)
        optimizer.steps += 1
        self._engine.state.optimizer_step = optimizer.steps
        self._fire(StepEvents.OPTIMIZER_STEP_COMPLETED)
        torch.clear_autocast_cache()
        return loss

    def _fire(self, event: StepEvents) -> None:
        moment = self._moments[event]
        if moment:
            moment.fire(self._engine)
