"""Going on with a run that another number of processes has saved: at the same sample, with what can be the same."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from camshaft.engine.distributed import rank, world_size
from camshaft.engine.generators import generator_states, generators_kept, seed_generators

__all__ = ["view_for_world"]


def view_for_world(ours: Mapping[str, Any], path: Path, epoch_length: int | None, samples: int) -> Mapping[str, Any]:
    """What this rank goes on with, where another number of processes has saved; else ``ours`` as it is.

    A rank that was there goes on with what it had, a new one with what the first had, but with random numbers of its
    own. The iteration and the position in the data are those of the same number of samples.

    Args:
        ours: as :func:`read_for_this_rank` gave it.
        path: of the checkpoint, for the messages.
        epoch_length: iterations in an epoch of now, or None.
        samples: how many all processes take together in one iteration of now.

    Raises:
        ValueError: the epoch has now another number of samples.
    """
    saved_ranks = ours.get("ranks")
    if saved_ranks is None:
        return ours
    is_new = rank() >= len(saved_ranks)
    own = dict(saved_ranks[0 if is_new else rank()])
    own["handlers"] = {
        name: state for name in own["handlers"] if (state := _of_another_world(name, saved_ranks)) is not None
    }
    if is_new:
        own["generators"] = _of_new_rank(own, own["generators"])
        if own["data"]["at_begin"] is not None:
            begun = own["data"]["at_begin"]
            own["data"] = {
                **own["data"],
                "at_begin": {**begun, "generators": _of_new_rank(own, begun["generators"])},
            }
    before = own["data"].get("samples", samples)
    saved = own["engine"]
    again = 0
    if before != samples:
        own["engine"], again = _of_other_batches(saved, path, before, samples, epoch_length)
        own["data"] = {**own["data"], "taken": own["data"]["taken"] * before // samples}
    if rank() == 0:
        moved = f", where it is iteration {own['engine']['iteration']} now" if before != samples else ""
        twice = f"; {again} samples are seen a second time, because its batches do not fit" if again else ""
        warnings.warn(
            f"{path} was saved by {_processes(len(saved_ranks))} and goes on with {world_size()}{moved}{twice}. From "
            "here on the bits are not those of an uninterrupted run: the ranks' random numbers (dropout, augmentation "
            "of data), metrics of an epoch under way, and the order in which gradients are added up differ.",
            stacklevel=2,
        )
    return own


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"


def _of_new_rank(ours: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, Any]:
    """States of generators that draw other numbers than those of any other rank, the same each time."""
    with generators_kept():
        seed_generators((ours["seed"] + 7919 * rank() + 104729 * ours["engine"]["iteration"]) % 2**63)
        return {**states, **generator_states(), "own": states["own"]}


def _of_another_world(name: str, saved_ranks: Sequence[Mapping[str, Any]]) -> Any:
    """The state of a handler for this rank; None where there is none that would be right."""
    states = [saved["handlers"][name] for saved in saved_ranks if name in saved["handlers"]]
    state = states[rank()] if rank() < len(states) else states[0]
    if not isinstance(state, Mapping):
        return state
    if any(key == "__metric_state_per_rank" for key in state):  # Ignite's metrics ask for one entry a rank
        return None
    if "metrics" in state and "produced_at" in state:  # those of the epoch under way begin anew
        return {**state, "metrics": {}}
    if all(isinstance(other, Mapping) and "gradients" in other for other in states):
        # What each rank has added up of a group: the mean over ranks is what their exchange makes of it.
        gradients = [_mean(of_each) for of_each in zip(*(other["gradients"] for other in states), strict=True)]
        return {**state, "gradients": gradients}
    return state


def _mean(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    total: torch.Tensor = sum(present[1:], present[0]) if present else torch.zeros(())
    return total / len(tensors) if present else None


def _of_other_batches(
    saved: Mapping[str, Any], path: Path, before: int, samples: int, epoch_length: int | None
) -> tuple[dict[str, Any], int]:
    """The state of an engine that takes ``samples`` in an iteration instead of ``before``; and how many it sees again.

    Raises:
        ValueError: that cannot be the same epoch.
    """
    length = saved["epoch_length"]
    if length is None or epoch_length is None or abs(length * before - epoch_length * samples) > before + samples:
        raise ValueError(
            f"{path} was saved with {length} iterations an epoch, each of {before} samples, but now there are "
            f"{epoch_length} of {samples}: use the same data, and a batch size with which these can be compared, or "
            "choose another directory."
        )
    position = saved["position"] or 0
    moved = min(position * before // samples, epoch_length - 1)
    epochs = saved["epoch"] - (saved["position"] is not None)
    completed = saved["iteration"] - position
    whole = completed == epochs * length  # else epochs were cut short
    completed = epochs * epoch_length if whole else completed * before // samples
    engine = {
        **saved,
        "iteration": completed + moved,
        "position": None if saved["position"] is None else moved,
        "epoch_length": epoch_length,
    }
    return engine, position * before - moved * samples
