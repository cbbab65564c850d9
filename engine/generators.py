"""The states of random number generators, as tensors that a checkpoint can hold and `weights_only` can load."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

__all__ = [
    "generator_states",
    "generators_kept",
    "generators_within",
    "is_generator",
    "same_states",
    "seed_generators",
    "set_generator_states",
    "set_states_of",
    "states_of",
]

States = dict[str, Any]


def generator_states(own: Mapping[str, Any] | None = None) -> States:
    """The states of python's, NumPy's and torch's global generators, and of ``own`` ones by name.

    Args:
        own: generators that are not global: ``random.Random``, ``numpy.random.Generator`` or ``RandomState``,
            ``torch.Generator``.

    Returns:
        Tensors and plain values; the accelerator's are there once it is in use.

    Example:
        >>> states = generator_states()
        >>> first = random.random(), torch.rand(1).item()
        >>> set_generator_states(states)
        >>> first == (random.random(), torch.rand(1).item())
        True
    """
    states: States = {"python": _of_python(random), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")  # torch loads it where it is installed
    if numpy is not None:
        states["numpy"] = _of_numpy(numpy.random.get_state(legacy=False))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    states["own"] = states_of(own or {})
    return states


def states_of(own: Mapping[str, Any]) -> States:
    """The states of generators that are not global, by name; see :func:`generator_states`."""
    return {name: _of_own(generator) for name, generator in own.items()}


def set_states_of(own: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Set what :func:`states_of` gave, of those generators that are still there."""
    for name, generator in own.items():
        if name in states:
            _set_own(generator, states[name])


def same_states(one: Any, other: Any) -> bool:
    """Whether two states are the same: of one generator, or of all.

    Example:
        >>> before = generator_states()
        >>> same_states(before, generator_states())
        True
        >>> number = random.random()
        >>> same_states(before, generator_states())
        False
    """
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_states(state, other[name]) for name, state in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_states, one, other))
    return bool(one == other)


def set_generator_states(states: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> None:
    """Set what :func:`generator_states` gave; of ``own`` generators those that are still there.

    Args:
        states: as they were given.
        own: the generators by the names that they had.
    """
    random.setstate(_to_python(states["python"]))
    torch.set_rng_state(states["torch"])
    if "numpy" in states and "numpy" in sys.modules:
        sys.modules["numpy"].random.set_state(_to_numpy(states["numpy"]))
    if "cuda" in states and torch.cuda.is_available():
        for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, index)
    set_states_of(own or {}, states["own"])


@contextmanager
def generators_kept(own: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within this context random numbers may be drawn without a trace.

    Args:
        own: generators to keep besides the global ones.

    Example:
        >>> with generators_kept():
        ...     inside = torch.rand(1)
        >>> bool(inside == torch.rand(1))
        True
    """
    states = generator_states(own)
    try:
        yield
    finally:
        set_generator_states(states, own)


def seed_generators(seed: int, own: Mapping[str, Any] | None = None) -> None:
    """Seed python's, NumPy's and torch's global generators, those of torch on the CPU alone, and ``own`` ones.

    Args:
        seed: not negative; NumPy's global generator takes it modulo 2**32.
        own: generators that are not global; each gets another seed than the global ones.

    Example:
        >>> generator = torch.Generator()
        >>> seed_generators(1, {"own": generator})
        >>> first = torch.rand(1), torch.rand(1, generator=generator)
        >>> seed_generators(1, {"own": generator})
        >>> first == (torch.rand(1), torch.rand(1, generator=generator)), first[0] == first[1]
        (True, tensor([False]))
    """
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    for generator in (own or {}).values():
        seed += 0x9E3779B9  # far from the seeds of neighbouring batches
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, random.Random):
            generator.seed(seed)
        elif type(generator).__name__ == "RandomState":
            generator.seed(seed % 2**32)
        else:
            generator.bit_generator.state = type(generator.bit_generator)(seed).state


def generators_within(**things: Any) -> dict[str, Any]:
    """The generators that are attributes of ``things``, such as a loader, its sampler and its data set.

    Example:
        >>> loader = torch.utils.data.DataLoader([1, 2], generator=torch.Generator())
        >>> list(generators_within(loader=loader))
        ['loader.generator']
    """
    return {
        f"{name}.{attribute}": value
        for name, thing in things.items()
        for attribute, value in sorted(getattr(thing, "__dict__", {}).items())
        if is_generator(value)
    }


def is_generator(value: Any) -> bool:
    """Whether it is a generator of python's, NumPy's or torch's that has a state.

    Example:
        >>> is_generator(random.Random(1)), is_generator(random.SystemRandom()), is_generator(1)
        (True, False, False)
    """
    if isinstance(value, (random.Random, torch.Generator)):
        return not isinstance(value, random.SystemRandom)
    return type(value).__module__.startswith("numpy.random") and type(value).__name__ in {"Generator", "RandomState"}


def _of_python(generator: Any) -> States:
    version, words, gauss = generator.getstate()
    return {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss}


def _to_python(state: Mapping[str, Any]) -> Any:
    return state["version"], tuple(state["words"].tolist()), state["gauss"]


def _of_numpy(state: Mapping[str, Any]) -> States:
    return {
        "name": state["bit_generator"],
        "words": torch.tensor(state["state"]["key"].astype("int64")),
        "position": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _to_numpy(state: Mapping[str, Any]) -> Any:
    words = state["words"].numpy().astype("uint32")
    return state["name"], words, state["position"], state["has_gauss"], state["gauss"]


def _of_own(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return _of_python(generator)
    state = generator.get_state(legacy=False) if hasattr(generator, "get_state") else generator.bit_generator.state
    return json.dumps(state, default=_array_as_list)  # NumPy's integers are of 128 bits


def _set_own(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(_to_python(state))
    elif hasattr(generator, "set_state"):
        generator.set_state(json.loads(state))
    else:
        generator.bit_generator.state = json.loads(state)


def _array_as_list(value: Any) -> Any:
    return value.tolist()
