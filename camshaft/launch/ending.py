"""How the ranks of a run ended: which failed first, what to say of it, and with which status to end."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["PREEMPTED", "Ending", "exit_status", "first_failure", "report", "waited_in_vain"]

PREEMPTED = 75
"""What a rank leaves with that has saved and wants to be started again: ``camshaft.handlers.preemption.PREEMPTED``."""

# How gloo and NCCL say that another rank does not answer or has gone.
_IN_VAIN = re.compile(r"tim(ed out|eout)|Connection (closed|reset)|Broken pipe|remote process exited", re.IGNORECASE)


@dataclass
class Ending:
    """How one rank's process ended.

    Args:
        rank: its global rank.
        returncode: its exit status; for a process that a signal killed, the signal's number, negative.
        time: when its traceback came or, without one, when it was seen to have ended, in seconds.
        sent: the signals that the launcher had sent to it by then.
        waited: how many seconds the launcher waited before it killed it, None if it did not.
        stopped: whether it was found stopped, as by SIGSTOP, when it was killed.
        traceback: the last traceback that it wrote, empty if it wrote none.
        log: the file that has all that it wrote, if there is one.
    """

    rank: int
    returncode: int
    time: float
    sent: set[int] = field(default_factory=set)
    waited: float | None = None
    stopped: bool = False
    traceback: str = ""
    log: str | None = None

    @property
    def status(self) -> int:
        """The exit status as a shell has it: 128 and the signal's number for a process that a signal killed."""
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    @property
    def told(self) -> bool:
        """Whether it ended of a signal that the launcher had sent, or with the status of such an end."""
        return self.status - 128 in self.sent

    @property
    def failed(self) -> bool:
        """Whether it ended in an error of its own: not well, not preempted, and not as it was told."""
        return self.returncode not in (0, PREEMPTED) and not self.told

    def __str__(self) -> str:
        if self.waited is not None:
            if self.stopped:
                return "did not answer: it was stopped, as SIGSTOP does, and was killed"
            return f"did not end within {self.waited:.0f} s of being told to, and was killed"
        if self.returncode >= 0:
            return f"exit status {self.returncode}"
        name = _name_of(-self.returncode)
        hint = " (by the system, if memory ran out)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"

    @property
    def error(self) -> str:
        """The line of the traceback that names the error."""
        lines = self.traceback.splitlines()
        headers = [number for number, line in enumerate(lines) if line.startswith("Traceback ")]
        after = lines[headers[-1] + 1 :] if headers else []
        return next((line for line in after if line[:1].strip()), "")


def first_failure(endings: Sequence[Ending]) -> Ending | None:
    """The rank whose failure was the first, of which the others' are mere consequences.

    A process that somebody else's signal killed comes before any error: its neighbours notice within milliseconds,
    while it is seen to be dead only when the launcher looks. SIGABRT does not count as such: NCCL ends a process with
    it whose neighbour failed.

    Example:
        >>> first_failure([Ending(0, 1, time=2.0), Ending(1, -9, time=2.1), Ending(2, -15, time=3.0, sent={15})]).rank
        1
    """
    failures = [ending for ending in endings if ending.failed]
    killed = [failure for failure in failures if failure.returncode < 0 and -failure.returncode != signal.SIGABRT]
    unanswering = [ending for ending in endings if ending.waited is not None]
    return min(killed or failures or unanswering, key=lambda ending: ending.time, default=None)


def exit_status(endings: Sequence[Ending]) -> int:
    """The status to end with: the first failing rank's own, 75 if the ranks were preempted, 0 if all went well.

    Example:
        >>> exit_status([Ending(0, 1, time=2.0), Ending(1, 3, time=1.0)])
        3
        >>> exit_status([Ending(0, -15, time=2.0, sent={15}), Ending(1, -15, time=2.0, sent={15})])
        143
        >>> exit_status([Ending(0, 75, time=2.0), Ending(1, 75, time=2.0)])
        75
    """
    first = first_failure(endings)
    if first is not None:
        return first.status
    told = [ending.status for ending in endings if ending.told]
    return told[0] if told else max((ending.status for ending in endings), default=1)


def report(endings: Sequence[Ending]) -> str:
    """What to tell of ranks that failed: a line for each, the first to fail last, its traceback at the very end."""
    first = first_failure(endings)
    if first is None:
        return ""
    others = [ending for ending in endings if ending is not first and (ending.failed or ending.waited is not None)]
    lines = [_line(other, "failed after it" if other.failed else "") for other in others]
    lines.append(_line(first, "was the first to fail" if first.waited is None else "", error=not first.traceback))
    if first.log is not None:
        lines.append(f"[camshaft] All that rank {first.rank} wrote is in {first.log}")
    if first.traceback:
        lines.append(first.traceback.rstrip("\n"))
    return "\n".join(lines) + "\n"


def waited_in_vain(endings: Sequence[Ending]) -> bool:
    """Whether all that failed here failed for want of ranks of another host.

    Example:
        >>> lost = "Traceback (most recent call last):\\nRuntimeError: Timed out waiting 3000ms for recv operation"
        >>> waited_in_vain([Ending(0, 1, time=2.0, traceback=lost)])
        True
    """
    failures = [ending for ending in endings if ending.failed]
    stopped = any(ending.waited is not None for ending in endings)
    return bool(failures) and not stopped and all(_IN_VAIN.search(failure.error) for failure in failures)


def _line(ending: Ending, what: str, error: bool = True) -> str:
    line = f"[camshaft] Rank {ending.rank} " + (f"{what}: {ending}" if what else str(ending))
    return f"{line}: {ending.error}" if error and ending.error else line


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
