"""Keeps a run on the disk and goes on with it.

Listens to:

- STARTED in CHECK: warns of modules and optimizers that the step uses and nobody named.
- STARTED in PREPARE: takes the run's directory for this process. In RESTORE: brings back the newest whole checkpoint if the run is at its beginning; the random generators
  follow in SAVE, the last phase, and for a checkpoint from within an epoch at the SAVE of its EPOCH_STARTED.
- EPOCH_COMPLETED, and ITERATION_COMPLETED where asked for, in SAVE: saves. EPOCH_COMPLETED in CHECK: notes what a
  validation will change, for a preemption in the middle of it.
- COMPLETED in SAVE: saves the run as finished. EXCEPTION_RAISED in SAVE: ends what is written in the background.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine.engine import Engine
from camshaft.engine.events import Events
from camshaft.engine.generators import generator_states, set_generator_states
from camshaft.engine.phases import Phase, events_in
from camshaft.engine.resumable_data import ResumableData
from camshaft.engine.training_step import TrainingStep
from camshaft.engine.used_objects import modules_used_by, used_by
from camshaft.handlers.checkpoint_store import CheckpointStore, SavedCheckpoint
from camshaft.handlers.checkpoint_writer import BackgroundWriter
from camshaft.handlers.evaluate import Evaluate
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.monitor import Mode, Monitor, values_of
from camshaft.handlers.run_lock import RunLock
from camshaft.handlers.run_record import record_run

__all__ = ["Checkpoint"]

FORMAT = 1
_OURS = "camshaft"  # the entry of a checkpoint beside those that the user named


class Checkpoint(Handler):
    """Saves what a run needs to go on, and goes on with it when the same program is started again.

    The user names modules and optimizers (anything with ``state_dict`` and ``load_state_dict``); the state of the
    engine, of every handler attached to it or to its evaluators (Ignite's too), of the random generators and of the
    data is found. A checkpoint is a directory ``iteration=…`` in ``DIRECTORY/checkpoints`` that is either whole or
    absent, and reads with ``torch.load(".../state.pt", weights_only=True)``.

    Args:
        directory: of the run.
        objects: what to keep, by name, where a name is no identifier or is one of the arguments below.
        at: when: ``Events.EPOCH_COMPLETED`` by default; add ``| Events.ITERATION_COMPLETED(every=500)`` for more often.
        keep_last: how many of the newest are kept, 2 by default, so that one broken on the disk is not the only one.
        keep_best: how many of the best are kept besides, 1 by default; needs ``monitor``.
        monitor: the name of the value that tells the best.
        mode: ``"min"``, ``"max"``, or ``"auto"`` by the name.
        resume: ``"auto"`` goes on with the newest whole checkpoint there is; ``"never"`` refuses a directory that has
            one; a path goes on with that checkpoint, or takes over the named objects from a file of Ignite's
            ``Checkpoint``.
        asynchronous: write in the background while training goes on; the state is copied in memory first, on the CPU.
        on_error: what a full disk or a vanished directory does to the run: ``"raise"`` ends it, ``"warn"`` lets it go on.
        named: what to keep: ``model=model, optimizer=optimizer``.

    Raises:
        ValueError: an argument that makes no sense; when the run starts, a checkpoint that does not fit, in which case
            everything is left as it was.
        BrokenCheckpointError: when the run starts, there are checkpoints but none is whole.
        RuntimeError: when the run starts, another process is training in this directory.
        OSError: a checkpoint cannot be written; earlier ones are as they were.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> directory = tempfile.mkdtemp()
        >>> engine = Engine(lambda engine, batch: None).attach(Checkpoint(directory, model=model))
        >>> state = engine.run([0, 1, 2], max_epochs=2)
        >>> again = Engine(lambda engine, batch: None).attach(Checkpoint(directory, model=model))
        >>> again.run([0, 1, 2], max_epochs=3).iteration
        9
        >>> [path.name for path in sorted((Path(directory) / "checkpoints").iterdir())]
        ['iteration=00000009,epoch=3', 'iteration=00000009,finished']
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        objects: Mapping[str, Any] | None = None,
        /,
        *,
        at: Any = Events.EPOCH_COMPLETED,
        keep_last: int = 2,
        keep_best: int = 1,
        monitor: str | None = None,
        mode: Mode = "auto",
        resume: str | os.PathLike[str] = "auto",
        asynchronous: bool = False,
        on_error: Literal["raise", "warn"] = "raise",
        **named: Any,
    ) -> None:
        self.directory = Path(directory)
        self.objects = {**(objects or {}), **named}
        for name, thing in self.objects.items():
            if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
                raise TypeError(f"Checkpoint keeps what has state_dict() and load_state_dict(), but {name!r} is {thing!r}.")
        if _OURS in self.objects:
            raise ValueError(f"The name {_OURS!r} is taken in checkpoints; choose another.")
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"keep_last must be at least 1 and keep_best 0, but they are {keep_last} and {keep_best}.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error is 'raise' or 'warn', not {on_error!r}.")
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.monitor = Monitor(monitor, mode) if monitor is not None else None
        self.resume = resume
        self.on_error = on_error
        self.store = CheckpointStore(self.directory / "checkpoints")
        self.listens = (
            On(Events.STARTED, Phase.PREPARE, "take_directory"),
            On(Events.STARTED, Phase.RESTORE, "restore"),
            On(Events.STARTED, Phase.SAVE, "begin"),
            On(Events.EPOCH_STARTED, Phase.SAVE, "begin_epoch"),
            *(On(event, Phase.SAVE, _SAVING_METHODS[_checked(event)]) for event in events_in(at)),
            On(Events.EPOCH_COMPLETED, Phase.CHECK, "note_epoch_end"),
            On(Events.COMPLETED, Phase.SAVE, "save_finished"),
            On(Events.EXCEPTION_RAISED, Phase.SAVE, "end_writing"),
        )
        self._writer = BackgroundWriter(self._write) if asynchronous else None
        if self._writer is not None:
            self.listens += (On(Events.ITERATION_COMPLETED, Phase.SAVE, "raise_error_of_writing"),)
        self._lock = RunLock(self.directory)
        self._epoch_end: dict[str, Any] | None = None  # what a validation under way will change
        self._data: ResumableData | None = None
        self._epoch_began_at = 0  # the iterations before the present epoch
        self._pending: dict[str, Any] | None = None  # what is brought back only when an epoch under way goes on

    # ------------------------------------------------------------------------------------------------ what is kept

    @property
    def last(self) -> Path | None:
        """The directory of the newest checkpoint, or None."""
        checkpoints = self.store.list()
        return checkpoints[-1].path if checkpoints else None

    @property
    def best(self) -> Path | None:
        """The directory of the checkpoint with the best monitored value, or None."""
        ranked = self._ranked(self.store.list())
        return ranked[0].path if ranked else None

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        self._data = ResumableData(engine)

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        step = engine._process_function
        used: dict[str, Any] = {**modules_used_by(step), **used_by(step, torch.optim.Optimizer)}
        for backward in step.backwards if isinstance(step, TrainingStep) else ():
            used.update({type(optimizer).__name__: optimizer for optimizer in getattr(backward, "optimizers", ())})
        kept = {id(thing) for thing in self.objects.values()}
        kept |= {id(part) for thing in self.objects.values() if isinstance(thing, nn.Module) for part in thing.modules()}
        for name, thing in used.items():
            has_state = not isinstance(thing, nn.Module) or bool(thing.state_dict())
            if has_state and id(thing) not in kept and id(unwrapped(thing)) not in kept:
                warnings.warn(
                    f"The step uses {name!r} ({type(thing).__name__}), but the checkpoint does not keep it, so a resumed "
                    f"run will not be the same: Checkpoint({str(self.directory)!r}, ..., {name}={name}).",
                    stacklevel=2,
                )

    def _stateful_handlers(self, engine: IgniteEngine) -> dict[str, Any]:
        """The handlers whose state is kept, Ignite's among them, by names that are the same in each run."""
        named: dict[str, Any] = {}
        for prefix, owner in self._engines(engine):
            ignites = {
                id(own): own
                for entries in owner._event_handlers.values()
                for handler, _, _ in entries
                if (own := getattr(handler, "__self__", None)) is not None and _keeps_state(own)
            }
            # Those of one class by their arguments, because next time the order of attachment may be another.
            for handler in (*sorted(handlers_of(owner), key=repr), *ignites.values()):
                if handler is self or any(handler is other for other in named.values()):
                    continue
                name = prefix + type(handler).__name__
                same = sum(other.split("#")[0] == name for other in named)
                named[f"{name}#{same + 1}" if same else name] = handler
        return named

    def _engines(self, engine: IgniteEngine) -> Iterator[tuple[str, IgniteEngine]]:
        yield "", engine
        for handler in handlers_of(engine):
            if isinstance(handler, Evaluate):
                yield f"{handler.prefix}evaluator.", handler.evaluator

    # ------------------------------------------------------------------------------------------------ saving

    def save_in_epoch(self, engine: IgniteEngine) -> None:
        """Save after an iteration; not where the epoch is told to end here, which its own checkpoint will know."""
        if not engine.should_terminate_single_epoch and self._can_resume_here(engine):
            self._save(engine, "", self._position(engine))

    def save_epoch(self, engine: IgniteEngine) -> None:
        """Save after an epoch and all that its other handlers did."""
        self._epoch_end = None
        self._save(engine, f",epoch={engine.state.epoch}")

    def save_finished(self, engine: IgniteEngine) -> None:
        """Save the end of the run, and wait until it is on the disk."""
        self._save(engine, ",finished")
        if self._writer is not None:
            self._attempt(self._writer.wait)
        self._lock.release()

    def save_now(self, engine: IgniteEngine) -> None:
        """Save where the engine is paused, between two iterations, and wait until it is on the disk."""
        self.save_in_epoch(engine)
        if self._writer is not None:
            self._attempt(self._writer.wait)

    def note_epoch_end(self, engine: IgniteEngine) -> None:
        """Note what the handlers of an epoch's end draw and set, so that all of it can be done again."""
        assert self._data is not None
        self._epoch_end = {
            "generators": generator_states(self._own_generators(engine)),
            "data": self._data.state_dict(engine),
            "metrics": dict(engine.state.metrics),
        }

    def save_before_evaluation(self, engine: IgniteEngine) -> None:
        """Save from within a validation at an epoch's end: as it was after the last iteration.

        From within another validation nothing is saved; the newest checkpoint remains the one to go on with.
        """
        if self._epoch_end is not None and self._can_resume_here(engine):
            self._save(engine, "", self._position(engine), **self._epoch_end)
            if self._writer is not None:
                self._attempt(self._writer.wait)

    def _position(self, engine: IgniteEngine) -> int:
        return int(engine.state.iteration - self._epoch_began_at)

    def _can_resume_here(self, engine: IgniteEngine) -> bool:
        """A stock Ignite engine cannot begin an epoch at its end; there the checkpoint of the epoch follows."""
        return isinstance(engine, Engine) or self._position(engine) != engine.state.epoch_length

    def _save(self, engine: Any, moment: str, position: int | None = None, **instead: Any) -> None:
        """Save; ``position`` counts the iterations of an epoch that is not over, ``instead`` replaces what is now."""
        state = engine.state
        finished = moment == ",finished"
        value = None if finished or instead else self._monitored_value(engine, position)
        content = {name: unwrapped(thing).state_dict() for name, thing in self.objects.items()}
        assert self._data is not None
        content[_OURS] = {
            "format": FORMAT,
            "engine": {
                "iteration": state.iteration,
                "epoch": state.epoch,
                "position": position,
                "epoch_length": state.epoch_length,
                "max_epochs": state.max_epochs,
                "max_iters": state.max_iters,
                "optimizer_step": getattr(state, "optimizer_step", 0),
                "metrics": instead.get("metrics") or dict(state.metrics),
                "should_terminate": engine.should_terminate,
                "finished": finished,
                "user": {key: getattr(state, key) for key in engine.state_dict_user_keys},
            },
            "handlers": {name: handler.state_dict() for name, handler in self._stateful_handlers(engine).items()},
            "monitor": self.monitor.state_dict() if self.monitor is not None else None,
            "data": instead.get("data") or self._data.state_dict(engine),
            "generators": instead.get("generators") or generator_states(self._own_generators(engine)),
        }
        metadata = {"iteration": state.iteration, "epoch": state.epoch, "value": value, "finished": finished}
        if self.monitor is not None:
            metadata |= {"monitor": self.monitor.name, "mode": self.monitor.mode}
        write = self._write if self._writer is None else self._writer.write
        self._attempt(write, f"iteration={state.iteration:08d}{moment}", plain(content), metadata)

    def _monitored_value(self, engine: IgniteEngine, position: int | None) -> float | None:
        """The monitored value if it is new; within an epoch it need not be there yet."""
        if self.monitor is None or (position is not None and self.monitor.name not in values_of(engine)):
            return None
        return self.monitor.read(engine)

    def _write(self, name: str, content: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self.store.write(name, content, metadata)
        self._prune()

    def _attempt(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write, or wait for what is being written; an error of the disk is what ``on_error`` makes of it."""
        try:
            write(*arguments)
        except OSError as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"{error} The run goes on without it.", stacklevel=2)

    def raise_error_of_writing(self) -> None:
        """Let an error in the background reach the run."""
        if self._writer is not None:
            self._attempt(self._writer.raise_error)

    def end_writing(self, engine: IgniteEngine, error: BaseException) -> None:
        """After an error in the run: end what is being written, and let go of the directory."""
        if self._writer is not None:
            try:
                self._writer.wait()
            except OSError as second:
                engine.logger.warning("%s", second)
        self._lock.release()

    def _prune(self) -> None:
        checkpoints = self.store.list()
        kept = {*checkpoints[-self.keep_last :], *self._ranked(checkpoints)[: self.keep_best]}
        for checkpoint in checkpoints:
            if checkpoint not in kept:
                self.store.delete(checkpoint.path)

    def _ranked(self, checkpoints: list[SavedCheckpoint]) -> list[SavedCheckpoint]:
        """Those with a value, the best first, the earlier before the later of equal ones; NaN counts as none."""
        if self.monitor is None:
            return []
        sign = -1 if self.monitor.mode == "max" else 1
        valued = [checkpoint for checkpoint in checkpoints if checkpoint.value is not None]
        return sorted(
            (checkpoint for checkpoint in valued if checkpoint.value == checkpoint.value),
            key=lambda checkpoint: sign * (checkpoint.value or 0.0),
        )

    def _own_generators(self, engine: IgniteEngine) -> dict[str, Any]:
        return dict(used_by(engine._process_function, torch.Generator))

    # ------------------------------------------------------------------------------------------------ going on

    def take_directory(self) -> None:
        """Take the directory for this process, and clear what a killed one left unfinished."""
        self._lock.acquire()
        self.store.clear_leftovers()
        self._attempt(record_run, self.directory)

    def restore(self, engine: Any) -> None:
        """Bring back the newest whole checkpoint, if this run is at its beginning."""
        self._pending = None
        if engine.state.iteration or engine.state.epoch:
            return  # the same engine goes on with what it has in memory
        if self.resume == "auto":
            newest = self.store.newest_whole()
            if newest is not None and newest[0].finished and not _stays_finished(newest[1][_OURS]["engine"], engine.state):
                # The end of the run may have changed it, by bringing back the best weights: go on from before.
                newest = self.store.newest_whole(finished=False) or newest
            if newest is not None:
                self._restore_from(engine, newest[1], newest[0].path)
        elif self.resume == "never":
            if self.store.list():
                raise ValueError(
                    f"{self.directory} has checkpoints of an earlier run, the newest {self.last}: choose another "
                    "directory for a new run, or go on with that one by resume='auto'."
                )
        else:
            path = Path(self.resume)
            content = self.store.read(path) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)
            self._restore_from(engine, content, path)

    def _restore_from(self, engine: Any, content: dict[str, Any], path: Path) -> None:
        ours = content.get(_OURS)
        if ours is None:
            self._load(engine, self._objects_in(content, path), path)
            return
        if ours["format"] > FORMAT:
            raise ValueError(f"{path} was written by a newer version of Camshaft (format {ours['format']}): upgrade.")
        saved, state = ours["engine"], engine.state
        self._check_epoch_length(state, saved, path)
        handlers = self._stateful_handlers(engine)
        states = [(name, handlers[name], kept) for name, kept in ours["handlers"].items() if name in handlers]
        for name in set(ours["handlers"]) - set(handlers):
            if ours["handlers"][name]:
                warnings.warn(f"{path} has the state of {name}, but no such handler is attached.", stacklevel=2)
        self._load(engine, [*self._objects_in(content, path), *states], path)
        if self.monitor is not None and ours["monitor"] is not None:
            self.monitor.load_state_dict(ours["monitor"])

        within_epoch = saved["position"] is not None and not saved["should_terminate"]
        state.iteration = saved["iteration"]
        state.epoch = saved["epoch"] - within_epoch  # the loop is about to begin that epoch again
        state.epoch_length = saved["epoch_length"]
        state.optimizer_step = saved["optimizer_step"]
        state.metrics.update(saved["metrics"])
        for key, value in saved["user"].items():
            setattr(state, key, value)
        engine._init_iter = saved["position"] if within_epoch else 0
        engine._dataloader_iter = None
        assert self._data is not None
        self._data.load_state_dict(ours["data"])
        self._pending = {"ours": ours, "states": states, "within_epoch": within_epoch}

    def begin(self, engine: Any) -> None:
        """Go on after a checkpoint from the end of an epoch: with its generators, and its decision to end the run."""
        if self._pending is None:
            return
        saved = self._pending["ours"]["engine"]
        if saved["finished"] and _stays_finished(saved, engine.state):
            engine.logger.warning(
                "The run in %s is finished (epoch %d, iteration %d): nothing to do. Pass a larger max_epochs to go on.",
                self.directory,
                saved["epoch"],
                saved["iteration"],
            )
            engine.terminate(skip_completed=True)
        elif saved["should_terminate"]:
            engine.should_terminate = saved["should_terminate"]
        if not self._pending["within_epoch"]:
            self._bring_back_what_was_reset(engine)

    def begin_epoch(self, engine: Any) -> None:
        """Note where an epoch begins, and go on after a checkpoint from within it: what its start has reset comes back."""
        position = engine._init_iter or 0
        self._epoch_began_at = engine.state.iteration - position
        if self._pending is not None:
            self._bring_back_what_was_reset(engine)

    def _bring_back_what_was_reset(self, engine: Any) -> None:
        """Once all handlers have begun the run, or the epoch: their states again, the metrics and the generators."""
        assert self._pending is not None
        for _, handler, state in self._pending["states"]:
            handler.load_state_dict(state)
        engine.state.metrics.update(self._pending["ours"]["engine"]["metrics"])
        set_generator_states(self._pending["ours"]["generators"], self._own_generators(engine))
        self._pending = None

    def _objects_in(self, content: Mapping[str, Any], path: Path) -> list[tuple[str, Any, Any]]:
        missing = sorted(set(self.objects) - set(content))
        if len(self.objects) == 1 and missing:  # Ignite writes a single object without its name
            return [(name, thing, content) for name, thing in self.objects.items()]
        if missing:
            raise ValueError(
                f"{path} has no {' and no '.join(map(repr, missing))}; it has {sorted(set(content) - {_OURS})}. Name the "
                "objects as they were named when it was saved, or choose another directory."
            )
        return [(name, thing, content[name]) for name, thing in self.objects.items()]

    def _load(self, engine: Any, states: list[tuple[str, Any, Any]], path: Path) -> None:
        """Load all states or, if one does not fit, none."""
        before = [(thing, copy.deepcopy(unwrapped(thing).state_dict())) for _, thing, _ in states]
        for name, thing, state in states:
            try:
                unwrapped(thing).load_state_dict(state)
            except Exception as error:
                for loaded, state_before in before:
                    unwrapped(loaded).load_state_dict(state_before)
                raise ValueError(
                    f"{path} does not fit: {name!r} ({type(thing).__name__}) cannot take its state: {error}. Nothing was "
                    "changed. Build it as it was built when it was saved, or choose another directory."
                ) from error

    def _check_epoch_length(self, state: Any, saved: Mapping[str, Any], path: Path) -> None:
        if state.epoch_length is not None and saved["epoch_length"] not in (None, state.epoch_length):
            raise ValueError(
                f"{path} was saved with {saved['epoch_length']} iterations an epoch, but the data has now "
                f"{state.epoch_length}: use the same data and batch size, or choose another directory."
            )


_SAVING_METHODS = {Events.ITERATION_COMPLETED.name: "save_in_epoch", Events.EPOCH_COMPLETED.name: "save_epoch"}


def _checked(event: Any) -> str:
    name = getattr(event, "name", str(event))
    if name not in _SAVING_METHODS:
        raise ValueError(f"Checkpoint saves at {' or '.join(_SAVING_METHODS)}, filtered or not, but got {event!r}.")
    return str(name)


def _stays_finished(saved: Mapping[str, Any], state: Any) -> bool:
    """Whether a finished run is finished for the ``max_epochs`` or ``max_iters`` that are asked for now, too."""
    if saved["should_terminate"] and saved["iteration"] != saved["max_iters"]:
        return True  # a handler ended it
    if state.max_iters is not None:
        return bool(saved["iteration"] >= state.max_iters)
    return bool(saved["epoch"] >= (state.max_epochs or 0))


def unwrapped(thing: Any) -> Any:
    """A module without what torch put around it (compilation, data parallelism), so that its keys are the user's."""
    while isinstance(thing, nn.Module):
        inner = getattr(thing, "_orig_mod", None)
        if inner is None and isinstance(thing, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = thing.module
        if inner is None:
            break
        thing = inner
    return thing


def plain(value: Any, where: str = "") -> Any:
    """``value`` with NumPy's numbers and arrays and paths made plain, so that ``weights_only`` can load it.

    Raises:
        TypeError: something that cannot be; the message says where it stands.

    Example:
        >>> plain({"path": Path("runs"), "losses": [0.5, torch.tensor(0.25)]})
        {'path': 'runs', 'losses': [0.5, tensor(0.2500)]}
    """
    if value is None or isinstance(value, (str, bytes, bool, int, float, torch.Tensor, torch.Size, torch.dtype)):
        return value
    if isinstance(value, Mapping):
        content: dict[Any, Any] = {key: plain(item, f"{where}/{key}") for key, item in value.items()}
        if hasattr(value, "_metadata"):  # a module's, with the versions of its parts
            content = OrderedDict(content)
            content._metadata = value._metadata  # type: ignore[attr-defined]
        return content
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(item, f"{where}/{index}") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__.startswith("numpy"):
        return value.item() if value.ndim == 0 else torch.as_tensor(value)
    if isinstance(value, torch.device):
        return str(value)
    raise TypeError(
        f"A checkpoint holds tensors and plain values, but {where.lstrip('/')} is {value!r} of type "
        f"{type(value).__name__}: give it a state_dict() of such values."
    )


def _keeps_state(thing: Any) -> bool:
    """Whether a handler that is not ours has a state to keep; modules and optimizers are the user's to name."""
    if isinstance(thing, (Handler, IgniteEngine, nn.Module, torch.optim.Optimizer)):
        return False
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))
