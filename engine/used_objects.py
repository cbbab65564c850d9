"""What a step function uses: the modules and optimizers its code reaches, so that nobody has to name them twice."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine.training_step import TrainingStep

__all__ = ["modules_used_by", "used_by"]

Used = TypeVar("Used")

_DEPTH = 4  # step -> helper function -> object -> container: deeper than that nobody hides a model
_LARGEST_CONTAINER = 1000  # beyond that it is data


def modules_used_by(*functions: Callable[..., Any]) -> dict[str, nn.Module]:
    """The modules that the functions use, by the names under which they use them; parts of others are left out.

    Args:
        functions: functions, methods, partials, or objects that are called.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> def step(engine, batch):
        ...     return model(batch).mean()
        >>> modules_used_by(step)
        {'model': Linear(in_features=2, out_features=1, bias=True)}
    """
    found: dict[str, nn.Module] = {}
    for function in functions:
        for name, module in used_by(function, nn.Module).items():
            if not any(module is other for other in found.values()):
                found[name] = module
    parts = {id(part) for module in found.values() for part in list(module.modules())[1:]}
    return {name: module for name, module in found.items() if id(module) not in parts}


def used_by(function: Callable[..., Any], kind: type[Used]) -> dict[str, Used]:
    """The objects of class ``kind`` that a function reaches through globals, closures, ``self`` and containers.

    Args:
        function: a function, method, partial, or object that is called.
        kind: what to look for.

    Example:
        >>> import torch
        >>> class Research:
        ...     def __init__(self):
        ...         self.optimizers = [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)]
        ...     def step(self, engine, batch):
        ...         self.optimizers[0].step()
        >>> list(used_by(Research().step, torch.optim.Optimizer))
        ['optimizers.0']
    """
    found: dict[str, Used] = {}
    visited: set[int] = set()
    pending: deque[tuple[str, Any, int]] = deque([("", function, 0)])
    while pending:
        name, thing, depth = pending.popleft()
        if id(thing) in visited:
            continue
        visited.add(id(thing))
        if isinstance(thing, kind):
            found.setdefault(name or type(thing).__name__, thing)
        elif depth < _DEPTH:
            pending += [(inner_name, inner, depth + 1) for inner_name, inner in _reached_from(name, thing)]
    return found


def _reached_from(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """What code or data of ``thing`` refers to, with the name it has there."""
    if isinstance(thing, TrainingStep):
        yield name, thing.function
    elif isinstance(thing, functools.partial):
        yield name, thing.func
        yield from _items(name, thing.args)
        yield from thing.keywords.items()
    elif isinstance(thing, types.MethodType):
        yield name, thing.__func__
        yield "", thing.__self__
    elif isinstance(thing, types.FunctionType):
        if not _is_library(thing):
            yield from _reached_from_function(thing)
    elif isinstance(thing, (Mapping, list, tuple, set, frozenset)):
        yield from _items(name, thing)
    elif not isinstance(thing, (type, types.ModuleType, IgniteEngine)) and not _is_library(thing):
        if callable(thing) and isinstance(type(thing).__call__, types.FunctionType):
            yield name, type(thing).__call__
        yield from _items(name, getattr(thing, "__dict__", {}))


def _items(name: str, container: Any) -> Iterator[tuple[str, Any]]:
    if len(container) <= _LARGEST_CONTAINER:
        items = container.items() if isinstance(container, Mapping) else enumerate(container)
        yield from ((f"{name}.{key}".lstrip("."), item) for key, item in items)


def _reached_from_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    yield from _names_in_code(function.__code__, function.__globals__)
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield from _content(variable, cell)
    yield from _items("default", function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()


def _names_in_code(code: types.CodeType, variables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The variables whose names the code uses, also as attributes of Python modules: ``networks.model``."""
    for name in code.co_names:
        if name in variables:
            yield name, variables[name]
            if isinstance(variables[name], types.ModuleType) and not _is_library(variables[name]):
                attributes = vars(variables[name])
                yield from ((f"{name}.{other}", attributes[other]) for other in code.co_names if other in attributes)
    for constant in code.co_consts:  # functions defined within
        if isinstance(constant, types.CodeType):
            yield from _names_in_code(constant, variables)


def _content(variable: str, cell: types.CellType) -> Iterator[tuple[str, Any]]:
    try:
        yield variable, cell.cell_contents
    except ValueError:  # declared but not yet assigned
        return


def _is_library(thing: Any) -> bool:
    """Whether its code is of a library that knows nothing of the user's model; Ignite's factories close over it."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    return str(name or type(thing).__module__).split(".")[0] in {"torch", "numpy", "builtins", "logging"}
