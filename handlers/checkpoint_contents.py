"""What a checkpoint of a run holds: which handlers have state, what was forgotten, and putting it back as a whole."""

from __future__ import annotations

import copy
import enum
import os
import random
import types
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import MetricsLambda
from torch import nn
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from camshaft.engine.generators import generators_within
from camshaft.engine.training_step import TrainingStep
from camshaft.engine.used_objects import modules_used_by, used_by
from camshaft.handlers.ema import unwrapped
from camshaft.handlers.evaluate import Evaluate
from camshaft.handlers.handler import Handler, handlers_of

__all__ = [
    "Restored",
    "keeps_state",
    "load_all_or_none",
    "own_generators",
    "plain",
    "stateful_handlers",
    "warn_of_forgotten",
]

FORMAT = 1  # of what one process writes
FORMAT_OF_SEVERAL = 2  # which has further files; the newest that can be read
OURS = "camshaft"  # the entry of a checkpoint beside those that the user named


def keeps_state(thing: Any) -> bool:
    """Whether it has ``state_dict`` and ``load_state_dict``."""
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def stateful_handlers(engine: IgniteEngine) -> dict[str, Any]:
    """The handlers whose state is kept, Ignite's among them, also those of evaluators (``val_evaluator.Metrics``).

    Their names do not depend on the order of attachment: those of one class go by their arguments, and by the names
    under which the step calls them.

    Example:
        >>> from camshaft import Engine, TimeLimit
        >>> engine = Engine(lambda engine, batch: None).attach(TimeLimit(60), TimeLimit(30))
        >>> stateful_handlers(engine)
        {'TimeLimit': TimeLimit(seconds=30), 'TimeLimit#2': TimeLimit(seconds=60)}
    """
    named: dict[str, Any] = {}
    for prefix, owner in _engines(engine):
        called = {id(handler): name for name, handler in used_by(owner._process_function, Handler).items()}
        ours = sorted(handlers_of(owner), key=lambda handler: (repr(handler), called.get(id(handler), "")))
        ignites = {
            id(own): own
            for function in _attached_functions(owner)
            if _is_ignites_and_keeps_state(own := getattr(function, "__self__", function))
        }
        for handler in (*ours, *ignites.values()):
            if any(handler is other for other in named.values()):
                continue
            name = prefix + type(handler).__name__
            same = sum(other.split("#")[0] == name for other in named)
            named[f"{name}#{same + 1}" if same else name] = handler
    return named


def own_generators(engine: IgniteEngine) -> dict[str, Any]:
    """The generators that are not global which the steps of an engine and of its evaluators use, and these's data."""
    found: dict[str, Any] = {}
    for prefix, owner in _engines(engine):
        for kind in (torch.Generator, random.Random, *_numpy_generators()):
            generators: Mapping[str, Any] = used_by(owner._process_function, kind)
            found.update({prefix + name: generator for name, generator in generators.items()})
    for handler in handlers_of(engine):
        if isinstance(handler, Evaluate):
            sampler = getattr(handler.data, "sampler", None)
            found.update(
                generators_within(**{f"{handler.prefix}data": handler.data, f"{handler.prefix}sampler": sampler})
            )
    return found


def warn_of_forgotten(engine: IgniteEngine, kept: Mapping[str, Any], directory: Path) -> None:
    """Warn of modules, optimizers, schedules and gradient scalers that are used but not kept.

    Modules and optimizers are looked for in the step; schedules and scalers also in functions of the user that are
    attached to events, from which they often are stepped.
    """
    step = engine._process_function
    used: dict[str, Any] = {**modules_used_by(step), **used_by(step, torch.optim.Optimizer)}
    for backward in step.backwards if isinstance(step, TrainingStep) else ():
        used.update({type(optimizer).__name__: optimizer for optimizer in getattr(backward, "optimizers", ())})
    functions: list[Callable[..., Any]] = [step]
    functions += [function for function in _attached_functions(engine) if isinstance(function, types.FunctionType)]
    for function in functions:
        for kind in (TorchScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau, torch.amp.GradScaler):
            used.update(used_by(function, kind))
    known = {
        id(part)
        for thing in kept.values()
        for part in (thing.modules() if isinstance(thing, nn.Module) else [thing, unwrapped(thing)])
    }
    for name, thing in used.items():
        has_state = not isinstance(thing, nn.Module) or bool(thing.state_dict())
        if has_state and not {id(thing), id(unwrapped(thing))} & known:
            argument = f"{name}={name}" if name.isidentifier() else f"{{{name!r}: ...}}"
            known.add(id(thing))
            warnings.warn(
                f"The run uses {name!r} ({type(thing).__name__}), but the checkpoint does not keep it, so a resumed "
                f"run will not be the same: Checkpoint({str(directory)!r}, ..., {argument}).",
                stacklevel=2,
            )


