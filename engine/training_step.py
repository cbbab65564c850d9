"""The step of an engine with what handlers put around it: the user's function innermost, wrapped once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import STEP_EVENT_ATTRIBUTES, EventEnum, StepEvents
from camshaft.engine.nested import rebuilt

if TYPE_CHECKING:
    from camshaft.engine.subscribers import Subscribers

__all__ = ["TrainingStep"]


class Backward(Protocol):
    """What carries a loss on to the weights: ``OptimizerStep``."""

    @property
    def completes_group(self) -> bool:
        """Whether the next micro-batch is the last of its group."""

    def update(self, engine: Any, loss: torch.Tensor, weight: torch.Tensor | float | None) -> None:
        """Backward, and the optimizers' step where a group of micro-batches is whole."""


class TrainingStep:
    """Calls the user's step in the surroundings that handlers have configured, and fires :class:`StepEvents`.

    The first step handler attached to an engine (``OptimizerStep``, ``AMP``, …) puts one in the place of the engine's
    process function; all of them set its attributes, so their order does not matter. Per call::

        FORWARD_STARTED
        with forward_context:                       # AMP
            output = function(engine, batch)        # the research
        FORWARD_COMPLETED
        backward.update(engine, loss, weight)       # OptimizerStep, which fires the other four
        state.output = output without its graph

    Without an ``OptimizerStep`` the function is left whole: it does its own backward, and what it returns is kept as it
    is. A function that calls its ``OptimizerStep`` objects itself (GANs, RL) has no more done for it either.

    Attributes:
        function: the user's step.
        forward_context: entered around ``function``; one object, entered anew each iteration.
        backwards: the attached ``OptimizerStep`` handlers.
        called_by_hand: whether ``function`` calls them itself; known after the first call.
        group_size: micro-batches in one optimizer step.
        weight_key: the entry of the returned mapping that weighs a micro-batch in its group.
        stepping: the ``OptimizerStep`` that makes its step just now.
        exchanges: bring the gradients of several processes together before a step, where backward has not; each is
            called with the parameters and whether their group of micro-batches is whole.
        holding_back: bring the gradients of a group that has begun to the parameters, where they are kept elsewhere
            until they are exchanged.
        leaves: where backward leaves the gradient of a parameter that is sharded, by the identity of that parameter.
        instead: called in the place of all this, where the step has been recorded as a whole: by ``CUDAGraph``.
    """

    def __init__(self, engine: IgniteEngine, function: Callable[[Any, Any], Any]) -> None:
        functools.update_wrapper(self, function, updated=())  # it goes by the name of the user's function
        self.function = function
        self.forward_context: AbstractContextManager[Any] | None = None
        self.backwards: list[Backward] = []
        self.called_by_hand = False
        self.group_size = 1
        self.weight_key: str | None = None
        self.stepping: Backward | None = None
        self.exchanges: list[Callable[[list[torch.nn.Parameter], bool], None]] = []
        self.holding_back: list[Callable[[], None]] = []
        self.leaves: dict[int, Callable[[], torch.Tensor | None]] = {}
        self.instead: Callable[[Any, Any], Any] | None = None
        if not engine.has_registered_events(StepEvents.FORWARD_STARTED):
            engine.register_events(*StepEvents, event_to_attr=STEP_EVENT_ATTRIBUTES)
        self.moments = {event: _moment(engine, event) for event in StepEvents}
        self._forward_started = self.moments[StepEvents.FORWARD_STARTED]
        self._forward_completed = self.moments[StepEvents.FORWARD_COMPLETED]

    @classmethod
    def of(cls, engine: IgniteEngine) -> TrainingStep:
        """The training step of an engine, put around its process function if there is none yet.

        Example:
            >>> from ignite.engine import Engine
            >>> engine = Engine(lambda engine, batch: batch)
            >>> TrainingStep.of(engine) is TrainingStep.of(engine)
            True
        """
        step = engine._process_function
        if not isinstance(step, TrainingStep):
            step = engine._process_function = cls(engine, step)
        return step

    def __call__(self, engine: Any, batch: Any) -> Any:
        if self.instead is not None:
            return self.instead(engine, batch)
        if self._forward_started:
            self._forward_started.fire(engine)
        if self.forward_context is None:
            output = self.function(engine, batch)
        else:
            with self.forward_context:
                output = self.function(engine, batch)
        if self._forward_completed:
            self._forward_completed.fire(engine)

        if not self.backwards:
            return output
        if not self.called_by_hand and output is not None:  # None: the user skips this batch
            loss, weight = self._loss_of(output)
            self.backwards[0].update(engine, loss, weight)
        return without_graph(output)

    def loss_again(self, engine: Any) -> torch.Tensor:
        """The loss of the same batch with the weights of now, for optimizers that ask for it several times a step."""
        with self.forward_context or nullcontext():
            output = self.function(engine, engine.state.batch)
        return self._loss_of(output)[0]

    def _loss_of(self, output: Any) -> tuple[torch.Tensor, Any]:
        """The loss and the weight in what the step returned; anything but a scalar with a graph is refused."""
        loss, weight = output, None
        if not isinstance(output, torch.Tensor) and isinstance(output, Mapping):
            if "loss" not in output:
                raise ValueError(
                    f"The step returned a mapping with the keys {sorted(map(str, output))} but no 'loss'. "
                    "Return the loss to minimise under the key 'loss'."
                )
            loss = output["loss"]
        if self.weight_key is not None:
            weight = self._weight_of(output)
        if not isinstance(loss, torch.Tensor):
            raise TypeError(
                f"The step returned {_kind(loss)}, but with an OptimizerStep attached it must return the loss: a "
                "scalar tensor, a mapping with such a 'loss', or None to skip the batch. If it does its own backward() "
                "and step(), leave OptimizerStep out."
            )
        if loss.numel() != 1:
            raise ValueError(
                f"The loss has the shape {tuple(loss.shape)} but must be a scalar: return, for example, its mean()."
            )
        if not loss.requires_grad:
            raise ValueError(
                "The loss has no graph to go backward through: it was detached, computed under no_grad() or "
                "inference_mode(), or no parameter in it requires a gradient."
            )
        if len(self.backwards) > 1:
            raise ValueError(
                f"{len(self.backwards)} OptimizerStep handlers are attached, but the step returned a loss and called "
                "none of them: which is meant? Call each in the step, as in `discriminator_step(loss)`, and return no "
                "graph, or give all optimizers to one: OptimizerStep(optimizer_a, optimizer_b)."
            )
        return loss, weight

    def _weight_of(self, output: Any) -> Any:
        if not isinstance(output, Mapping) or self.weight_key not in output:
            returned = f"only {sorted(map(str, output))}" if isinstance(output, Mapping) else _kind(output)
            raise ValueError(
                f"GradientAccumulation weighs micro-batches by {self.weight_key!r}, but the step returned {returned}. "
                "Return a mapping with the 'loss' and, under that key, its weight, such as the number of tokens."
            )
        return output[self.weight_key]


def without_graph(output: Any) -> Any:
    """``output`` with every tensor in it, also in nested containers, detached from its autograd graph.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> without_graph({"loss": 2 * weight, "classes": ["zero", "one"]})
        {'loss': tensor([2.]), 'classes': ['zero', 'one']}
    """
    if isinstance(output, torch.Tensor):
        return output.detach() if output.requires_grad else output
    return rebuilt(output, without_graph)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r} of type {type(value).__name__}"


def _moment(engine: IgniteEngine, event: EventEnum) -> Subscribers | _StockMoment:
    """What ``event`` is fired through: falsy while nobody listens."""
    subscribers = getattr(engine, "_moment", None)
    return subscribers(event) if subscribers is not None else _StockMoment(engine, event)


class _StockMoment:
    """An event of a stock Ignite engine, fired by that engine's own means."""

    def __init__(self, engine: IgniteEngine, event: EventEnum) -> None:
        self._handlers = engine._event_handlers
        self._event = event

    def __bool__(self) -> bool:
        return bool(self._handlers.get(self._event))

    def fire(self, engine: Any) -> None:
        engine._fire_event(self._event)
