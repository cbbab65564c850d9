"""Signals during a fit: it ends after the batch under way, on all processes the same one, saves and leaves."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

from camshaft.engine.agreement import Agreement
from camshaft.engine.distributed import broadcast, rank, world_size
from camshaft.engine.engine import Engine
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase, subscribe
from camshaft.handlers.preemption import PREEMPTED

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer.trainer import Trainer

__all__ = ["Interruption"]

# What ends a fit, and what Python does with it.
_SIGNALS: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
# A launcher and a terminal may both send one request, this many seconds apart at most.
_ONE_REQUEST = 1.0
_QUESTION = "the Trainer's signal"


class Interruption:
    """What a trainer does with signals, from the first that comes in a fit.

    A second one, later than a moment, ends the process at once.

    Args:
        trainer: whose fits they end.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._engine: Engine | None = None
        self._agreement: Agreement | None = None
        self.received: int | None = None  # the signal that came, on several processes to any of them
        self._received_at = 0.0
        self._alike = True  # whether all processes are at the same point

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Within this context signals end the fit, unless somebody else takes them already."""
        self._engine, self.received, self._alike = None, None, world_size() == 1
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        if threading.current_thread() is not threading.main_thread():  # to which Python delivers signals
            before.clear()
        for number, handler in before.items():
            if handler in (_SIGNALS[number], None):
                signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) in (self._note, _SIGNALS[number]):
                    signal.signal(number, handler)

    def watch(self, engine: Engine) -> None:
        """Let signals end the run of this engine, which is about to begin."""
        self._engine = engine
        self._agreement = Agreement.of(engine)
        subscribe(engine, Events.STARTED, self._begin, Phase.PREPARE)
        if self._agreement is not None:
            subscribe(engine, Events.ITERATION_COMPLETED, self._end_alike, Phase.DECIDE)

    def leave_if_told(self) -> None:
        """After the run: leave, if a signal has ended it.

        Raises:
            SystemExit: after SIGTERM, with the status by which a script knows to start the same command again.
            KeyboardInterrupt: after SIGINT.
        """
        if self._agreement is not None:  # one that came since the last exchange must not end its process alone
            self._agreement.settle()
            self.received, self._alike = self._agreement.agreed(_QUESTION) or None, True
        if self.received == signal.SIGTERM:
            path = self.save_if_possible("preempted.ckpt")
            where = f" Saved in {path}; go on by fit(..., ckpt_path='last')." if path else ""
            if rank() == 0:
                trainer = self._trainer
                sys.stderr.write(f"SIGTERM came in epoch {trainer.current_epoch}, step {trainer.global_step}.{where}\n")
            raise SystemExit(PREEMPTED)
        if self.received is not None:
            raise KeyboardInterrupt

    def save_if_possible(self, name: str) -> Path | None:
        """Save a checkpoint, unless nobody wants any or the processes have come to different points."""
        if not self._trainer.checkpoint_callbacks or not self._alike:
            return None
        path: Path = broadcast(self._trainer.checkpoint_directory / name)
        self._trainer.save_checkpoint(path)
        return path

    def _note(self, number: int, frame: FrameType | None) -> None:
        """What a signal calls, between any two lines of Python."""
        if number == signal.SIGINT and not self._trainer.training:
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self._received_at = number, monotonic()
            if number == signal.SIGINT and rank() == 0:
                sys.stderr.write("Interrupted: it ends after this batch; once more, and it ends at once.\n")
            if self._engine is not None and self._agreement is None:
                self._engine.terminate()
        elif self._agreement is None or monotonic() - self._received_at > _ONE_REQUEST:
            signal.signal(number, _SIGNALS[number])
            signal.raise_signal(number)

    def _begin(self, engine: Engine) -> None:
        if self._agreement is not None:
            self._agreement.ask(_QUESTION, lambda: self.received or 0)
        elif self.received is not None:  # before there was an engine to end
            engine.terminate()

    def _end_alike(self, engine: Engine) -> None:
        assert self._agreement is not None
        told = self._agreement.agreed(_QUESTION)
        if told:
            self.received, self._alike = told, True
            engine.terminate()
