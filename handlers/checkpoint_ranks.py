"""One checkpoint of several processes: what they tell each other, and which of them writes and reads what."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from camshaft.engine.distributed import TIMEOUT_VARIABLE, rank, world_size
from camshaft.handlers.checkpoint_contents import FORMAT_OF_SEVERAL, OURS
from camshaft.handlers.checkpoint_store import STATE_FILE, BrokenCheckpointError, CheckpointStore
from camshaft.handlers.sharded_state import Layouts, put_back, read_shards, sharded_names, take_out, write_shards

__all__ = ["Ranks", "content_of_rank", "read_for_this_rank", "write_together"]

PROCESSES = "processes"  # how many have saved, in what was saved by several

Result = TypeVar("Result")

# What each rank has of its own, beside its handlers.
_OF_EACH_RANK = ("data", "generators", "metrics", "monitor", "output", "seed")


class Ranks:
    """The processes that train together, which do a thing together or all fail with the same sentence.

    On one process each method just does it.

    Args:
        group: through which they talk; by default that of everyone.

    Example:
        >>> Ranks().first(lambda: "done"), Ranks().each(lambda: "done")
        ('done', ['done'])
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group

    @classmethod
    def beside_training(cls) -> Ranks:
        """They talk through a group of their own, as what is done in the background must; all call this together."""
        if world_size() == 1:
            return cls()
        seconds = os.environ.get(TIMEOUT_VARIABLE)
        timeout = None if seconds is None else timedelta(seconds=float(seconds))
        return cls(dist.new_group(backend="gloo", timeout=timeout))

    def leave(self) -> None:
        """Let go of a group of their own: a process that ends with one may be aborted."""
        group, self.group = self.group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)

    def refuse_different(self, directory: Path) -> None:
        """Refuse, on all of them, a directory that is not the same for each.

        Raises:
            ValueError: it is not.
        """
        directories = self.each(lambda: os.fspath(directory))
        if len(set(directories)) > 1:
            raise ValueError(
                f"{world_size()} processes make one checkpoint together, but their directories differ: "
                f"{', '.join(dict.fromkeys(directories))}. Give all of them the same."
            )

    def refuse_unseen(self, directory: Path) -> None:
        """Refuse, on all of them, a directory of the first one that another does not see.

        Raises:
            OSError: that says which.
        """
        if world_size() == 1:
            return

        def see() -> None:
            end = time.monotonic() + _LONGEST_UNTIL_SEEN
            while not directory.exists():
                if time.monotonic() > end:
                    raise OSError(
                        f"Rank {rank()}, on {platform.node()}, does not see {directory}, which the first process has "
                        "made: it must lie on a file system that all of them share."
                    )
                time.sleep(0.5)

        self.each(see)

    def first(self, action: Callable[[], Result]) -> Result:
        """Do it on the first rank; its result, or its error, on every one. All must call this at the same point."""
        if world_size() == 1:
            return action()
        outcome, error = _outcome_of(action) if rank() == 0 else (_Outcome(None), None)
        outcomes = [outcome]
        dist.broadcast_object_list(outcomes, group=self.group)
        _raise_first_error(outcomes, error)
        result: Result = outcomes[0].result
        return result

    def each(self, action: Callable[[], Result]) -> list[Result]:
        """Do it on every rank; all results by rank, or the error of the first that failed, on every one."""
        if world_size() == 1:
            return [action()]
        outcome, error = _outcome_of(action)
        outcomes = [outcome] * world_size()
        dist.all_gather_object(outcomes, outcome, group=self.group)
        _raise_first_error(outcomes, error)
        return [other.result for other in outcomes]


_LONGEST_UNTIL_SEEN = 60.0  # seconds: network file systems remember that something was not there


class _Outcome(NamedTuple):
    """What an action came to on one rank, in a form that reaches the others."""

    result: Any
    error: tuple[str, str] | None = None  # the name of a class, and the sentence


_ERRORS = {kind.__name__: kind for kind in (BlockingIOError, OSError, ValueError, TypeError, BrokenCheckpointError)}


def _outcome_of(action: Callable[[], Any]) -> tuple[_Outcome, Exception | None]:
    try:
        return _Outcome(action()), None
    except Exception as error:  # noqa: BLE001 - it is raised again, once all know of it
        names = (kind.__name__ for kind in type(error).__mro__)
        return _Outcome(None, (next((name for name in names if name in _ERRORS), "RuntimeError"), str(error))), error


def _raise_first_error(outcomes: Sequence[_Outcome], own: Exception | None) -> None:
    for number, outcome in enumerate(outcomes):
        if outcome.error is not None:
            if own is not None and rank() == number:
                raise own
            kind, sentence = outcome.error
            raise _ERRORS.get(kind, RuntimeError)(sentence)


