"""Watches the gradients of each layer: their norms, and which layers are dead or explode.

Listens to:

- STARTED in PREPARE: finds out the layers.
- OPTIMIZER_STEP_STARTED in CHECK, before anyone clips them: measures the gradients on their device and puts the norms
  into ``state.metrics``; after so many steps it looks at what it has counted there.
- EPOCH_COMPLETED, TERMINATE, COMPLETED in MEASURE: looks at the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import Events, StepEvents
from camshaft.engine.phases import Phase
from camshaft.engine.sharded import is_sharded, part_here
from camshaft.engine.training_step import TrainingStep
from camshaft.engine.used_objects import modules_used_by
from camshaft.handlers.handler import Handler, On
from camshaft.handlers.optimizer_step import OptimizerStep, optimizer_steps_of, refuse_reevaluation

__all__ = ["GradientMonitor"]

_SHARE_OF_PAST = 0.98  # in the mean of a layer's norms
_FIRST_STEPS = 10  # which make the first mean; before, only what is not finite explodes


class GradientMonitor(Handler):
    """Puts the norm of each layer's gradients into ``state.metrics`` and warns of layers that are dead or explode.

    A layer is a module with parameters of its own; its norm, before any clipping, is
    ``state.metrics["gradient_norm/features.0"]``, a scalar tensor on the gradients' device. Nothing waits for the
    device but the look at what was counted there, each ``every`` optimizer steps and at the end of an epoch. A warning
    names each layer once for each of the two.

    Args:
        dead: warn of a layer whose gradients have been zero, or not there, for so many optimizer steps on end.
        exploding: warn of a layer whose norm is not finite, or so many times the mean of its norms so far.
        every: look after so many optimizer steps.

    Attributes:
        dead_layers: the optimizer step at which a layer was found dead, by its name.
        exploding_layers: the optimizer step at which a layer's gradients exploded first, by its name.

    Raises:
        ValueError: a number is not positive; when the run starts, if no ``OptimizerStep`` is attached, or one that
            evaluates the loss several times a step.

    Example:
        >>> from camshaft import Engine
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> model[0].weight.data.zero_(), model[0].bias.data.fill_(-1), model[1].bias.data.zero_()
        (...)
        >>> engine = Engine(lambda engine, batch: model[1](model[0](batch).relu()).mean())
        >>> monitor = GradientMonitor(dead=3)
        >>> engine = engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)), monitor)
        >>> engine.logger.disabled = True
        >>> engine.run([torch.ones(4, 2)] * 5).metrics
        {'gradient_norm/0': tensor(0.), 'gradient_norm/1': tensor(1.)}
        >>> monitor.dead_layers
        {'0': 3}
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.PREPARE, "begin"),
        On(StepEvents.OPTIMIZER_STEP_STARTED, Phase.CHECK, "measure"),
        On(Events.EPOCH_COMPLETED | Events.TERMINATE | Events.COMPLETED, Phase.MEASURE, "look"),
    )

    def __init__(self, *, dead: int = 100, exploding: float = 100.0, every: int = 50) -> None:
        for name, value in (("dead", dead), ("exploding", exploding), ("every", every)):
            if not value > 0:
                raise ValueError(f"GradientMonitor takes positive numbers, but got {name}={value!r}.")
        self.dead = dead
        self.exploding = exploding
        self.every = every
        self.dead_layers: dict[str, int] = {}
        self.exploding_layers: dict[str, int] = {}
        self._watched: dict[int, _Layers] = {}  # by OptimizerStep

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        refuse_reevaluation(self, engine)
        if not optimizer_steps_of(engine):
            raise ValueError(
                f"{self!r} looks at gradients between backward and the optimizer's step, so it needs an OptimizerStep "
                "on the same engine. Attach OptimizerStep(optimizer) and let the step return the loss."
            )

    def begin(self, engine: IgniteEngine) -> None:
        """Forget an earlier run, and find the layers."""
        self.dead_layers, self.exploding_layers, self._watched = {}, {}, {}
        self._names = _names_of_layers(engine)

    def measure(self, engine: Any) -> None:
        """Measure the gradients of the ``OptimizerStep`` that steps now."""
        stepping = TrainingStep.of(engine).stepping
        assert isinstance(stepping, OptimizerStep)
        layers = self._watched.get(id(stepping))
        if layers is None:
            layers = self._watched[id(stepping)] = _Layers(stepping.parameters, self._names, self.dead, self.exploding)
        norms = layers.measure()
        engine.state.metrics.update(zip(layers.metrics, norms.unbind(), strict=True))
        if layers.steps % self.every == 0:
            self._look_at(layers, engine)

    def look(self, engine: IgniteEngine) -> None:
        """Fetch what was counted and warn."""
        for layers in self._watched.values():
            self._look_at(layers, engine)

    def _look_at(self, layers: _Layers, engine: IgniteEngine) -> None:
        dead, exploding = layers.found()
        for found, known, what in (
            (dead, self.dead_layers, f"have had no gradient, or only zeros, for {self.dead} optimizer steps on end"),
            (exploding, self.exploding_layers, f"have gradients not finite, or {self.exploding:g} times their mean"),
        ):
            new = {name: step for name, step in found.items() if name not in known}
            if new:
                known.update(new)
                listed = ", ".join(f"{name!r} (optimizer step {step})" for name, step in new.items())
                engine.logger.warning("GradientMonitor: these layers %s: %s.", what, listed)


