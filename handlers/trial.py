"""Trying something out on an engine, after which engine, weights, optimizers and random numbers are as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.distributed import world_size
from camshaft.engine.generators import generators_kept
from camshaft.engine.resumable_data import data_state
from camshaft.engine.used_objects import modules_used_by, used_by
from camshaft.handlers.amp import AMP
from camshaft.handlers.device import Device
from camshaft.handlers.gradient_accumulation import GradientAccumulation
from camshaft.handlers.gradient_clipping import GradientClipping
from camshaft.handlers.handler import Handler, handlers_of
from camshaft.handlers.optimizer_step import OptimizerStep, optimizer_steps_of

__all__ = ["data_kept", "optimizers_of", "trial", "without_a_trace"]

# What makes a step what it is. All others report, save, decide, or make the same step faster.
_SHAPE_THE_STEP = (AMP, Device, GradientAccumulation, GradientClipping, OptimizerStep)


@contextmanager
def data_kept(data: Any) -> Iterator[None]:
    """Within this context ``data`` may be gone over without a trace in it or in the global generators.

    An iterator cannot be wound back: what was taken from it is gone.

    Example:
        >>> loader = torch.utils.data.DataLoader(range(100), shuffle=True, generator=torch.Generator())
        >>> with data_kept(loader):
        ...     first = next(iter(loader))
        >>> first == next(iter(loader))
        tensor([True])
    """
    state = data_state(data)
    numbers = state.numbers()
    with generators_kept(state.generators):
        try:
            yield
        finally:
            state.set_numbers(numbers)


@contextmanager
def trial(engine: IgniteEngine, data: Any, *handlers: Handler) -> Iterator[None]:
    """Within this context ``engine`` begins anew, and nothing listens but what shapes its step and ``handlers``.

    Afterwards the engine and what it trains are as they were: weights, buffers, modes, optimizers, random numbers.

    Args:
        engine: not running.
        data: what it will run over.
        handlers: attached meanwhile.

    Raises:
        ValueError: the engine runs, or is one of several processes.
    """
    if getattr(engine, "_internal_run_generator", None) is not None or engine._dataloader_iter is not None:
        raise ValueError(f"{engine!r} is in the middle of a run: try things out before engine.run().")
    if world_size() > 1:
        raise ValueError(
            f"This is one of {world_size()} processes, but a trial needs to be the only one: find the value in a "
            "program of one process and write it down."
        )
    with ExitStack() as undo:
        undo.enter_context(data_kept(data))
        undo.enter_context(_weights_kept(engine))
        undo.enter_context(_silence(engine))
        undo.enter_context(_state_kept(engine))
        for handler in handlers:
            handler.attach(engine)
            undo.callback(handler.detach, engine)
        yield


def optimizers_of(engine: IgniteEngine) -> list[torch.optim.Optimizer]:
    """The optimizers that train: those of the attached ``OptimizerStep``, else those that the step's code uses.

    Raises:
        ValueError: there is none.
    """
    optimizers = [optimizer for step in optimizer_steps_of(engine) for optimizer in step.optimizers]
    optimizers = optimizers or list(used_by(engine._process_function, torch.optim.Optimizer).values())
    if not optimizers:
        raise ValueError(
            f"No optimizer was found on {engine!r}: attach OptimizerStep(optimizer), or use one in the step."
        )
    return optimizers


@contextmanager
def without_a_trace(things: Iterable[Any]) -> Iterator[None]:
    """Give each of the objects its own attributes back afterwards, and the mappings among these their content.

    Example:
        >>> class Counts:
        ...     number = 0
        >>> counts = Counts()
        >>> with without_a_trace([counts]):
        ...     counts.number = 1
        >>> counts.number
        0
    """
    before = [
        (
            vars(thing),
            dict(vars(thing)),
            [(value, dict(value)) for value in vars(thing).values() if type(value) is dict],
        )
        for thing in things
    ]
    try:
        yield
    finally:
        for attributes, values, mappings in before:
            attributes.clear()
            attributes.update(values)
            for mapping, content in mappings:
                mapping.clear()
                mapping.update(content)


@contextmanager
def _state_kept(engine: Any) -> Iterator[None]:
    """The engine's state, and that of the handlers which stay."""
    step_handlers = handlers_of(engine)
    states = [copy.deepcopy(handler.state_dict()) for handler in step_handlers]
    scalers = [(step, step.scaler) for step in optimizer_steps_of(engine)]
    attributes = {name: vars(engine)[name] for name in _OF_A_RUN if name in vars(engine)}
    with without_a_trace([engine.state]):
        vars(engine).pop("_setup_dataloader_iter", None)  # a Checkpoint's, which follows the data
        engine.state.iteration = engine.state.epoch = 0
        engine.state.max_epochs = engine.state.max_iters = engine.state.epoch_length = None
        engine.state.metrics = {}
        try:
            yield
        finally:
            for name in _OF_A_RUN:
                vars(engine).pop(name, None)
            vars(engine).update(attributes)
            for handler, state in zip(step_handlers, states, strict=True):
                if state:
                    handler.load_state_dict(state)
            for step, scaler in scalers:
                step.scaler = scaler


