"""Ends a run when its time is over.

Listens to:

- STARTED in PREPARE: asks what other processes' clocks say. In MEASURE: starts the clock. In DECIDE: ends a resumed run
  that has no time left.
- ITERATION_COMPLETED in DECIDE: looks at the clock.
- INTERRUPT, COMPLETED in MEASURE: stops the clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import Any

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.agreement import Agreement, any_rank
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.handlers.handler import Handler, On

__all__ = ["TimeLimit", "in_seconds"]

_UNITS = re.compile(r"(?:(?P<d>[\d.]+)d)?(?:(?P<h>[\d.]+)h)?(?:(?P<m>[\d.]+)m)?(?:(?P<s>[\d.]+)s)?")
_CLOCK = re.compile(r"(?P<h>\d+):(?P<m>[0-5]\d):(?P<s>[0-5]\d)")
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class TimeLimit(Handler):
    """Terminates the run after the first iteration that ends later than the limit.

    The time that a run has used is kept in checkpoints and counts on when it is resumed; pauses between do not count.
    With a ``Checkpoint``, a run that was ended so goes on to the same bits when it is started with a larger limit.
    A new run of the same engine has the whole time again. Several processes end at the same iteration, a tenth of a
    second or an iteration after the first of them says that it is time.

    Args:
        seconds: the limit: a number of seconds, a ``datetime.timedelta``, or a string such as ``"1h30m"``, ``"90s"``,
            ``"2d"`` or ``"01:30:00"``.

    Attributes:
        limit: the limit in seconds.

    Raises:
        ValueError: no positive, finite time, or a string that is none of the above.

    Example:
        >>> from camshaft import Engine
        >>> from time import sleep
        >>> engine = Engine(lambda engine, batch: sleep(0.01)).attach(TimeLimit(0.05))
        >>> engine.run(range(1000)).iteration < 10
        True
    """

    listens = (
        On(Events.STARTED, Phase.PREPARE, "ask"),
        On(Events.STARTED, Phase.MEASURE, "start"),
        On(Events.STARTED, Phase.DECIDE, "decide_at_start"),
        On(Events.ITERATION_COMPLETED, Phase.DECIDE, "decide"),
        On(Events.INTERRUPT | Events.COMPLETED, Phase.MEASURE, "pause"),
    )

    def __init__(self, seconds: float | timedelta | str) -> None:
        self.limit = in_seconds(seconds)
        self._used = 0.0  # seconds, until the clock was last started
        self._started_at: float | None = None
        self._loaded = False
        self._has_ended_run = False
        self._agreement: Agreement | None = None  # with the other processes

    @property
    def used(self) -> float:
        """The seconds that the run has taken so far, over all its resumptions."""
        return self._used + (0.0 if self._started_at is None else monotonic() - self._started_at)

    def ask(self, engine: IgniteEngine) -> None:
        """Let all processes know of the first that has no time left."""
        self._has_ended_run = False
        self._agreement = Agreement.of(engine)
        if self._agreement is not None:
            self._agreement.ask("TimeLimit", self._is_over)

    def start(self, engine: IgniteEngine) -> None:
        """Start the clock: at nothing where a new run begins."""
        if engine.state.iteration == 0 and not self._loaded:
            self._used = 0.0
        self._loaded = False
        self._started_at = monotonic()

    def pause(self, engine: IgniteEngine) -> None:
        """Stop the clock; an interrupted run that goes on starts it at the end of its next iteration."""
        self._used, self._started_at = self.used, None

    def decide_at_start(self, engine: IgniteEngine) -> None:
        """End a resumed run that has no time left."""
        if any_rank(self._is_over()):
            self._end(engine)

    def decide(self, engine: IgniteEngine) -> None:
        """Terminate the run if the limit is reached."""
        if self._started_at is None:
            self._started_at = monotonic()
        if self._is_over() if self._agreement is None else self._agreement.agreed("TimeLimit"):
            self._end(engine)

    def _is_over(self) -> bool:
        return self.used >= self.limit

    def _end(self, engine: IgniteEngine) -> None:
        engine.logger.info(
            "%r is reached after iteration %d (epoch %d): %.1f s. A larger limit lets the run go on.",
            self,
            engine.state.iteration,
            engine.state.epoch,
            self.used,
        )
        self._has_ended_run = True
        engine.terminate()

    @property
    def ends_run_for_now(self) -> bool:
        return self._has_ended_run

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._used = state_dict["used"]
        self._started_at = None if self._started_at is None else monotonic()
        self._loaded = True


def in_seconds(time: float | timedelta | str) -> float:
    """A span of time in seconds.

    Args:
        time: seconds, a ``datetime.timedelta``, or a string such as ``"1h30m"`` or ``"01:30:00"``.

    Raises:
        ValueError: none of these, or not positive and finite.

    Example:
        >>> in_seconds("1h30m"), in_seconds("00:01:30"), in_seconds("1.5s"), in_seconds(timedelta(minutes=2))
        (5400.0, 90.0, 1.5, 120.0)
    """
    seconds = math.nan
    if isinstance(time, timedelta):
        seconds = time.total_seconds()
    elif isinstance(time, str):
        match = _UNITS.fullmatch(time.replace(" ", "")) or _CLOCK.fullmatch(time.strip())
        try:
            parts = match.groupdict() if match else {}
            seconds = sum(float(number) * _SECONDS[unit] for unit, number in parts.items() if number)
        except ValueError:  # such as "1.2.3s"
            pass
    elif not isinstance(time, bool):
        seconds = float(time)
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"A time is a positive number of seconds, a datetime.timedelta, or a string such as '1h30m' or '01:30:00', "
            f"but got {time!r}."
        )
    return seconds