class Restored(NamedTuple):
    """One thing and the state that it is to take back.

    Attributes:
        name: in the checkpoint.
        thing: with ``load_state_dict``.
        state: for it.
    """

    name: str
    thing: Any
    state: Any


def load_all_or_none(everything: list[Restored], path: Path) -> Callable[[], None]:
    """Load all states or, if one does not fit, none.

    Args:
        everything: the things and their states.
        path: of the checkpoint, for the message.

    Returns:
        What undoes it.

    Raises:
        ValueError: one does not fit; all are as they were.

    Example:
        >>> model, other = nn.Linear(1, 1), nn.Linear(2, 2)
        >>> before = model.weight.item()
        >>> new = [Restored("model", model, nn.Linear(1, 1).state_dict()), Restored("other", other, model.state_dict())]
        >>> undo = load_all_or_none(new, Path("runs/1"))
        Traceback (most recent call last):
        ValueError: runs/1 does not fit: 'other' (Linear) cannot take its state: ...
        >>> model.weight.item() == before
        True
    """
    before = [(thing, copy.deepcopy(unwrapped(thing).state_dict())) for _, thing, _ in everything]

    def undo() -> None:
        for loaded, state_before in before:
            unwrapped(loaded).load_state_dict(state_before)

    for name, thing, state in everything:
        try:
            unwrapped(thing).load_state_dict(state)
        except Exception as error:  # whatever a load_state_dict() of the user raises
            undo()
            raise ValueError(
                f"{path} does not fit: {name!r} ({type(thing).__name__}) cannot take its state: {error}. Nothing was "
                "changed. Build it as it was built when it was saved, or choose another directory."
            ) from error
    return undo


def plain(value: Any, where: str = "") -> Any:
    """``value`` with numbers and arrays of NumPy, paths, enums and the like made plain, for ``weights_only`` to load.

    Raises:
        TypeError: something that cannot be; the message says where it stands.

    Example:
        >>> plain({"path": Path("runs"), "losses": [0.5, torch.tensor(0.25)]})
        {'path': 'runs', 'losses': [0.5, tensor(0.2500)]}
    """
    if value is None or type(value) in _PLAIN or isinstance(value, (torch.Tensor, torch.Size, torch.dtype)):
        return value
    if isinstance(value, Mapping):
        return _plain_mapping(value, where)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(item, f"{where}/{index}") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    return _plain_leaf(value, where)


def _plain_mapping(value: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    content: Any = {plain(key, f"{where}/{key}"): plain(item, f"{where}/{key}") for key, item in value.items()}
    if isinstance(value, Counter):
        content = Counter(content)
    elif hasattr(value, "_metadata"):  # a module's, with the versions of its parts
        content = OrderedDict(content)
        content._metadata = value._metadata
    return cast("dict[Any, Any]", content)


def _plain_leaf(value: Any, where: str) -> Any:
    if isinstance(value, enum.Enum):
        return plain(value.value, where)
    if type(value).__module__.startswith("numpy") and hasattr(value, "ndim"):
        return value.item() if value.ndim == 0 else torch.as_tensor(value)
    for kind in _PLAIN:  # a subclass, which weights_only would refuse
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (os.PathLike, torch.device)):
        return str(value)
    raise TypeError(
        f"A checkpoint holds tensors and plain values, but {where.lstrip('/')} is {value!r} of type "
        f"{type(value).__name__}: give it a state_dict() of such values."
    )


_PLAIN: tuple[Any, ...] = (str, bytes, bool, int, float, complex)


def _engines(engine: IgniteEngine) -> Iterator[tuple[str, IgniteEngine]]:
    """The engine and its evaluators, with what their names begin with."""
    yield "", engine
    for handler in handlers_of(engine):
        if isinstance(handler, Evaluate):
            yield f"{handler.prefix}evaluator.", handler.evaluator


def _attached_functions(engine: IgniteEngine) -> Iterator[Callable[..., Any]]:
    """All that is called when an event of the engine fires, without the filter it is behind."""
    for entries in engine._event_handlers.values():
        yield from (getattr(function, "__wrapped__", function) for function, *_ in entries)


def _is_ignites_and_keeps_state(thing: Any) -> bool:
    """Whether a handler that is not ours has a state to keep; modules and optimizers are the user's to name.

    What a ``MetricsLambda`` is computed of is attached itself, and gathers; its own state Ignite cannot always make.
    """
    others = (Handler, IgniteEngine, MetricsLambda, nn.Module, torch.optim.Optimizer)
    return keeps_state(thing) and not isinstance(thing, others)


def _numpy_generators() -> tuple[type, ...]:
    try:
        from numpy.random import Generator, RandomState  # noqa: PLC0415 - torch does without NumPy
    except ImportError:
        return ()
    return Generator, RandomState