_OF_A_RUN = (
    "_dataloader_iter",
    "_init_iter",
    "_internal_run_generator",
    "_progress",
    "_requests",
    "_setup_dataloader_iter",
    "last_event_name",
    "should_interrupt",
    "should_terminate",
    "should_terminate_single_epoch",
)


@contextmanager
def _silence(engine: Any) -> Iterator[None]:
    """Let nobody hear of events but the handlers that shape the step."""
    attached = handlers_of(engine)
    before = list(attached)
    heard: dict[Any, tuple[Any, Any]] = {}
    for event, listeners in engine._event_handlers.items():
        if hasattr(listeners, "prompt"):
            heard[event] = listeners.prompt, listeners.late
            listeners._place(*([one for one in part if _shapes(one.entry[0])] for part in heard[event]))
        else:  # of a stock engine
            heard[event] = list(listeners), None
            listeners[:] = [entry for entry in listeners if _shapes(entry[0])]
    attached[:] = [handler for handler in attached if isinstance(handler, _SHAPE_THE_STEP)]
    try:
        yield
    finally:
        attached[:] = before
        for event, listeners in engine._event_handlers.items():
            entries, late = heard.get(event, ([], []))
            if hasattr(listeners, "prompt"):
                listeners._place(entries, late)
            else:
                listeners[:] = entries


def _shapes(function: Callable[..., Any]) -> bool:
    """Whether it is a method of a handler that shapes the step, or looks for handlers that contradict each other."""
    function = getattr(function, "_parent", lambda: function)()
    owner = getattr(function, "__self__", None)
    return isinstance(owner, _SHAPE_THE_STEP) or getattr(function, "__name__", "") == "_check_handlers"


@contextmanager
def _weights_kept(engine: IgniteEngine) -> Iterator[None]:
    """The modules that the step uses, and its optimizers with their parameters."""
    modules = modules_used_by(engine._process_function).values()
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    optimizers = optimizers_of(engine)
    modes = [part.training for part in parts]
    buffers = [(part, name) for part in parts for name, buffer in part._buffers.items() if buffer is not None]
    of_parts = [parameter for part in parts for parameter in part._parameters.values() if parameter is not None]
    of_optimizers = [one for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]]
    parameters = list({id(parameter): parameter for parameter in of_parts + of_optimizers}.values())
    weights = [(parameter.data, _aside(parameter.data), parameter.grad) for parameter in parameters]
    statistics = [(part._buffers[name], _aside(part._buffers[name])) for part, name in buffers]
    groups = [[_cloned(group) for group in optimizer.param_groups] for optimizer in optimizers]
    states = [{one: copy.deepcopy(state) for one, state in optimizer.state.items()} for optimizer in optimizers]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, (data, values, gradient) in zip(parameters, weights, strict=True):
                data.copy_(values)
                parameter.data, parameter.grad = data, gradient  # also where Device has moved it
            for (part, name), (buffer, values) in zip(buffers, statistics, strict=True):
                assert buffer is not None
                part._buffers[name] = buffer.copy_(values)
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
        for optimizer, before, state in zip(optimizers, groups, states, strict=True):
            for group, settings in zip(optimizer.param_groups, before, strict=True):
                _set_group(group, settings)
            optimizer.state.clear()
            optimizer.state.update(state)


def _aside(tensor: Any) -> torch.Tensor:
    """A copy where it takes no memory from what is tried."""
    copied: torch.Tensor = tensor.detach().to("cpu", copy=True)
    return copied


def _cloned(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in group.items()}


def _set_group(group: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Settings that are tensors keep their identity: a recorded step may read them."""
    for name in set(group) - set(settings):
        del group[name]
    for name, value in settings.items():
        if isinstance(value, torch.Tensor) and isinstance(group.get(name), torch.Tensor):
            group[name].copy_(value)
        else:
            group[name] = value
