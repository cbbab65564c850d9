"""Going on with a run: which checkpoint, and putting back what it holds."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.distributed import rank
from camshaft.engine.generators import set_generator_states
from camshaft.engine.resumable_data import ResumableData, samples_per_iteration
from camshaft.handlers.checkpoint_contents import (
    FORMAT_OF_SEVERAL,
    OURS,
    Restored,
    load_all_or_none,
    own_generators,
    stateful_handlers,
)
from camshaft.handlers.checkpoint_ranks import Ranks, read_for_this_rank
from camshaft.handlers.checkpoint_store import CheckpointStore, SavedCheckpoint
from camshaft.handlers.monitor import Monitor
from camshaft.handlers.notices import tell
from camshaft.handlers.world_change import view_for_world

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
            if self.ours["rest"] is None and rank() == 0:
                engine.logger.warning(
                    "The run in %s is finished (epoch %d, iteration %d): nothing to do. %s",
                    self.path.parent.parent,
                    engine.state.epoch,
                    engine.state.iteration,
                    _way_on(self.ours["engine"]),
                )
            engine.terminate(skip_completed=True)
        elif self.ends:
            engine.should_terminate = self.ours["engine"]["should_terminate"] or True


def _way_on(saved: Mapping[str, Any]) -> str:
    """What can be done about a run that is finished."""
    if not _was_ended(saved):
        return "Pass a larger max_epochs to go on."
    by = " and ".join(saved.get("ended_by", ())) or "The program or a handler"
    return (
        f"{by} ended it, so a larger max_epochs changes nothing. Choose another directory for a new run; with the path "
        "of an earlier checkpoint as its resume it goes on from there."
    )


class Resumption:
    """Brings back a run, in the steps that the events of its start allow.

    Args:
        store: of the run's checkpoints.
        objects: those of the user, by name.
        resume: ``"auto"``, ``"never"``, or a path.

    Attributes:
        origin: the path from which the run began, if one was given.
        pending: what :meth:`bring_back_what_was_reset` has yet to do.
        built_lr: the learning rates that the optimizers had when the run began, by name, one for each group.
    """

    def __init__(self, store: CheckpointStore, objects: Mapping[str, Any], resume: str) -> None:
        self.store = store
        self.objects = objects
        self.resume = resume
        self.origin: str | None = None
        self.pending: Pending | None = None
        self.built_lr: dict[str, list[float]] = {}

    def restore(self, engine: Any, data: ResumableData, monitor: Monitor | None) -> None:
        """Choose a checkpoint and bring it back, unless the same engine goes on with what it has in memory.

        Raises:
            ValueError: it does not fit, or there is one that should not be; everything is left as it was.
            BrokenCheckpointError: there are some, but none is whole.
        """
        self.pending = None
        if engine.state.iteration or engine.state.epoch:
            return
        self.built_lr = _learning_rates(self.objects)
        ranks = Ranks()
        read: list[dict[str, Any]] = []
        chosen = ranks.first(lambda: self._chosen(engine.state, read))
        if chosen is None:
            return
        path, self.origin = chosen
        undo: list[Callable[[], None]] = []

        def load() -> Pending | None:
            content = self._read(path, read)
            objects = self._objects_in(content, path)
            pending = self._checked(content[OURS], path, engine) if OURS in content else None
            undo.append(load_all_or_none([*objects, *(pending.handlers if pending else ())], path))
            return pending

        pending = self._loaded_by_all(ranks, load, undo)
        if pending is None:
            return
        self.pending = pending
        if monitor is not None and pending.ours["monitor"] is not None:
            monitor.load_state_dict(pending.ours["monitor"])
        data.load_state_dict(pending.ours["data"], pending.ours["engine"]["iteration"])
        _set_state(engine, pending)
        if not pending.finished:
            self._tell_where(engine, pending)  # before a progress bar is shown
        self.built_lr.update(pending.ours.get("built_lr", {}))

    def _loaded_by_all(
        self, ranks: Ranks, load: Callable[[], Pending | None], undo: list[Callable[[], None]]
    ) -> Pending | None:
        """Load on every rank; where it fails on one, all are left as they were."""
        loaded: list[Pending | None] = []

        def load_here() -> None:  # what it returns would be sent to the others
            loaded.append(load())

        try:
            ranks.each(load_here)
        except Exception:
            for undo_here in undo:
                undo_here()
            raise
        return loaded[0]

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

    def _tell_where(self, engine: Any, pending: Pending) -> None:
        """Tell that a run goes on, from what, and where in it; and of learning rates that are not the program's now."""
        path, saved = pending.path, pending.ours["engine"]
        of = path.parent.parent if path.parent == self.store.directory else path
        where = f"after epoch {saved['epoch']}"
        if saved["position"] is not None:
            where = f"in epoch {saved['epoch']} after batch {saved['position']} of {engine.state.epoch_length}"
        tell(engine, "Going on with %s %s (iteration %d).", of, where, saved["iteration"])
        for name, began, now in _other_learning_rates(pending.ours.get("built_lr", {}), self.built_lr):
            if rank() == 0:
                engine.logger.warning(
                    "%r: the run began with lr %g and the program now has %g; what the checkpoint holds is taken.",
                    name,
                    began,
                    now,
                )

    def _chosen(self, state: Any, read: list[dict[str, Any]]) -> tuple[Path, str | None] | None:
        """The checkpoint to go on with and the path that the run began from; what was read on the way goes to ``read``.

        Only the first rank looks; it has compared the digests.
        """
        checkpoints = self.store.list()
        if self.resume == "never" and checkpoints:
            raise ValueError(
                f"{self.store.directory.parent} has checkpoints of an earlier run, the newest "
                f"{checkpoints[-1].path.name}: choose another directory for a new run, or go on with that one by "
                "resume='auto'."
            )
        began_elsewhere = self.resume not in ("auto", "never")
        if not began_elsewhere or (checkpoints and checkpoints[-1].origin == self.resume):
            newest = _newest(self.store, state)
            if newest is None:
                return None
            read.append(newest[1])
            return newest[0].path, newest[0].origin
        path = Path(self.resume)
        if not path.exists():
            raise ValueError(
                f"There is no checkpoint {path} to go on with: resume is 'auto', 'never', or the path of a checkpoint, "
                "of a run, or of a file of Ignite's."
            )
        if (path / "checkpoints").is_dir():
            newest = _newest(CheckpointStore(path / "checkpoints"), state)
            if newest is None:
                raise ValueError(f"The run {path} has no checkpoint to go on with.")
            read.append(newest[1])
            return newest[0].path, self.resume
        if path.is_dir():
            self.store.verify(path)
        return path, self.resume

    def _read(self, path: Path, read: list[dict[str, Any]]) -> dict[str, Any]:
        """A checkpoint of ours, or a file of Ignite's."""
        if path.is_dir():
            return read_for_this_rank(self.store, path, read[0] if read else None, self.objects)
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
        if ours["format"] > FORMAT_OF_SEVERAL:
            raise ValueError(f"{path} was written by a newer version of Camshaft (format {ours['format']}): upgrade.")
        state = engine.state
        ours = view_for_world(ours, path, state.epoch_length, samples_per_iteration(state.dataloader))
        saved = ours["engine"]
        if state.epoch_length is not None and saved["epoch_length"] not in (None, state.epoch_length):
            raise ValueError(
                f"{path} was saved with {saved['epoch_length']} iterations an epoch, but the data has now "
                f"{state.epoch_length}: use the same data and batch size, or choose another directory."
            )
        attached = stateful_handlers(engine)
        for name in sorted(set(ours["handlers"]) - set(attached)):
            if ours["handlers"][name]:
                warnings.warn(f"{path} has the state of {name}, but no such handler is attached.", stacklevel=2)
        # In an order that all ranks have, since what handlers do then may need all of them.
        kept = ours["handlers"]
        handlers = [Restored(name, handler, kept[name]) for name, handler in attached.items() if name in kept]
        within_epoch = saved["position"] is not None
        finished = saved["finished"] and _stays_finished(saved, state)
        at_max_iters = within_epoch and state.max_iters is not None and saved["iteration"] >= state.max_iters
        ends = not saved["finished"] and bool(saved["should_terminate"] or at_max_iters)
        return Pending(ours, path, handlers, finished, ends, within_epoch and not finished and not ends)


