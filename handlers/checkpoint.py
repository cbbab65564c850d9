"""Keeps a run on the disk and goes on with it.

Listens to:

- STARTED: in CHECK warns of modules and optimizers that are used and nobody named; in PREPARE takes the run's directory
  for this process; in RESTORE brings back the newest whole checkpoint, if the run is at its beginning.
- STARTED in SAVE, the last phase, or EPOCH_STARTED in SAVE if the checkpoint is from within an epoch: brings back what
  the start of the run or of the epoch has reset, and the random generators.
- EPOCH_COMPLETED and ITERATION_COMPLETED, as asked for: the first in CHECK, the second in SAVE, says that it is time to
  save. After an iteration that is done at once, after the last one of an epoch at the SAVE of EPOCH_COMPLETED.
- TERMINATE in SAVE: saves a run that a time limit has ended, before its end changes anything.
- COMPLETED in SAVE: saves the run as finished. EXCEPTION_RAISED in SAVE: ends what is written in the background.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.distributed import initialise, world_size
from camshaft.engine.engine import Engine
from camshaft.engine.events import Events
from camshaft.engine.generators import generator_states
from camshaft.engine.phases import Phase, events_in
from camshaft.engine.resumable_data import ResumableData
from camshaft.handlers.checkpoint_contents import (
    FORMAT,
    OURS,
    keeps_state,
    own_generators,
    plain,
    stateful_handlers,
    warn_of_forgotten,
)
from camshaft.handlers.checkpoint_ranks import Ranks, content_of_rank, write_together
from camshaft.handlers.checkpoint_store import CheckpointStore, SavedCheckpoint
from camshaft.handlers.checkpoint_writer import BackgroundWriter
from camshaft.handlers.ema import unwrapped
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.monitor import Mode, Monitor, outputs_of, values_of
from camshaft.handlers.resumption import Resumption
from camshaft.handlers.run_lock import RunLock
from camshaft.handlers.run_record import record_run

__all__ = ["Checkpoint"]

# Events in the midst of which a run can be left and gone on with: what had not fired yet fires then.
_DIVISIBLE = {event.name: event for event in (Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED, Events.COMPLETED)}


class Checkpoint(Handler):
    """Saves what a run needs to go on, and goes on with it when the same program is started again.

    The user names modules and optimizers (anything with ``state_dict`` and ``load_state_dict``); the state of the
    engine, of every handler attached to it or to its evaluators (Ignite's too), of the random generators and of the
    data is found. A checkpoint is a directory ``iteration=…`` in ``DIRECTORY/checkpoints`` that is either whole or
    absent, and reads with ``torch.load(".../state.pt", weights_only=True)``.

    On several processes all of them attach it with the same directory and make one checkpoint together, which another
    number of processes can go on with, too. An error in saving is then raised on each of them.

    Args:
        directory: of the run.
        objects: what to keep, by name, where a name is no identifier or is one of the arguments below.
        at: when: ``Events.EPOCH_COMPLETED`` by default; add ``| Events.ITERATION_COMPLETED(every=500)`` for more often.
        keep_last: how many of the newest are kept, 2 by default, so that one broken on the disk is not the only one;
            that of the finished run is kept besides.
        keep_best: how many of the best are kept besides, 1 by default; needs ``monitor``.
        monitor: the name of the value that tells the best.
        mode: ``"min"``, ``"max"``, or ``"auto"`` by the name.
        resume: ``"auto"`` goes on with the newest whole checkpoint there is; ``"never"`` refuses a directory that has
            one; a path goes on with that checkpoint, with the newest whole one of the run in that directory, or takes
            over the named objects from a file of Ignite's ``Checkpoint``, and once this directory has a checkpoint of
            the run that began so, goes on with that.
        asynchronous: write in the background while training goes on; the state is copied in memory first, on the CPU.
        on_error: what a full disk or the like does to the run: ``"raise"`` ends it, ``"warn"`` lets it go on.
        named: what to keep: ``model=model, optimizer=optimizer``.

    Raises:
        ValueError: an argument that makes no sense; when the run starts, a checkpoint that does not fit, in which case
            everything is left as it was.
        BrokenCheckpointError: when the run starts, there are checkpoints but none is whole.
        BlockingIOError: when the run starts, another process is training in this directory.
        OSError: a checkpoint cannot be written; earlier ones are as they were.

    Example:
        >>> import tempfile
        >>> model = torch.nn.Linear(2, 1)
        >>> directory = tempfile.mkdtemp()
        >>> engine = Engine(lambda engine, batch: None).attach(Checkpoint(directory, model=model))
        >>> state = engine.run([0, 1, 2], max_epochs=2)
        >>> again = Engine(lambda engine, batch: None).attach(Checkpoint(directory, model=model))
        >>> again.run([0, 1, 2], max_epochs=3).iteration
        9
        >>> [path.name for path in sorted((Path(directory) / "checkpoints").iterdir())]
        ['iteration=00000006,epoch=2', 'iteration=00000009,epoch=3', 'iteration=00000009,finished']
    """

    alone = True

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
            if not keeps_state(thing):
                raise TypeError(
                    f"Checkpoint keeps what has state_dict() and load_state_dict(), but {name!r} is {thing!r}."
                )
        if OURS in self.objects:
            raise ValueError(f"The name {OURS!r} is taken in checkpoints; choose another.")
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"keep_last must be at least 1 and keep_best 0, but they are {keep_last} and {keep_best}.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error is 'raise' or 'warn', not {on_error!r}.")
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.monitor = Monitor(monitor, mode) if monitor is not None else None
        self.on_error = on_error
        self.store = CheckpointStore(self.directory / "checkpoints")
        self.listens = (
            On(Events.STARTED, Phase.PREPARE, "take_directory"),
            On(Events.STARTED, Phase.RESTORE, "restore"),
            On(Events.STARTED, Phase.SAVE, "begin"),
            On(Events.EPOCH_STARTED, Phase.SAVE, "begin_epoch"),
            *map(_time_to_save, events_in(at)),
            On(Events.EPOCH_COMPLETED, Phase.SAVE, "end_epoch"),
            On(Events.TERMINATE, Phase.SAVE, "save_if_ended_for_now"),
            On(Events.COMPLETED, Phase.SAVE, "save_finished"),
            On(Events.EXCEPTION_RAISED, Phase.SAVE, "end_writing"),
        )
        self._ranks = Ranks()  # through which they write together
        self._writer = BackgroundWriter(self._write) if asynchronous else None
        if self._writer is not None:
            self.listens += (On(Events.ITERATION_COMPLETED, Phase.SAVE, "raise_error_of_writing"),)
        self._lock = RunLock(self.directory)
        self._data: ResumableData | None = None
        self._resumption = Resumption(self.store, self.objects, os.fspath(resume))
        self._epoch_began_at: int | None = None  # the iterations before the epoch that is under way, None between two
        self._is_due = False  # a checkpoint, at the end of the epoch
        self._before_evaluation: dict[str, Any] | None = None  # what a validation under way will change

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
        initialise()  # where a launcher has started several processes
        self._data = ResumableData(engine)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        self._of(engine).let_go(engine)
        self._data = None

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        warn_of_forgotten(engine, self.objects, self.directory)
        self._of(engine).look_at(engine.state.dataloader)

    def _of(self, engine: IgniteEngine) -> ResumableData:
        if self._data is None:
            raise RuntimeError(f"{self!r} is attached to no engine.")
        return self._data

    # ------------------------------------------------------------------------------------------------ when to save

    def save_after_iteration(self, engine: IgniteEngine) -> None:
        """Save now or, after the last iteration of an epoch, when that is over."""
        if self._epoch_is_full(engine):
            self._is_due = True
        else:
            self._save(engine)

    def save_after_epoch(self) -> None:
        """Save when all that the end of this epoch brings is done."""
        self._is_due = True

    def end_epoch(self, engine: IgniteEngine) -> None:
        """An epoch is over, and its other handlers are done: save if it is time to."""
        self._epoch_began_at = None
        if self._is_due:
            self._is_due = False
            self._save(engine, f",epoch={engine.state.epoch}")

    def save_if_ended_for_now(self, engine: IgniteEngine) -> None:
        """Save a run that may go on when it is resumed with a larger limit, before its end changes anything."""
        if self._epoch_began_at is not None and _ended_for_now(engine):
            self.save_now(engine)

    def save_finished(self, engine: IgniteEngine) -> None:
        """Save the end of the run, and wait until it is on the disk."""
        self._save(engine, ",finished")
        self.wait()
        self._let_go()

    def save_now(self, engine: IgniteEngine) -> None:
        """Save where the engine has paused, between two iterations or epochs, and wait until it is on the disk.

        A stock Ignite engine cannot begin with the end of an epoch: there nothing is saved after its last iteration,
        and the newest checkpoint remains the one to go on with.
        """
        if not self._epoch_is_full(engine):
            self._save(engine)
        elif isinstance(engine, Engine):
            self._save(engine, rest=(Events.EPOCH_COMPLETED.name, Phase.CHECK))
        self.wait()

    def note_before_evaluation(self, engine: Any, event: str) -> None:
        """Note, as a validation at ``event`` begins, what it will change, so that it can be left and done again."""
        if event not in _DIVISIBLE or not isinstance(engine, Engine):
            self._before_evaluation = None
            return
        before, iteration = self._before_evaluation, engine.state.iteration
        if before is not None and (before["event"], before["iteration"]) == (event, iteration):
            return  # another validation at the same event, before which the first one will be done again, too
        evaluators = {name: kept for name, kept in stateful_handlers(engine).items() if "evaluator." in name}
        self._before_evaluation = {
            "event": event,
            "iteration": iteration,
            "generators": generator_states(own_generators(engine)),
            "data": self._of(engine).state_dict(engine),
            "metrics": dict(engine.state.metrics),
            "handlers": {name: handler.state_dict() for name, handler in evaluators.items()},
        }

    def save_before_evaluation(self, engine: IgniteEngine) -> None:
        """Save as it was when the validation began that has just been left, and wait until it is on the disk.

        Where that cannot be done (a stock Ignite engine, a validation at STARTED or the like) nothing is saved.
        """
        if self._before_evaluation is not None:
            noted = dict(self._before_evaluation)
            del noted["iteration"]
            self._save(engine, rest=(noted.pop("event"), Phase.EVALUATE), noted=noted)
            self.wait()

    def _epoch_is_full(self, engine: Any) -> bool:
        if self._epoch_began_at is None:
            return False
        iterations = engine.state.iteration - self._epoch_began_at
        return bool(engine.should_terminate_single_epoch or iterations == engine.state.epoch_length)

    # ------------------------------------------------------------------------------------------------ saving

    def _save(
        self, engine: Any, moment: str = "", rest: tuple[str, int] | None = None, noted: Mapping[str, Any] | None = None
    ) -> None:
        """Save.

        Args:
            engine: the engine that trains.
            moment: the end of the checkpoint's name.
            rest: the event that had not fired whole, and the phase from which on it is to be fired.
            noted: what was noted earlier, to be saved instead of what is now.
        """
        state = engine.state
        divided = rest[0] if rest is not None else None
        finished = moment == ",finished" or divided == Events.COMPLETED.name
        within_epoch = self._epoch_began_at is not None and divided != Events.EPOCH_COMPLETED.name
        handlers = {
            name: handler.state_dict() for name, handler in stateful_handlers(engine).items() if handler is not self
        }
        ours: dict[str, Any] = {
            "format": FORMAT,
            "engine": {
                "iteration": state.iteration,
                "epoch": state.epoch,
                "position": state.iteration - self._epoch_began_at if within_epoch else None,
                "epoch_length": state.epoch_length,
                "max_epochs": state.max_epochs,
                "max_iters": state.max_iters,
                "optimizer_step": getattr(state, "optimizer_step", 0),
                "should_terminate": engine.should_terminate and not _ended_for_now(engine),
                "finished": finished,
                "ended_by": [type(handler).__name__ for handler in handlers_of(engine) if handler.has_ended_run],
                "user": {key: getattr(state, key) for key in engine.state_dict_user_keys},
            },
            "rest": None if rest is None else {"event": divided, "phase": rest[1], "is_due": self._is_due},
            "output": None if rest is None else _output_of(engine),
            "metrics": dict(state.metrics),
            "monitor": None,
            "seed": torch.initial_seed(),
            "built_lr": self._resumption.built_lr,
        }
        if noted is None:
            noted = {
                "generators": generator_states(own_generators(engine)),
                "data": self._of(engine).state_dict(engine),
                "handlers": {},
            }
        ours = {**ours, **noted, "handlers": {**handlers, **noted["handlers"]}}
        value = None if finished or rest is not None else self._monitored_value(engine)
        metadata = {"iteration": state.iteration, "epoch": state.epoch, "value": value, "finished": finished}
        metadata["origin"] = self._resumption.origin
        if self.monitor is not None:
            metadata |= {"monitor": self.monitor.name, "mode": self.monitor.mode}
            ours["monitor"] = self.monitor.state_dict()  # after the value has been read
        content = {**{name: unwrapped(thing).state_dict() for name, thing in self.objects.items()}, OURS: ours}
        write = self._write if self._writer is None else self._writer.write
        name = f"iteration={state.iteration:08d}{',finished' if finished else moment}"
        self._attempt(write, name, content_of_rank(plain(content)), metadata)

    def _monitored_value(self, engine: IgniteEngine) -> float | None:
        """The monitored value if it is new; within an epoch it need not be there yet."""
        if self.monitor is None or (self._epoch_began_at is not None and self.monitor.name not in values_of(engine)):
            return None
        return self.monitor.read(engine)

    def _write(self, name: str, content: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        write_together(self.store, name, content, metadata, self._ranks)
        self._ranks.first(self._prune)

    def _attempt(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write, or wait for what is being written; an error of the disk is what ``on_error`` makes of it."""
        try:
            write(*arguments)
        except OSError as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"{error} The run goes on without it.", stacklevel=2)

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk; there is something to wait for where it is ``asynchronous``.

        Raises:
            OSError: it could not be written, and ``on_error`` is ``"raise"``.
        """
        if self._writer is not None:
            self._attempt(self._writer.wait)

    def raise_error_of_writing(self) -> None:
        """Let an error in the background reach the run; on several processes the next save does, on all at once."""
        if self._writer is not None and world_size() == 1:
            self._attempt(self._writer.raise_error)

    def end_writing(self, engine: IgniteEngine, error: BaseException) -> None:
        """After an error in the run: end what is being written, and let go of the directory."""
        if self._writer is not None:
            try:
                self._writer.wait()
            except (OSError, RuntimeError) as second:  # the latter if another process is gone
                engine.logger.warning("%s", second)
        self._let_go()

    def _let_go(self) -> None:
        self._lock.release()
        self._ranks.leave()

    def _prune(self) -> None:
        """Delete what is neither new nor good; the newest, which was just written, always stays."""
        checkpoints = self.store.list()
        running = [checkpoint for checkpoint in checkpoints if not checkpoint.finished]
        kept = {checkpoints[-1], *running[-self.keep_last :], *self._ranked(checkpoints)[: self.keep_best]}
        for checkpoint in checkpoints:
            if checkpoint not in kept:
                self.store.delete(checkpoint.path)

    def _ranked(self, checkpoints: list[SavedCheckpoint]) -> list[SavedCheckpoint]:
        """Those with a value, the best first, the earlier before the later of equal ones; NaN counts as none."""
        if self.monitor is None:
            return []
        sign = -1 if self.monitor.mode == "max" else 1
        values = {checkpoint: sign * value for checkpoint in checkpoints if (value := checkpoint.value) is not None}
        return sorted((one for one in values if not math.isnan(values[one])), key=values.__getitem__)

    # ------------------------------------------------------------------------------------------------ going on

    def take_directory(self, engine: IgniteEngine) -> None:
        """Take the directory, on the first process for all, and clear what a killed one left unfinished."""
        self._ranks.leave()
        if self._writer is not None:
            self._ranks = Ranks.beside_training()
        self._ranks.refuse_different(self.directory)

        def take() -> None:
            self._lock.acquire()
            self.store.clear_leftovers()

        self._ranks.first(take)
        self._attempt(self._ranks.first, lambda: record_run(self.directory, engine))
        self._ranks.refuse_unseen(self.directory)

    def restore(self, engine: IgniteEngine) -> None:
        """Bring back the newest whole checkpoint, or the one that was asked for, if this run is at its beginning."""
        self._before_evaluation = self._epoch_began_at = None
        self._is_due = False
        self._resumption.restore(engine, self._of(engine), self.monitor)

    def begin(self, engine: IgniteEngine) -> None:
        """Go on after a checkpoint from between two epochs, or from the end of the run."""
        pending = self._resumption.pending
        if pending is None or pending.within_epoch:
            return
        self._bring_back_what_was_reset(engine)
        pending.end(engine)
        if pending.finished:
            self._let_go()

    def begin_epoch(self, engine: Any) -> None:
        """Note where an epoch begins, and go on after a checkpoint from within it."""
        position = engine._init_iter
        if position is None:  # the engine will find it so, where a run goes on after an error
            length = engine.state.epoch_length if engine._dataloader_iter is None else None
            position = engine.state.iteration % length if length else 0
        self._epoch_began_at = engine.state.iteration - position
        if self._resumption.pending is not None:
            self._bring_back_what_was_reset(engine)

    def _bring_back_what_was_reset(self, engine: IgniteEngine) -> None:
        """Once all handlers have begun the run, or the epoch; then fire what is left of a divided event."""
        rest = self._resumption.bring_back_what_was_reset(engine)
        if rest is not None:
            self._is_due = rest["is_due"]
            engine._event_handlers[_DIVISIBLE[rest["event"]]].fire_from(engine, rest["phase"])  # type: ignore[attr-defined]


def _ended_for_now(engine: IgniteEngine) -> bool:
    return any(handler.ends_run_for_now for handler in handlers_of(engine))


def _time_to_save(event: Any) -> On:
    """The subscription for one of the events at which the user wants to save."""
    name = getattr(event, "name", str(event))
    if name == Events.ITERATION_COMPLETED.name:
        return On(event, Phase.SAVE, "save_after_iteration")
    if name == Events.EPOCH_COMPLETED.name:
        return On(event, Phase.CHECK, "save_after_epoch")
    raise ValueError(f"Checkpoint saves at ITERATION_COMPLETED or EPOCH_COMPLETED, filtered or not, but got {event!r}.")


def _output_of(engine: IgniteEngine) -> Any:
    """What the step returned last, for handlers that have yet to see it; of what cannot be kept, the numbers."""
    try:
        return plain(engine.state.output)
    except TypeError:
        return outputs_of(engine)
