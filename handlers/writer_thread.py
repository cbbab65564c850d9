"""Writes in the background: calls that are made in order by a thread, whose errors the thread that trains gets."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["WriterThread"]

_MOST_WAITING = 100  # calls; who adds another waits
_STAYS = 0.1  # seconds without anything to do, after which the thread ends


class WriterThread:
    """A queue of calls and the thread that makes them.

    The thread is there while there is something to do, and a tenth of a second longer. A program that ends waits for
    it.

    Args:
        name: of the thread.

    Example:
        >>> thread, written = WriterThread("example"), []
        >>> for number in range(3):
        ...     thread.do(lambda number=number: written.append(number))
        >>> thread.wait()
        >>> written
        [0, 1, 2]
        >>> thread.end()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], object]] = deque()
        self._thread: threading.Thread | None = None
        self._is_underway = self._is_ending = False
        self._error: BaseException | None = None

    def do(self, call: Callable[[], object]) -> None:
        """Let a call wait for its turn.

        Args:
            call: without arguments.

        Raises:
            BaseException: that of an earlier call; this one and those that waited behind that are not made.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._calls) < _MOST_WAITING)
            self._raise_error()
            self._calls.append(call)
            if self._thread is None:
                self._is_ending = False
                self._thread = threading.Thread(target=self._work, name=f"camshaft-{self._name}")
                self._thread.start()
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when all calls were made, or raise the error of one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls and not self._is_underway)
            self._raise_error()

    def end(self) -> None:
        """The same, and the thread is gone."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that trains
                with self._changed:
                    self._error = error
                    self._calls.clear()

    def _next(self) -> Callable[[], object] | None:
        """The call whose turn it is; None when there has been nothing to do for a while."""
        with self._changed:
            self._is_underway = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._calls or self._is_ending, _STAYS)
            if not self._calls:
                self._thread = None
                return None
            self._is_underway = True
            return self._calls.popleft()
