"""Steps a learning-rate schedule.

Listens to:

- STARTED in MEASURE: forgets the values that an earlier run monitored.
- EPOCH_COMPLETED (or the event that is asked for) in DECIDE: steps the schedule; ``per="epoch"``.
- OPTIMIZER_STEP_COMPLETED and ITERATION_COMPLETED in DECIDE: steps it as often as the optimizer has made a step, at the
  second where no ``OptimizerStep`` makes it; ``per="step"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from ignite.engine import Engine as IgniteEngine
from torch.optim import lr_scheduler

from camshaft.engine.events import Events, StepEvents
from camshaft.engine.phases import Phase, events_in
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.monitor import Monitor
from camshaft.handlers.optimizer_step import OptimizerStep

__all__ = ["LRScheduler"]


class LRScheduler(Handler):
    """Steps a scheduler of ``torch.optim.lr_scheduler`` once an epoch, once an optimizer step, or on a monitored value.

    Args:
        scheduler: the scheduler.
        per: what the schedule counts: ``"epoch"``, as in most recipes and the default; ``"step"`` for one that is
            written in optimizer steps, such as ``OneCycleLR`` or a warm-up. A step counts when its optimizer has really
            made it: one that ``AMP("fp16")`` skips for an overflow does not, nor does that of another optimizer.
        monitor: for ``ReduceLROnPlateau``, the name of a metric in ``state.metrics`` or of an entry of what the step
            returns. Whether it should become less or more is the scheduler's own ``mode``. A value that was not made
            anew since the last time is not taken for another one without improvement.
        at: the event at which to step, instead of ``per``.

    Raises:
        TypeError: ``scheduler`` is none of torch's.
        ValueError: ``ReduceLROnPlateau`` without ``monitor`` or another scheduler with it; both ``per="step"`` and
            ``at``; when the run starts, if no ``OptimizerStep`` has its optimizer, or another schedule of this
            optimizer steps at the same event; after the first epoch, if nothing produces what is monitored.

    Example:
        >>> from camshaft import Engine
        >>> from camshaft.handlers import OptimizerStep
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> engine = Engine(lambda engine, batch: model(batch).square().mean())
        >>> schedule = LRScheduler(torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1))
        >>> state = engine.attach(schedule, OptimizerStep(optimizer)).run([torch.ones(4, 2)] * 3, max_epochs=5)
        >>> round(optimizer.param_groups[0]["lr"], 6)
        0.01
    """

    def __init__(
        self,
        scheduler: lr_scheduler.LRScheduler,
        per: Literal["epoch", "step"] = "epoch",
        *,
        monitor: str | None = None,
        at: Any = None,
    ) -> None:
        if not isinstance(scheduler, (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau)):
            raise TypeError(
                f"LRScheduler takes a scheduler of torch.optim.lr_scheduler, but got {scheduler!r}. One of Ignite's is "
                "attached by itself: engine.add_event_handler(Events.ITERATION_STARTED, scheduler). Of one that "
                "Accelerate has prepared, pass what it was prepared from, or step it in the step."
            )
        if per not in ("epoch", "step"):
            raise ValueError(f"A schedule steps per 'epoch' or per 'step', not per {per!r}; at= takes any event.")
        on_plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        if on_plateau and monitor is None:
            raise ValueError(
                "ReduceLROnPlateau watches a value: name it, as in LRScheduler(scheduler, monitor='val_loss')."
            )
        if monitor is not None and not on_plateau:
            raise ValueError(
                f"{type(scheduler).__name__} follows a schedule and no value: leave out monitor={monitor!r}, or use "
                "ReduceLROnPlateau."
            )
        if per == "step" and (at is not None or on_plateau):
            raise ValueError(
                "per='step' goes with neither at= nor ReduceLROnPlateau, whose value is not there in the middle of an "
                "iteration: leave out per and say at which event, such as at=Events.ITERATION_COMPLETED(every=100)."
            )
        self.scheduler = scheduler
        self.per = per
        self.monitor = None if monitor is None else Monitor(monitor)
        self._at_own_event = at is not None
        self._steps = _StepCount()
        self._loaded = False
        if per == "step":
            moments = StepEvents.OPTIMIZER_STEP_COMPLETED | Events.ITERATION_COMPLETED
            self.listens = (On(moments, Phase.DECIDE, "follow_optimizer"),)
        else:
            self.listens = (On(Events.EPOCH_COMPLETED if at is None else at, Phase.DECIDE, "step"),)
        if self.monitor is not None:
            self.listens = (On(Events.STARTED, Phase.MEASURE, "start"), *self.listens)

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        if self.per == "step":
            self._steps.count_those_of(self.scheduler.optimizer)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        self._steps.stop()

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        optimizer = self.scheduler.optimizer
        stepped = [own for step in handlers_of(engine) if isinstance(step, OptimizerStep) for own in step.optimizers]
        if stepped and not self._at_own_event and not any(own is optimizer for own in stepped):
            raise ValueError(
                f"{self!r} has an optimizer that no OptimizerStep on this engine steps. Make the scheduler with the "
                "optimizer that is given to OptimizerStep; if the step function steps this one itself, say when the "
                "schedule steps: at=Events.EPOCH_COMPLETED."
            )
        for other in handlers_of(engine):
            if isinstance(other, LRScheduler) and other is not self and other.scheduler.optimizer is optimizer:
                both = _events(self) & _events(other)
                if both:
                    raise ValueError(
                        f"{self!r} and {other!r} both change the learning rates of one optimizer at "
                        f"{min(both)}, where their order would matter. Join them with "
                        "torch.optim.lr_scheduler.SequentialLR or ChainedScheduler."
                    )

    def start(self, engine: IgniteEngine) -> None:
        """Forget the values of an earlier run where a new one begins."""
        if self.monitor is not None and engine.state.iteration == 0 and not self._loaded:
            self.monitor.reset()
        self._loaded = False

    def step(self, engine: IgniteEngine) -> None:
        """Step the schedule once, or tell it the value it watches if there is a new one."""
        if self.monitor is None:
            self.scheduler.step()
            return
        value = self.monitor.read(engine)
        if value is not None:
            self.scheduler.step(value)  # type: ignore[arg-type]  # of ReduceLROnPlateau

    def follow_optimizer(self) -> None:
        """Step the schedule for each step that its optimizer has made since."""
        while self._steps.new:
            self._steps.new -= 1
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        state = {"scheduler": self.scheduler.state_dict()}
        return state if self.monitor is None else {**state, "monitor": self.monitor.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.scheduler.load_state_dict(dict(state_dict["scheduler"]))
        if self.monitor is not None and "monitor" in state_dict:
            self.monitor.load_state_dict(state_dict["monitor"])
        self._loaded = True


class _StepCount:
    """Counts the steps that an optimizer really makes; not the handler, so that the optimizer does not hold that."""

    def __init__(self) -> None:
        self.new = 0
        self._hook: Any = None

    def count_those_of(self, optimizer: torch.optim.Optimizer) -> None:
        self.new = 0
        self._hook = optimizer.register_step_post_hook(self._count)

    def stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _count(self, *_: Any) -> None:
        self.new += 1


def _events(handler: LRScheduler) -> set[str]:
    return {str(event.name) for on in handler.listens if on.phase == Phase.DECIDE for event in events_in(on.event)}
