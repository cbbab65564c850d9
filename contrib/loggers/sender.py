"""Calls a service from a thread of its own: in order, again after a failure, and without an end to the training."""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Sender"]

_REST_AFTER_FAILURE = 60.0  # seconds in which nothing is sent, because a client may try for long before it gives up
_MOST_TRIES = 10
_MOST_WAITING = 10_000  # calls that may wait in memory
_LONGEST_WAIT = 30.0  # seconds for which the training waits until all is sent

# What MLflow's server answers to a call that it would not take the next time either.
_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "PERMISSION_DENIED"}


class Sender:
    """A queue of calls and the thread that makes them.

    A call that fails is tried again after a minute's rest, before all that came after it, and is given up after ten
    tries, or at once if its arguments are to blame. There is one warning when something first fails, and one at the end
    that says how much is lost.

    Args:
        name: of whom the warnings speak.

    Example:
        >>> sender, sent = Sender("Example"), []
        >>> for number in range(3):
        ...     sender.do(lambda number=number: sent.append(number))
        >>> sender.wait(), sent
        (True, [0, 1, 2])
        >>> sender.finish()
    """

    rest = _REST_AFTER_FAILURE
    longest_wait = _LONGEST_WAIT

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._jobs: deque[_Job] = deque()
        self._is_underway = self._is_ending = self._has_warned = False
        self._rest_until = 0.0
        self._lost = self._failures_at_end = 0
        self._untold: Exception | None = None
        self._is_late = False  # it was waited for in vain

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._jobs and not self._is_underway

    def do(self, call: Callable[[], object], *, records: int = 0, is_first: bool = False) -> None:
        """Let a call wait for its turn.

        Args:
            call: without arguments.
            records: how many records are lost if it never succeeds.
            is_first: that all others need: it is not given up before the end, nor are they without it.
        """
        with self._changed:
            if len(self._jobs) >= _MOST_WAITING:
                dropped = self._jobs[1]  # the first may be what all others need
                del self._jobs[1]
                self._lost += dropped.records
            self._jobs.append(_Job(call, records, is_first))
            if self._thread is None:
                self._is_ending, self._failures_at_end = False, 0
                self._thread = threading.Thread(target=self._work, name=f"camshaft-{self._name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        self._tell()

    def wait(self) -> bool:
        """Return when all is sent, or when it is clear that this will take long; whether it is."""
        with self._changed:
            seconds = 0.0 if self._is_late else self.longest_wait
            self._changed.wait_for(lambda: self.is_idle or self._is_resting, seconds)
            self._is_late = not self.is_idle and not self._is_resting
            all_is_sent = self.is_idle
        self._tell()
        return all_is_sent

    def finish(self) -> None:
        """Try once more to send what is left, end the thread, and say what is lost."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(self.longest_wait)
            with self._changed:
                if thread.is_alive():  # the client still waits for the service
                    self._lost += sum(job.records for job in self._jobs)
                    self._jobs.clear()
        self._tell()
        lost, self._lost, self._has_warned = self._lost, 0, False
        if lost:
            warnings.warn(f"{self._name} could not send {lost} records.", stacklevel=2)

    @property
    def _is_resting(self) -> bool:
        return time.monotonic() < self._rest_until

    def _tell(self) -> None:
        """Warn of a failure, in the thread that trains: there a program can turn the warning into an error."""
        error, self._untold = self._untold, None
        if error is not None:
            warnings.warn(
                f"{self._name} could not send a record, and the training goes on: {type(error).__name__}: {error}",
                stacklevel=3,
            )

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.call()
            except Exception as error:  # noqa: BLE001 - clients do not say what they raise
                self._fail(job, error)

    def _next(self) -> _Job | None:
        """The call whose turn it is, once it is; None at the end."""
        with self._changed:
            self._is_underway = False
            self._changed.notify_all()
            while True:
                if self._jobs and (self._is_ending or not self._is_resting):
                    self._is_underway = True
                    return self._jobs.popleft()
                if self._is_ending:
                    return None
                self._changed.wait(max(self._rest_until - time.monotonic(), 0.01) if self._jobs else None)

    def _fail(self, job: _Job, error: Exception) -> None:
        with self._changed:
            if not self._has_warned:
                self._has_warned, self._untold = True, error
            if _is_refusal(error) and not job.is_first:
                self._lost += job.records
                return
            self._rest_until = time.monotonic() + self.rest
            if self._is_ending:
                self._lost += job.records
                self._failures_at_end += 1
                if self._failures_at_end > 1 or job.is_first:
                    self._lost += sum(waiting.records for waiting in self._jobs)
                    self._jobs.clear()
            elif job.tries + 1 < _MOST_TRIES or job.is_first:
                self._jobs.appendleft(job._replace(tries=job.tries + 1))
            else:
                self._lost += job.records


class _Job(NamedTuple):
    call: Callable[[], object]
    records: int
    is_first: bool
    tries: int = 0


def _is_refusal(error: Exception) -> bool:
    """Whether the call would fail the next time, too."""
    if getattr(error, "error_code", None) in _REFUSED:
        return True
    return isinstance(error, (TypeError, ValueError)) and not isinstance(error, OSError)