# ---------------------------------------------------------------------------------------------------------- writing


def content_of_rank(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What this rank has to write: the first one all, any other of the user's objects its shards alone."""
    if rank() == 0:
        return content
    shards = {name: take_out(state)[1] for name, state in content.items() if name != OURS}
    return {OURS: content[OURS], **shards}


def write_together(
    store: CheckpointStore, name: str, content: Mapping[str, Any], metadata: Mapping[str, Any], ranks: Ranks
) -> None:
    """Write one checkpoint of all processes: it is there, whole, when this returns, and not at all when this raises.

    The first rank writes the objects of the user and what it has itself; each other one a file of what it has that
    differs. What is sharded is written by all, each its shards, as ``torch.distributed.checkpoint`` does it.

    Args:
        store: of the checkpoints; the same directory for every rank.
        name: of the new one.
        content: of this rank.
        metadata: of the checkpoint.
        ranks: all that write.

    Raises:
        OSError: it could not be written, by whichever rank; on all ranks with the same sentence.
    """
    content, shards = take_out(content)
    if world_size() == 1 and not shards:
        store.write(name, content, metadata)
        return
    metadata = {**metadata, PROCESSES: world_size()}
    content = _content_of_this_rank(content, ranks)
    try:
        ranks.first(lambda: store.begin(name))
        written = ranks.each(lambda: store.write_file(name, _file_of(rank()), content))
        if shards:
            written += ranks.each(lambda: write_shards(store, name, shards, ranks.group))
        files = {file: entry for entries in written for file, entry in entries.items()}
        ranks.first(lambda: str(store.commit(name, metadata, files)))
    finally:
        if rank() == 0:
            store.abandon(name)


def _file_of(number: int) -> str:
    return f"rank-{number}.pt" if number else STATE_FILE


def _content_of_this_rank(content: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """All that the first rank has; what others have that differs from it."""
    ours = content[OURS]
    digests = {name: _digest(state) for name, state in ours["handlers"].items()}
    of_first = ranks.first(lambda: digests)
    if rank() == 0:
        return {**content, OURS: {**ours, "format": FORMAT_OF_SEVERAL, PROCESSES: world_size()}}
    part = {key: ours[key] for key in _OF_EACH_RANK}
    part["user"] = ours["engine"]["user"]
    part["same"] = [name for name, digest in digests.items() if of_first.get(name) == digest]
    part["handlers"] = {name: state for name, state in ours["handlers"].items() if name not in part["same"]}
    return {OURS: part}


def _digest(state: Any) -> str:
    digest = hashlib.sha256()
    _add_to(digest, state)
    return digest.hexdigest()


def _add_to(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if value.numel():
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        digest.update(f"{{{len(value)}".encode())
        for key, item in value.items():
            digest.update(repr(key).encode())
            _add_to(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add_to(digest, item)
    else:
        digest.update(repr(value).encode())


# ---------------------------------------------------------------------------------------------------------- reading


def read_for_this_rank(
    store: CheckpointStore, path: Path, content: Mapping[str, Any] | None, objects: Mapping[str, Any]
) -> dict[str, Any]:
    """A checkpoint, which is known to be whole, as this rank needs it.

    Args:
        store: that can read it.
        path: of it.
        content: of its main file, if that has been read.
        objects: those of the user: what is sharded among them is read so.

    Returns:
        The states of the objects, and under ``"camshaft"`` what this rank had; if it was saved by another number of
        processes, what each of them had is in the entry ``"ranks"`` of that.
    """
    state = dict(store.load(path, STATE_FILE) if content is None else content)
    ours = state.get(OURS)
    saved_by = ours.get(PROCESSES, 1) if ours is not None else 1
    if ours is not None and saved_by != world_size():
        parts = [store.load(path, _file_of(number))[OURS] for number in range(1, saved_by)]
        state[OURS] = {**ours, "ranks": [ours, *(_merged(ours, part) for part in parts)]}
    elif ours is not None and rank() > 0:
        state[OURS] = _merged(ours, store.load(path, _file_of(rank()))[OURS])
    layouts = Layouts(objects)
    if names := sharded_names(state):
        state = put_back(state, read_shards(path, names, layouts))
    return layouts.distributed(state)


def _merged(ours: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """What a rank had that differed from the first, with the rest."""
    handlers = {name: ours["handlers"][name] for name in part["same"]} | part["handlers"]
    engine = {**ours["engine"], "user": part["user"]}
    return {**ours, **{key: part[key] for key in _OF_EACH_RANK}, "engine": engine, "handlers": handlers}
