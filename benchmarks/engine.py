"""What an iteration of the engine itself costs, beside stock Ignite's, in one process.

    python benchmarks/engine.py [--iterations 100000] [--repeats 9]

The step does nothing, so that what remains is the loop and the firing of events. Each repeat runs both engines one
after the other and gives one ratio; printed are the medians of the times and of the ratios.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable

import ignite
import torch
from ignite.engine import Engine as IgniteEngine

from camshaft import Engine, Events

# The most of Ignite's time that ours may take, if that is a goal, and how many handlers are attached at which event.
CASES: dict[str, tuple[float | None, int, Callable[[], object]]] = {
    "engine alone": (1 / 20, 0, lambda: Events.ITERATION_COMPLETED),
    "3 handlers every=100": (1 / 10, 3, lambda: Events.ITERATION_COMPLETED(every=100)),
    "3 plain handlers": (1 / 5, 3, lambda: Events.ITERATION_COMPLETED),
    "10 handlers every=100": (None, 10, lambda: Events.ITERATION_COMPLETED(every=100)),
    "10 plain handlers": (None, 10, lambda: Events.ITERATION_COMPLETED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=100_000, help="of one run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs (default: %(default)s)")
    options = parser.parse_args()

    print(f"Python {platform.python_version()}, torch {torch.__version__}, Ignite {ignite.__version__}")
    print(f"{'':22}  camshaft    ignite   ratio   goal")
    for name, (goal, handlers, event) in CASES.items():
        ours, theirs = [], []
        for _ in range(options.repeats):
            ours.append(microseconds(Engine, handlers, event, options.iterations))
            theirs.append(microseconds(IgniteEngine, handlers, event, options.iterations // 10))
        ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
        verdict = "" if goal is None else f"1/{1 / goal:.0f} {'reached' if 1 / ratio <= goal else 'MISSED'}"
        print(
            f"{name:22}  {statistics.median(ours):5.3f} µs  {statistics.median(theirs):5.2f} µs  1/{ratio:<4.1f}  "
            f"{verdict}"
        )


def microseconds(kind: type[IgniteEngine], handlers: int, event: Callable[[], object], iterations: int) -> float:
    """The time of one iteration of an engine with that many handlers."""
    engine = kind(do_nothing)
    for _ in range(handlers):
        engine.add_event_handler(event(), new_handler())
    gc.collect()
    begin = time.perf_counter()
    engine.run(range(iterations))
    return (time.perf_counter() - begin) / iterations * 1e6


def do_nothing(engine: IgniteEngine, batch: int) -> None:
    """The step."""


def new_handler() -> Callable[[IgniteEngine], None]:
    def handler(engine: IgniteEngine) -> None:
        """A handler that does nothing."""

    return handler


if __name__ == "__main__":
    main()
