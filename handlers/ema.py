"""An exponential moving average of a model's weights.

Listens to:

- STARTED in MEASURE: starts the averages, where the model is by then.
- OPTIMIZER_STEP_COMPLETED in MEASURE: takes the new weights into the averages.
- ITERATION_COMPLETED in MEASURE: does so where no ``OptimizerStep`` is attached and the step function makes its own
  ``optimizer.step()``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine.events import Events, StepEvents
from camshaft.engine.phases import Phase
from camshaft.engine.sharded import is_sharded, part_here, reshard, sharded_like, whole_copy
from camshaft.engine.training_step import TrainingStep
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.optimizer_step import OptimizerStep

__all__ = ["EMA", "unwrapped"]


class EMA(Handler):
    """Keeps an exponential moving average of a model's weights, which often predicts better than the weights do.

    After each optimizer step ``average = decay * average + (1 - decay) * weight``; the first average is the weights
    that the run starts from. The averages of bfloat16 and float16 weights are kept in float32, where small changes do
    not round to nothing. What is frozen or tied in the model is so in the averages.

    Averaging iterates: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on
    Control and Optimization 30(4), 1992.

    Args:
        model: the model that is trained, compiled or not, wrapped for distributed training or not.
        decay: of the average at each optimizer step, in ``(0, 1)``; it reaches back ``1 / (1 - decay)`` steps.
        warmup: as long as fewer steps were made than that, take the plain mean of the weights after each of them
            (Polyak and Juditsky's average), so that the untrained weights play no part. Without it, at a decay of
            0.999, they still are 61 % of the average after 500 steps.
        buffers: ``"copy"`` takes the model's buffers (such as the statistics of batch normalisation) as they are;
            ``"average"`` averages those of floating point as well.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: a decay outside ``(0, 1)`` or an unknown way with buffers; when the run starts, if no
            ``OptimizerStep`` on the engine trains the model.

    Example:
        >>> from camshaft import Engine
        >>> from camshaft.handlers import OptimizerStep
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> engine = Engine(lambda engine, batch: -model(batch).mean())
        >>> ema = EMA(model, decay=0.5)
        >>> engine = engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=1.0)), ema)
        >>> state = engine.run([torch.ones(1, 1)] * 2)
        >>> with ema.applied():
        ...     model.weight.item()
        1.25
        >>> model.weight.item()
        2.0
    """

    listens = (
        On(Events.STARTED, Phase.MEASURE, "start"),
        On(StepEvents.OPTIMIZER_STEP_COMPLETED, Phase.MEASURE, "follow_optimizer"),
        On(Events.ITERATION_COMPLETED, Phase.MEASURE, "follow_iteration"),
    )

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        buffers: Literal["copy", "average"] = "copy",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"EMA averages the weights of a torch.nn.Module, but got {model!r}.")
        if not 0 < decay < 1:
            raise ValueError(f"The decay of an EMA lies between 0 and 1, such as 0.999, but is {decay!r}.")
        if buffers not in ("copy", "average"):
            raise ValueError(f"EMA can 'copy' the buffers or 'average' them, not {buffers!r}.")
        self.model = unwrapped(model)
        self.decay = decay
        self.warmup = warmup
        self.buffers = buffers
        self.updates = 0
        self._averages: dict[str, torch.Tensor] = {}
        # Averages and weights of one kind, and whether these need neither be converted nor looked for in their shards.
        self._groups: list[tuple[list[torch.Tensor], list[torch.Tensor], bool]] = []
        self._module: nn.Module | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._follows: tuple[OptimizerStep, ...] = ()  # those that train the model
        self._by_iteration = False
        self._applied = 0

    # ------------------------------------------------------------------------------------------------ during a run

    def start(self, engine: IgniteEngine) -> None:
        """Start from the weights where a new run begins, from what was loaded or kept where one goes on."""
        if self._loaded is None and (engine.state.iteration == 0 or not self._averages):
            self.updates = 0
            self._averages = {}
        self._make_ready(from_weights=True)
        self._training_step = TrainingStep.of(engine)
        steps = [handler for handler in handlers_of(engine) if isinstance(handler, OptimizerStep)]
        weights = {id(weight) for weight in self.model.parameters()}
        self._by_iteration = not steps
        self._follows = tuple(step for step in steps if any(id(weight) in weights for weight in step.parameters))
        if steps and not self._follows:
            raise ValueError(
                f"{self!r} averages a model of which no OptimizerStep on this engine steps a parameter, so its "
                "averages would never change. Give EMA the model that is trained, or its optimizer to an OptimizerStep."
            )

    def follow_optimizer(self) -> None:
        """Take in the weights after the step of an ``OptimizerStep`` that trains the model."""
        if self._training_step.stepping in self._follows:
            self.update()

    def follow_iteration(self) -> None:
        """Take in the weights after an iteration of a step that steps its optimizer itself."""
        if self._by_iteration:
            self.update()

    def update(self) -> None:
        """Take the model's present weights into the averages."""
        if self._applied:
            raise RuntimeError(
                "The model was trained within ema.applied(), where its weights are the averages: what it learns would "
                "be lost at the end of it. Only evaluate there."
            )
        self._make_ready()
        decay = min(self.decay, self.updates / (self.updates + 1)) if self.warmup else self.decay
        with torch.no_grad():
            for averages, weights, as_they_are in self._groups:
                if as_they_are:
                    torch._foreach_lerp_(averages, weights, 1 - decay)
                else:
                    ours = [part_here(average) for average in averages]
                    torch._foreach_lerp_(ours, [part_here(weight).to(ours[0].dtype) for weight in weights], 1 - decay)
        self.updates += 1
        if self._module is not None:
            self._refresh_module()

    # ------------------------------------------------------------------------------------------------ the averages

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model's weights are the averages; afterwards they are what they were, to the bit.

        The values are exchanged in place, so whatever holds on to the weights (an optimizer, a compiled graph) keeps
        them. The model's own are held in a copy meanwhile.

        Raises:
            RuntimeError: there are no averages yet, because no run has started.
        """
        self._make_ready()
        reshard(self.model)
        with torch.no_grad():
            weights = [part_here(weight) for _, group, _ in self._groups for weight in group]
            averages = [part_here(average) for group, _, _ in self._groups for average in group]
            own = [weight.detach().clone() for weight in weights]
            torch._foreach_copy_(weights, averages)
        self._applied += 1
        try:
            yield
        finally:
            self._applied -= 1
            reshard(self.model)  # what an evaluation has put together are the averages
            with torch.no_grad():
                torch._foreach_copy_(weights, own)

    @property
    def module(self) -> nn.Module:
        """A copy of the model with the averages as its weights, in evaluation mode, without gradients.

        Made when it is first asked for, and up to date from then on. Of a model that ``FullySharded`` has sharded it is
        made each time, whole, on every process, where all must ask for it.

        Raises:
            RuntimeError: there are no averages yet, because no run has started.
        """
        self._make_ready()
        if any(map(is_sharded, self._averages.values())):
            with torch.inference_mode(False):
                return whole_copy(self.model, {**dict(_named_tensors(self.model)), **self._averages})
        if self._module is None:
            with torch.inference_mode(False):
                self._module = copy.deepcopy(self.model).requires_grad_(False).eval()
            self._refresh_module()
        return self._module

    @torch.no_grad()
    def _refresh_module(self) -> None:
        if self._module is None:
            return
        present = {**dict(_named_tensors(self.model)), **self._averages}
        for name, tensor in _named_tensors(self._module):
            tensor.copy_(present[name])

    def _make_ready(self, from_weights: bool = False) -> None:
        """Pair each average with its weight; make the averages from what was loaded, or from the weights."""
        # Modules assign new tensors to their buffers, while parameters stay the same objects during a run.
        if self._averages and self._loaded is None and not from_weights and self.buffers == "copy":
            return
        reshard(self.model)
        weights = self._weights()
        if self._loaded is not None:
            averages: Mapping[str, torch.Tensor] = self._loaded["averages"]
            with torch.inference_mode(False), torch.no_grad():
                self._averages = {
                    name: sharded_like(weight, averages[name].detach()).to(weight.device, _precise(weight), copy=True)
                    for name, weight in weights.items()
                }
            self.updates = self._loaded["updates"]
            self._loaded = None
        elif not self._averages and from_weights:
            with torch.inference_mode(False), torch.no_grad():
                self._averages = {
                    name: weight.detach().clone().to(_precise(weight)) for name, weight in weights.items()
                }
        elif not self._averages:
            raise RuntimeError(
                "EMA has no averages yet: they begin with the weights with which a run starts. Run the engine that it "
                "is attached to, or load_state_dict() first."
            )
        groups: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for name, weight in weights.items():
            average = self._averages[name] = self._averages[name].to(weight.device)
            averages_of_kind, weights_of_kind = groups.setdefault((weight.device, weight.dtype), ([], []))
            averages_of_kind.append(average)
            weights_of_kind.append(weight)
        self._groups = [
            (averages, weights, weights[0].dtype == averages[0].dtype and not any(map(is_sharded, weights)))
            for averages, weights in groups.values()
        ]
        self._refresh_module()

    def _weights(self) -> dict[str, torch.Tensor]:
        """What is averaged of the model, by name."""
        return {
            name: tensor
            for name, tensor in _named_tensors(self.model)
            if (isinstance(tensor, nn.Parameter) or self.buffers == "average")
            and (tensor.is_floating_point() or tensor.is_complex())
        }

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        if self._loaded is not None:
            return dict(self._loaded)
        return {"updates": self.updates, "averages": dict(self._averages)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave, when the averages are next needed: the model may have yet to move.

        Raises:
            ValueError: it is of another model.
        """
        averages = state_dict["averages"]
        if not averages:  # saved before a run had started
            return
        weights = self._weights()
        wrong = [name for name in weights if name not in averages or averages[name].shape != weights[name].shape]
        wrong += [name for name in averages if name not in weights]
        if wrong:
            raise ValueError(
                f"The averages are of another model, or of one whose buffers were treated in another way: {wrong[0]!r} "
                f"and {len(wrong) - 1} more are missing on one side or differ in shape."
            )
        self._loaded = state_dict


def unwrapped(thing: Any) -> Any:
    """The module that was compiled or wrapped for distributed training, whose names are the user's.

    Of what Accelerate has prepared, also the optimizer or the schedule.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> unwrapped(torch.compile(model)) is model
        True
    """
    while True:
        if isinstance(thing, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            thing = thing.module
        elif isinstance(getattr(thing, "_orig_mod", None), nn.Module):
            thing = thing._orig_mod
        elif type(thing).__name__ in _ACCELERATES and type(thing).__module__.startswith("accelerate."):
            thing = getattr(thing, _ACCELERATES[type(thing).__name__])
        else:
            return thing


_ACCELERATES = {"AcceleratedOptimizer": "optimizer", "AcceleratedScheduler": "scheduler"}


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, each once, also where they are tied; by names that compiling a part does not change."""
    for named in (module.named_parameters(), module.named_buffers()):
        yield from ((name.replace("_orig_mod.", ""), tensor) for name, tensor in named)


def _precise(weight: torch.Tensor) -> torch.dtype:
    """The type in which to average: at least float32."""
    return torch.promote_types(weight.dtype, torch.float32)