def _newest(store: CheckpointStore, state: Any) -> tuple[SavedCheckpoint, dict[str, Any]] | None:
    """The newest whole checkpoint; if its run has ended but is to be longer now, the newest before that."""
    newest = store.newest_whole(together=False)
    if newest is not None and newest[0].finished and not _stays_finished(newest[1][OURS]["engine"], state):
        # The end of the run may have changed it, by bringing back the best weights: go on from before.
        newest = store.newest_whole(running=True, together=False)
    return newest


def _learning_rates(objects: Mapping[str, Any]) -> dict[str, list[float]]:
    """Those that the program gave its optimizers, by name, whatever a schedule has made of them."""
    groups = {name: thing.param_groups for name, thing in objects.items() if isinstance(thing, torch.optim.Optimizer)}
    return {
        name: [float(lr) for group in own if (lr := group.get("initial_lr", group.get("lr"))) is not None]
        for name, own in groups.items()
    }


def _other_learning_rates(
    began: Mapping[str, list[float]], now: Mapping[str, list[float]]
) -> Iterator[tuple[str, float, float]]:
    """The optimizers that the program now gives another learning rate, and the first that differs; schedules do not."""
    for name in sorted(set(began) & set(now)):
        different = [pair for pair in zip(began[name], now[name], strict=False) if pair[0] != pair[1]]
        if different:
            yield name, *different[0]


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


def _was_ended(saved: Mapping[str, Any]) -> bool:
    """Whether a handler or the program ended a run, rather than ``max_epochs`` or ``max_iters``."""
    return bool(saved["should_terminate"] and saved["iteration"] != saved["max_iters"])


def _stays_finished(saved: Mapping[str, Any], state: Any) -> bool:
    """Whether a finished run is finished for the ``max_epochs`` or ``max_iters`` that are asked for now, too."""
    if _was_ended(saved):
        return True
    if state.max_iters is not None:
        return bool(saved["iteration"] >= state.max_iters)
    epochs = saved["epoch"] - (saved["position"] is not None)  # without the one in which it ended
    return bool(epochs >= (state.max_epochs or 0))