class _Layers:
    """What is counted of the layers of one ``OptimizerStep``, on the device of their gradients.

    Attributes:
        metrics: the name of each layer's norm in ``state.metrics``.
        steps: measured so far.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], names: dict[int, str], dead: int, exploding: float
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        of_parameters = [names.get(id(one), f"parameter {i}") for i, one in enumerate(self.parameters)]
        self.names = list(dict.fromkeys(of_parameters))
        self.metrics = [f"gradient_norm/{name}" for name in self.names]
        self.dead, self.exploding = dead, exploding
        self.steps = 0
        self.device = part_here(self.parameters[0]).device
        number = {name: i for i, name in enumerate(self.names)}
        self.layers = [number[name] for name in of_parameters]
        zeros = torch.zeros(len(self.names), device=self.device)
        self.sum = zeros.clone()  # of the weighted norms so far
        self.zero_steps = zeros.long()  # on end, until now
        self.dead_at, self.exploded_at = zeros.long(), zeros.long()  # 0 for never
        self._index: tuple[list[int], torch.Tensor] = ([], zeros.long()[:0])

    @torch.no_grad()
    def measure(self) -> torch.Tensor:
        """Count one optimizer step; returns the norm of each layer."""
        self.steps += 1
        norms = self._norms()
        finite = norms.isfinite()
        past = self.sum / (1 - _SHARE_OF_PAST ** max(1, self.steps - 1))
        explodes = ~finite
        if self.steps > _FIRST_STEPS:
            explodes |= (norms > self.exploding * past) & (past > 0)
        self.exploded_at.add_((explodes & (self.exploded_at == 0)) * self.steps)
        self.sum.mul_(_SHARE_OF_PAST).add_(torch.where(finite, norms, past), alpha=1 - _SHARE_OF_PAST)
        self.zero_steps.add_(1).mul_(norms == 0)
        self.dead_at.add_(((self.zero_steps == self.dead) & (self.dead_at == 0)) * self.steps)
        return norms

    def _norms(self) -> torch.Tensor:
        present = [(i, parameter.grad) for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        squares = torch.zeros(len(self.names), device=self.device)  # (layers,)
        sharded = any(is_sharded(gradient) for _, gradient in present)
        if present:
            norms = torch._foreach_norm([part_here(gradient) for _, gradient in present], dtype=torch.float32)
            of_gradients = torch.stack([norm.to(self.device) for norm in norms]).square()  # (gradients,)
            if sharded:  # what every process has whole is counted once by each
                share = [1.0 if is_sharded(gradient) else 1 / dist.get_world_size() for _, gradient in present]
                of_gradients *= torch.tensor(share, device=self.device)
            squares.index_add_(0, self._layers_of([i for i, _ in present]), of_gradients)
        if sharded:
            dist.all_reduce(squares)
        return squares.sqrt()

    def _layers_of(self, present: list[int]) -> torch.Tensor:
        """The layer of each gradient, on the device; made anew only when other parameters have gradients."""
        if self._index[0] != present:
            self._index = present, torch.tensor([self.layers[i] for i in present], device=self.device)
        return self._index[1]

    def found(self) -> tuple[dict[str, int], dict[str, int]]:
        """The layers that were dead, and those that exploded, with the step; this waits for the device."""
        dead, exploded = torch.stack([self.dead_at, self.exploded_at]).tolist()
        return (
            {name: step for name, step in zip(self.names, dead, strict=True) if step},
            {name: step for name, step in zip(self.names, exploded, strict=True) if step},
        )


def _names_of_layers(engine: IgniteEngine) -> dict[int, str]:
    """The layer of each parameter, by the parameter's identity; with the model's name where there are several."""
    models = modules_used_by(engine._process_function)
    names: dict[int, str] = {}
    for model_name, model in models.items():
        for layer, module in model.named_modules():
            path = [model_name, layer] if len(models) > 1 or not layer else [layer]
            for parameter in module.parameters(recurse=False):
                names.setdefault(id(parameter), ".".join(filter(None, path)))
    return names
