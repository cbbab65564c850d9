"""Going on with a run: which checkpoint, and putting back what it holds."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.generators import set_generator_states
from camshaft.engine.resumable_data import ResumableData
from camshaft.handlers.checkpoint_contents import (
    FORMAT,
    OURS,
    Restored,
    load_all_or_none,
    own_generators,
    stateful_handlers,
)
from camshaft.handlers.checkpoint_store import CheckpointStore
from camshaft.handlers.monitor import Monitor

__all__ = ["Resumption"]


class Pending(NamedTuple):
    """A run to go on with, once all handlers have begun it, or have begun the epoch that was under way.

    Attributes:
        ours: what the checkpoint holds beside the objects of the user.
        path: of the checkpoint.
        handlers: with their states.
        finished: the run is over, for what is asked for now, too.
        ends: a handler, or ``max_iters``, was about to end the run.
        within_epoch: an epoch is under way, and goes on.
    """

    ours: Mapping[str, Any]
    path: Path
    handlers: list[Restored]
    finished: bool
    ends: bool
    within_epoch: bool

    def end(self, engine: IgniteEngine) -> None:
        """End the run if it was over, or about to be."""
        if self.finished:
            if self.ours["rest"] is None:
                engine.logger.warning(
                    "The run in %s is finished (epoch %d, iteration %d): nothing to do. Pass a larger max_epochs to go "
                    "on.",
                    self.path.parent.parent,
                    engine.state.epoch,
                    engine.state.iteration,
                )
            engine.terminate(skip_completed=True)
        elif self.ends:
            engine.should_terminate = self.ours["engine"]["should_terminate"] or True


class Resumption:
    """Brings back a run, in the steps that the events of its start allow.

    Args:
        store: of the run's checkpoints.
        objects: those of the user, by name.
        resume: ``"auto"``, ``"never"``, or a path.

    Attributes:
        origin: the path from which the run began, if one was given.
        pending: what :meth:`bring_back_what_was_reset` has yet to do.
    """

    def __init__(self, store: CheckpointStore, objects: Mapping[str, Any], resume: str) -> None:
        self.store = store
        self.objects = objects
        self.resume = resume
        self.origin: str | None = None
        self.pending: Pending | None = None

    def restore(self, engine: Any, data: ResumableData, monitor: Monitor | None) -> None:
        """Choose a checkpoint and bring it back, unless the same engine goes on with what it has in memory.

        Raises:
            ValueError: it does not fit, or there is one that should not be; everything is left as it was.
            BrokenCheckpointError: there are some, but none is whole.
        """
        self.pending = None
        chosen = None if engine.state.iteration or engine.state.epoch else self._chosen(engine.state)
        if chosen is None:
            return
        content, path = chosen
        objects = self._objects_in(content, path)
        if OURS not in content:
            load_all_or_none(objects, path)
            return
        pending = self._checked(content[OURS], path, engine)
        load_all_or_none([*objects, *pending.handlers], path)
        self.pending = pending
        if monitor is not None and pending.ours["monitor"] is not None:
            monitor.load_state_dict(pending.ours["monitor"])
        data.load_state_dict(pending.ours["data"])
        _set_state(engine, pending)

    def bring_back_what_was_reset(self, engine: Any) -> Mapping[str, Any] | None:
        """When all handlers have begun the run, or the epoch: their states again, the metrics and the generators.

        Returns:
            What is left of an event in the midst of which it was saved, to be fired now.
        """
        pending, self.pending = self.pending, None
        assert pending is not None
        for _, handler, state in pending.handlers:
            handler.load_state_dict(state)
        engine.state.metrics.update(pending.ours["metrics"])
        set_generator_states(pending.ours["generators"], own_generators(engine))
        rest: Mapping[str, Any] | None = pending.ours["rest"]
        if rest is None or (pending.ours["engine"]["finished"] and not pending.finished):
            return None
        engine.state.output = pending.ours["output"]
        return rest

    def _chosen(self, state: Any) -> tuple[dict[str, Any], Path] | None:
        checkpoints = self.store.list()
        if self.resume == "never" and checkpoints:
            raise ValueError(
                f"{self.store.directory.parent} has checkpoints of an earlier run, the newest "
                f"{checkpoints[-1].path.name}: choose another directory for a new run, or go on with that one by "
                "resume='auto'."
            )
        began_elsewhere = self.resume not in ("auto", "never")
        if began_elsewhere and not (checkpoints and checkpoints[-1].origin == self.resume):
            self.origin = self.resume
            return self._read(Path(self.resume)), Path(self.resume)
        newest = self.store.newest_whole()
        if newest is not None and newest[0].finished and not _stays_finished(newest[1][OURS]["engine"], state):
            # The end of the run may have changed it, by bringing back the best weights: go on from before.
            newest = self.store.newest_whole(running=True)
        if newest is None:
            return None
        self.origin = newest[0].origin
        return newest[1], newest[0].path

    def _read(self, path: Path) -> dict[str, Any]:
        """A checkpoint of ours, or a file of Ignite's."""
        if not path.exists():
            raise ValueError(f"There is no checkpoint {path} to go on with: resume is 'auto', 'never', or a path.")
        if path.is_dir():
            return self.store.read(path)
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{path} is no file of tensors and plain values, or not a whole one, and nothing else is read, because "
                f"it could run code: {str(error).splitlines()[0]}"
            ) from error
        return content

    def _objects_in(self, content: Mapping[str, Any], path: Path) -> list[Restored]:
        missing = sorted(set(self.objects) - set(content))
        if len(self.objects) == 1 and missing and OURS not in content:  # Ignite writes a single one without its name
            return [Restored(name, thing, content) for name, thing in self.objects.items()]
        if missing:
            raise ValueError(
                f"{path} has no {' and no '.join(map(repr, missing))}; it has {sorted(set(content) - {OURS})}. Name "
                "the objects as they were named when it was saved, or choose another directory."
            )
        return [Restored(name, thing, content[name]) for name, thing in self.objects.items()]

    def _checked(self, ours: Mapping[str, Any], path: Path, engine: IgniteEngine) -> Pending:
        """What is to be brought back, if it is of such a run."""
        if ours["format"] > FORMAT:
            raise ValueError(f"{path} was written by a newer version of Camshaft (format {ours['format']}): upgrade.")
        saved, state = ours["engine"], engine.state
        if state.epoch_length is not None and saved["epoch_length"] not in (None, state.epoch_length):
            raise ValueError(
                f"{path} was saved with {saved['epoch_length']} iterations an epoch, but the data has now "
                f"{state.epoch_length}: use the same data and batch size, or choose another directory."
            )
        attached = stateful_handlers(engine)
        for name in sorted(set(ours["handlers"]) - set(attached)):
            if ours["handlers"][name]:
                warnings.warn(f"{path} has the state of {name}, but no such handler is attached.", stacklevel=2)
        handlers = [Restored(name, attached[name], kept) for name, kept in ours["handlers"].items() if name in attached]
        within_epoch = saved["position"] is not None
        finished = saved["finished"] and _stays_finished(saved, state)
        at_max_iters = within_epoch and state.max_iters is not None and saved["iteration"] >= state.max_iters
        ends = not saved["finished"] and bool(saved["should_terminate"] or at_max_iters)
        return Pending(ours, path, handlers, finished, ends, within_epoch and not finished and not ends)


def _set_state(engine: Any, pending: Pending) -> None:
    saved, state = pending.ours["engine"], engine.state
    state.iteration = saved["iteration"]
    state.epoch = saved["epoch"] - pending.within_epoch  # the loop is about to begin that epoch again
    state.epoch_length = saved["epoch_length"] or state.epoch_length
    state.optimizer_step = saved["optimizer_step"]
    state.metrics.update(pending.ours["metrics"])
    for key, value in saved["user"].items():
        setattr(state, key, value)
    engine._init_iter = saved["position"] if pending.within_epoch else 0
    engine._dataloader_iter = None


def _stays_finished(saved: Mapping[str, Any], state: Any) -> bool:
    """Whether a finished run is finished for the ``max_epochs`` or ``max_iters`` that are asked for now, too."""
    if saved["should_terminate"] and saved["iteration"] != saved["max_iters"]:
        return True  # a handler ended it
    if state.max_iters is not None:
        return bool(saved["iteration"] >= state.max_iters)
    epochs = saved["epoch"] - (saved["position"] is not None)  # without the one in which it ended
    return bool(epochs >= (state.max_epochs or 0))
