"""Saves and leaves when the process is told to end.

Listens to:

- STARTED in PREPARE: takes over the signals.
- ITERATION_COMPLETED in DECIDE: pauses the run if one has come. INTERRUPT in SAVE: saves and leaves.
- EPOCH_COMPLETED in DECIDE: the same, of several processes, after the validation.
- what each ``Evaluate`` listens to in MEASURE, and STARTED of its evaluator in CHECK: lets ``Checkpoint`` note how it
  was before. ITERATION_COMPLETED of the evaluator in DECIDE: leaves a validation that is under way.
- EXCEPTION_RAISED in DECIDE: saves after that. COMPLETED and EXCEPTION_RAISED in SAVE, and TERMINATE of a run that ends
  without COMPLETED: gives the signals back.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from time import monotonic
from types import FrameType
from typing import Any

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.agreement import Agreement
from camshaft.engine.events import Events
from camshaft.engine.notebook import notebook_shell
from camshaft.engine.phases import Phase, events_in, subscribe
from camshaft.handlers.checkpoint import Checkpoint
from camshaft.handlers.evaluate import Evaluate
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.notices import tell

__all__ = ["PREEMPTED", "Preemption"]

PREEMPTED = 75
"""The exit status after a preemption: EX_TEMPFAIL of sysexits.h, "start it again"."""

_ONE_REQUEST = 1.0
"""Seconds within which a signal is the same request again: a launcher and the cluster may both pass it on."""

_DEFAULT_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class Preemption(Handler):
    """Answers to SIGTERM, SIGUSR1 (as SLURM sends before a job's time is over) and Ctrl-C: saves and leaves.

    The iteration under way is finished, or a validation left, which will be done again; then the ``Checkpoint`` on the
    engine saves, and the process ends with the status 75, which a launcher can tell from a failure, after Ctrl-C with
    130. The same command started again goes on from there to the same bits. A second signal, a second or more after the
    first, ends the process at once; of one process a second Ctrl-C always does.

    In a notebook nothing ends: ``run()`` returns after the iteration, and goes on when it is called again.

    Of several processes all save and leave at the same iteration, whichever of them was told, within a few tenths of a
    second or an iteration more. A validation is finished first, because they need not have as many batches of it.

    Args:
        signals: which to answer to.
        leave: whether to end the process; by default everywhere but in an interactive session.

    Raises:
        ValueError: when the run starts, if no ``Checkpoint`` is attached, or outside of the main thread, where signals
            cannot be taken over.

    Example:
        >>> import os, tempfile
        >>> from camshaft import Checkpoint, Engine, Events
        >>> engine = Engine(lambda engine, batch: os.kill(os.getpid(), signal.SIGTERM) if batch == 3 else None)
        >>> engine = engine.attach(Checkpoint(tempfile.mkdtemp()), Preemption(leave=False))
        >>> engine.run(range(10)).iteration, engine.run(range(10)).iteration
        (4, 10)
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.PREPARE, "take_signals"),
        On(Events.ITERATION_COMPLETED, Phase.DECIDE, "pause_if_told"),
        On(Events.EPOCH_COMPLETED, Phase.DECIDE, "pause_after_validation"),
        On(Events.INTERRUPT, Phase.SAVE, "save_and_leave"),
        On(Events.EXCEPTION_RAISED, Phase.DECIDE, "save_after_validation_was_left"),
        On(Events.COMPLETED, Phase.SAVE, "give_signals_back"),
        On(Events.TERMINATE, Phase.SAVE, "give_signals_back_if_over"),
        On(Events.EXCEPTION_RAISED, Phase.SAVE, "give_signals_back_at_error"),
    )

    def __init__(self, signals: Sequence[signal.Signals] = _DEFAULT_SIGNALS, *, leave: bool | None = None) -> None:
        self.signals = tuple(signals)
        self.leave = leave
        self._received: int | None = None
        self._received_at = 0.0
        self._agreement: Agreement | None = None  # with the other processes
        self._before: dict[int, Any] = {}
        self._engine: Any = None
        self._left_validation = False
        self._event = ""  # of the engine, at which its evaluators are run

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        if not any(isinstance(handler, Checkpoint) for handler in handlers_of(engine)):
            raise ValueError(f"{self!r} saves before it leaves, so it needs a Checkpoint on the same engine.")
        if threading.current_thread() is not threading.main_thread():
            raise ValueError(
                f"{self!r} answers to signals, which python delivers to the main thread only: run it there."
            )

    def take_signals(self, engine: Any) -> None:
        """Take over the signals."""
        self._received = None
        self._left_validation = False
        self._engine = engine
        self._agreement = Agreement.of(engine)
        if self._agreement is not None:
            self._agreement.ask("Preemption", lambda: self._received or 0)
        for number in self.signals:
            self._before.setdefault(number, signal.signal(number, self._note))
        for handler in handlers_of(engine):
            if isinstance(handler, Evaluate) and not handler.evaluator.has_event_handler(self.leave_validation):
                for on in handler.listens:
                    for event in events_in(on.event):
                        subscribe(engine, event, self.note_event, Phase.MEASURE, event.name)
                subscribe(handler.evaluator, Events.STARTED, self.note_before_validation, Phase.CHECK)
                subscribe(handler.evaluator, Events.ITERATION_COMPLETED, self.leave_validation, Phase.DECIDE)

    def give_signals_back(self) -> None:
        """Let the signals do what they did before."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
        self._engine = None

    def give_signals_back_if_over(self, engine: Any) -> None:
        """The same when the run ends without COMPLETED, such as one that was finished before."""
        if engine.should_terminate == "skip_completed":
            self.give_signals_back()

    def give_signals_back_at_error(self, engine: IgniteEngine, error: BaseException) -> None:
        """The same when the run ends by an error."""
        self.give_signals_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        """What a signal calls, between any two lines of python: it leaves a note for the next iteration's end."""
        if self._received is None:
            self._received, self._received_at = number, monotonic()
        elif self._ends_at_once(number):
            self.give_signals_back()
            raise SystemExit(128 + number)

    def _ends_at_once(self, number: int) -> bool:
        impatient = number == signal.SIGINT and self._agreement is None  # of one process nobody but a person sends it
        return impatient or monotonic() - self._received_at > _ONE_REQUEST

    def pause_if_told(self, engine: IgniteEngine) -> None:
        """Pause the run where its state is that of a completed iteration."""
        if self._told() is not None:
            engine.interrupt()

    def pause_after_validation(self, engine: IgniteEngine) -> None:
        """Pause the run, if one of several processes has been told during the validation."""
        if self._agreement is not None:
            self._agreement.settle()
            self.pause_if_told(engine)

    def save_and_leave(self, engine: IgniteEngine) -> None:
        """Save where the engine has paused, and leave."""
        if self._told() is None:  # somebody else's interrupt()
            return
        for checkpoint in _checkpoints_of(engine):
            checkpoint.save_now(engine)
        status = self._status()
        if status is not None:
            self._tell(engine)
        self._received = None
        if self._agreement is not None:
            self._agreement.forget("Preemption")
        if status is not None:
            raise SystemExit(status)

    def note_event(self, name: str) -> None:
        """Note at which event the validations are run that follow."""
        self._event = name

    def note_before_validation(self) -> None:
        """Let what a validation will change be noted."""
        for checkpoint in _checkpoints_of(self._engine) if self._leaves_validations else ():
            checkpoint.note_before_evaluation(self._engine, self._event)

    def leave_validation(self) -> None:
        """Leave a validation that is under way, and with it the process: the run does it again when it goes on."""
        status = self._status() if self._leaves_validations else None
        if status is not None:
            self._left_validation = True
            raise SystemExit(status)

    @property
    def _leaves_validations(self) -> bool:
        return self._engine is not None and self._agreement is None

    def save_after_validation_was_left(self, engine: IgniteEngine, error: BaseException) -> None:
        """Save now that whatever the validation has exchanged, such as weights for their averages, is back."""
        if self._left_validation and isinstance(error, SystemExit):
            for checkpoint in _checkpoints_of(engine):
                checkpoint.save_before_evaluation(engine)
            self._tell(engine)

    def _tell(self, engine: IgniteEngine) -> None:
        """Tell why the process ends, and what is on the disk, which is older where nothing could be saved here."""
        number = self._told()
        name = next((known.name for known in signal.Signals if known == number), f"Signal {number}")
        for checkpoint in _checkpoints_of(engine):
            saved = checkpoint.store.list()
            if saved:
                tell(
                    engine,
                    "%s: saved at iteration %d in %s; the same command goes on.",
                    name,
                    saved[-1].iteration,
                    checkpoint.directory,
                )

    def _told(self) -> int | None:
        """The signal that has come, to this process or, as all know by now, to another."""
        if self._agreement is None:
            return self._received
        return self._agreement.agreed("Preemption") or None

    def _status(self) -> int | None:
        """The status to leave with, or None to stay: nobody said so, or a person sits before it."""
        told = self._told()
        if told is None or not (self.leave if self.leave is not None else not _is_interactive()):
            return None
        return 130 if told == signal.SIGINT else PREEMPTED


def _is_interactive() -> bool:
    """Whether a person sits before it and wants to go on: in a notebook or at a prompt.

    A prompt has set ``sys.ps1``; so has one that a script once opened within itself and left, but a script has a file.
    """
    at_prompt = hasattr(sys, "ps1") and not hasattr(sys.modules.get("__main__"), "__file__")
    return at_prompt or notebook_shell() is not None


def _checkpoints_of(engine: IgniteEngine) -> list[Checkpoint]:
    return [handler for handler in handlers_of(engine) if isinstance(handler, Checkpoint)]
