"""How the processes of a run decide alike: what one of them knows, all are told at the same iteration."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.distributed import TIMEOUT_VARIABLE, rank, world_size
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase, subscribe

__all__ = ["Agreement", "any_rank", "gather_on_first", "mean", "weighted_mean"]

# The processes ask each other about so often: the time of one exchange is nothing beside it.
_SECONDS_BETWEEN = 0.1
# But not more seldom than each so many iterations: they may become slower.
_MOST_ITERATIONS_BETWEEN = 100
# Where one iteration takes as long as this, the answer is waited for rather than read in the next one.
_SLOW = 0.5  # seconds


class Agreement:
    """What handlers of several processes ask for, each on its own, and then do at the same iteration.

    Each ``exchange`` sends for the largest answer of all processes to each question, and reads it at the next one, so
    that nobody waits. As all processes read the same, all do the same. How many iterations lie between two exchanges is
    agreed on, too: about a tenth of a second's. So what one answers all know after a tenth or two of a second; where an
    iteration takes half a second or more, at its end.

    Handlers say at STARTED what they :meth:`ask`, on all processes in the same order, and look at :meth:`agreed` in a
    phase after MEASURE.

    Args:
        engine: the engine whose iterations are counted.
    """

    def __init__(self, engine: IgniteEngine) -> None:
        self._questions: dict[str, Callable[[], int]] = {}
        self._agreed: dict[str, int] = {}
        self._sent: tuple[list[str], torch.Tensor, Any] | None = None  # questions, answers, and what to wait for
        self._next = 0  # the iteration of the next exchange
        self._last: tuple[int, float] | None = None  # iteration and time of the last exchange
        self._between = 1  # iterations, from one exchange to the next
        self._slow = False
        subscribe(engine, Events.ITERATION_COMPLETED, self.exchange, Phase.MEASURE)
        subscribe(engine, Events.INTERRUPT | Events.TERMINATE | Events.COMPLETED, self.run_down, Phase.MEASURE)

    @classmethod
    def of(cls, engine: IgniteEngine) -> Agreement | None:
        """The agreement of an engine, which it gets when it is first asked for; None on a single process.

        Example:
            >>> from camshaft import Engine
            >>> Agreement.of(Engine(lambda engine, batch: None)) is None
            True
        """
        if world_size() == 1:
            return None
        agreement: Agreement | None = vars(engine).get("_agreement")
        if agreement is None:
            agreement = vars(engine)["_agreement"] = cls(engine)
        return agreement

    def ask(self, name: str, question: Callable[[], int]) -> None:
        """Ask all processes at each exchange from now on; called at STARTED.

        Args:
            name: of the question.
            question: gives this process's answer, 0 for no.
        """
        self._questions[name] = question
        # What an earlier run has left; one that ended in an error may have something under way.
        self._agreed.clear()
        self._sent = self._last = None
        self._next = 0

    def agreed(self, name: str) -> int:
        """The largest answer that any process had given by the last exchange."""
        return self._agreed.get(name, 0)

    def forget(self, name: str) -> None:
        """Take what was agreed on for done; called on all processes at the same point."""
        self._agreed.pop(name, None)

    def exchange(self, engine: Any) -> None:
        """At the end of an iteration: read the answers that were sent for, and send for the next, if it is time."""
        iteration = engine.state.iteration
        if iteration < self._next:
            return
        self._read()
        now = monotonic()
        took = 0.0
        if self._last is not None and iteration > self._last[0]:
            took = (now - self._last[1]) / (iteration - self._last[0])
        self._last = iteration, now
        self._send(took)
        if self._slow:
            self._read()
        self._next = iteration + self._between

    def settle(self) -> None:
        """Answer all questions now; called on all processes at the same point, it waits for all."""
        self._read()
        self._send(0.0)
        self._read()

    def run_down(self) -> None:
        """Wait for what is under way, where the run ends or pauses on all processes; later ones ask anew."""
        self._read()
        self._last = None
        self._next = 0

    def _send(self, took: float) -> None:
        names = list(self._questions)
        answers = [float(question()) for question in self._questions.values()]
        numbers = torch.tensor([took, *answers], dtype=torch.float64)
        self._sent = names, numbers, dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_group(), async_op=True)

    def _read(self) -> None:
        if self._sent is None:
            return
        names, numbers, work = self._sent
        self._sent = None
        work.wait()
        took, *answers = numbers.tolist()
        self._agreed = {name: int(answer) for name, answer in zip(names, answers, strict=True)}
        if took > 0:
            self._slow = took >= _SLOW
            self._between = min(max(1, int(_SECONDS_BETWEEN / took)), _MOST_ITERATIONS_BETWEEN)


def any_rank(flag: bool) -> bool:
    """Whether it is so on any process; called on all at the same point, it waits for all.

    Example:
        >>> any_rank(True)
        True
    """
    if world_size() == 1:
        return flag
    number = torch.tensor([int(flag)])
    dist.all_reduce(number, dist.ReduceOp.MAX, group=_group())
    return bool(number.item())


def mean(value: float | None, weight: float = 1.0) -> float | None:
    """The mean over all processes that have the value, on every process; called on all at the same point.

    Args:
        value: that of this process, or None.
        weight: how much it counts.

    Returns:
        The mean, or None if no process has the value. One that all have alike is returned as it is, whatever rounding
        would make of it.

    Example:
        >>> mean(0.1)
        0.1
    """
    if world_size() == 1:
        return value
    own = torch.tensor([0.0 if value is None else value, weight, value is not None], dtype=torch.float64)
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own, group=_group())
    result: float | None = weighted_mean([(each[0].item(), each[1].item()) for each in gathered if each[2]])
    return result


def weighted_mean(values: list[tuple[Any, float]]) -> Any:
    """The mean of ``(value, weight)``; equal values stay as they are, and None is that of none.

    Example:
        >>> weighted_mean([(1.0, 3.0), (2.0, 1.0)]), weighted_mean([(7, 1.0), (7, 1.0)]), weighted_mean([])
        (1.25, 7, None)
    """
    if not values:
        return None
    first = values[0][0]
    if all(value == first for value, _ in values):
        return first
    weights = sum(weight for _, weight in values)
    if not weights > 0:
        return sum(value for value, _ in values) / len(values)
    return sum(value * weight for value, weight in values if weight) / weights


def gather_on_first(value: Any) -> list[Any] | None:
    """What each process gave, by rank, on the first process, None on the others; called on all at the same point.

    The others do not wait for it.

    Args:
        value: anything that can be pickled.

    Example:
        >>> gather_on_first("this process")
        ['this process']
    """
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, dst=0, group=_group())
    return values


_groups: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # beside each group of all processes
atexit.register(_groups.clear)  # the threads of a group that outlives the interpreter make the process abort


def _group() -> Any:
    """A process group of its own, on the CPU: gradients may be exchanged at the same time, on whatever device."""
    everyone = dist.group.WORLD
    if everyone not in _groups:
        seconds = os.environ.get(TIMEOUT_VARIABLE)
        timeout = None if seconds is None else timedelta(seconds=float(seconds))
        _groups[everyone] = dist.new_group(backend="gloo", timeout=timeout)
    return _groups[everyone]
