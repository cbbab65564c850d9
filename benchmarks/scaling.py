"""How the engine's cost grows: with handlers, with short epochs, over very long runs, and to start a run.

    python benchmarks/scaling.py [--iterations 10000000] [--trained 100000] [--repeats 9]

Each table but that of the long runs has stock Ignite beside ours, in one process; each repeat runs both one after the
other. Printed are medians of the times and of the ratios. A long run is told in tenths: what an iteration of each took
of the processor, which other programs disturb less than the clock, and how much the resident memory grew after the
first tenth, by the end of which all is warm.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn
from torch.nn import functional as F

from camshaft import (
    CSVLogger,
    EarlyStopping,
    Engine,
    Events,
    GradientAccumulation,
    GradientClipping,
    LRScheduler,
    OptimizerStep,
    ProgressBar,
    TerminateOnNaN,
)

HANDLERS = (0, 1, 10, 100)
EVENTS: dict[str, Callable[[], object]] = {
    "plain": lambda: Events.ITERATION_COMPLETED,
    "every=100": lambda: Events.ITERATION_COMPLETED(every=100),
}
MOST_GROWTH = 1.0  # MB, of the resident memory over a long run
MOST_SLOWER = 1.1  # the second half of a long run, over the first
TENTHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=10**7, help="of the long run (default: %(default)s)")
    parser.add_argument("--trained", type=int, default=10**5, help="of that which trains (default: %(default)s)")
    parser.add_argument("--short", type=int, default=20_000, help="iterations of other runs (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)

    with_handlers(options.short, options.repeats)
    short_epochs(options.short // 10, options.repeats)
    start_of_run(options.repeats)
    print(f"{'a long run':44} iterations   µs each   second half / first   resident memory grew")
    long_run("the engine alone", Engine(do_nothing), options.iterations)
    long_run("10 plain and 10 filtered handlers", engine_with_handlers(Engine, 10, 10), options.iterations // 10)
    with tempfile.TemporaryDirectory() as directory:
        long_run("a training with the full set of handlers", trainer_with_handlers(Path(directory)), options.trained)


# ---------------------------------------------------------------------------------------------------- tables


def with_handlers(iterations: int, repeats: int) -> None:
    """The cost of an iteration against the number of handlers."""
    print(f"{'µs an iteration, handlers at each':36} Camshaft    Ignite   ratio   one handler more   Ignite's")
    for kind, event in EVENTS.items():
        alone = (0.0, 0.0)
        for number in HANDLERS:
            fewer = max(iterations // max(number, 1), 500)
            times = pairs(
                repeats,
                lambda engine, number=number, event=event, fewer=fewer: microseconds(engine, number, event, fewer),
            )
            ours, theirs, ratio = medians(times)
            alone = alone if number else (ours, theirs)
            more = f"{(ours - alone[0]) / number:13.3f} µs   {(theirs - alone[1]) / number:6.3f} µs" if number else ""
            print(f"{number:5} {kind:30} {ours:8.3f}  {theirs:8.2f}   1/{1 / ratio:<4.1f} {more}")
    print()


def short_epochs(epochs: int, repeats: int) -> None:
    """The cost of an epoch of one iteration."""

    def one(kind: type[IgniteEngine]) -> float:
        engine = kind(do_nothing)
        gc.collect()
        begin = time.perf_counter()
        engine.run([0], max_epochs=epochs)
        return (time.perf_counter() - begin) / epochs * 1e6

    report("an epoch of one iteration", pairs(repeats, one))


def start_of_run(repeats: int) -> None:
    """The cost of run() itself: the first of an engine, over one batch."""

    def empty(kind: type[IgniteEngine]) -> float:
        engines = [kind(do_nothing) for _ in range(50)]
        begin = time.perf_counter()
        for engine in engines:
            engine.run([0])
        return (time.perf_counter() - begin) / len(engines) * 1e6

    report("run() of one iteration", pairs(repeats, empty))

    def with_the_full_set() -> float:
        with tempfile.TemporaryDirectory() as directory:
            trainer = trainer_with_handlers(Path(directory))
            begin = time.perf_counter()
            trainer.run(itertools.repeat(BATCH), epoch_length=1)
            return (time.perf_counter() - begin) * 1e6

    times = [with_the_full_set() for _ in range(repeats)]
    print(f"{'run() of one iteration, the full set':36} {statistics.median(times):8.1f}\n")


def long_run(name: str, engine: Engine, iterations: int) -> None:
    """How time and memory go in a run of so many iterations."""
    each = iterations // TENTHS
    times: list[float] = []
    memory: list[float] = []

    def note() -> None:
        times.append(time.thread_time())
        memory.append(resident_megabytes())

    engine.add_event_handler(Events.ITERATION_COMPLETED(every=each), note)
    gc.collect()
    times.append(time.thread_time())
    engine.run(itertools.repeat(BATCH), epoch_length=each * TENTHS)
    tenths = [(later - earlier) / each * 1e6 for earlier, later in itertools.pairwise(times)]
    half = TENTHS // 2
    slower = statistics.median(tenths[half:]) / statistics.median(tenths[:half])
    growth = max(memory[1:]) - memory[0]
    verdicts = "reached" if growth <= MOST_GROWTH else "MISSED", "reached" if slower <= MOST_SLOWER else "MISSED"
    print(
        f"{name:44} {each * TENTHS:10}  {statistics.median(tenths):8.3f}   {slower:6.3f} (goal {MOST_SLOWER} "
        f"{verdicts[1]})   {growth:.2f} MB (goal {MOST_GROWTH} MB {verdicts[0]})"
    )


# ---------------------------------------------------------------------------------------------------- what is timed


def microseconds(kind: type[IgniteEngine], number: int, event: Callable[[], object], iterations: int) -> float:
    """The time of one iteration of an engine with that many handlers."""
    engine = kind(do_nothing)
    for _ in range(number):
        engine.add_event_handler(event(), new_handler())
    gc.collect()
    begin = time.perf_counter()
    engine.run(range(iterations))
    return (time.perf_counter() - begin) / iterations * 1e6


def engine_with_handlers(kind: type[Engine], plain: int, filtered: int) -> Engine:
    engine = kind(do_nothing)
    for event, number in zip(EVENTS.values(), (plain, filtered), strict=True):
        for _ in range(number):
            engine.add_event_handler(event(), new_handler())
    return engine


BATCH = (torch.randn(32, 16), torch.randint(4, (32,)))


def trainer_with_handlers(directory: Path) -> Engine:
    """A trainer of a tiny model with the handlers that a training has in each iteration."""
    model = nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def training_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)

    return Engine(training_step).attach(
        OptimizerStep(optimizer),
        GradientAccumulation(4),
        GradientClipping(1.0),
        LRScheduler(torch.optim.lr_scheduler.StepLR(optimizer, 100), per="step"),
        TerminateOnNaN(),
        CSVLogger(directory, every=50),
        EarlyStopping("loss", patience=1000),
        ProgressBar(file=(directory / "bar.txt").open("w")),
    )


def do_nothing(engine: IgniteEngine, batch: object) -> None:
    """The step."""


def new_handler() -> Callable[[IgniteEngine], None]:
    def handler(engine: IgniteEngine) -> None:
        """A handler that does nothing."""

    return handler


# ---------------------------------------------------------------------------------------------------- measuring


def pairs(repeats: int, one: Callable[[type[IgniteEngine]], float]) -> list[tuple[float, float]]:
    """The times of ours and of Ignite's, one after the other, in turns first."""
    times = []
    for repeat in range(repeats):
        kinds = (Engine, IgniteEngine) if repeat % 2 == 0 else (IgniteEngine, Engine)
        both = {kind: one(kind) for kind in kinds}
        times.append((both[Engine], both[IgniteEngine]))
    return times


def medians(times: list[tuple[float, float]]) -> tuple[float, float, float]:
    """The medians of ours, of theirs, and of the ratio of the two."""
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return ours, theirs, statistics.median(our / their for our, their in times)


def report(name: str, times: list[tuple[float, float]]) -> None:
    ours, theirs, ratio = medians(times)
    print(f"{name:36} {ours:8.1f}  {theirs:8.1f}   1/{1 / ratio:<4.1f}")


def resident_megabytes() -> float:
    """The memory of this process that is in use (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


if __name__ == "__main__":
    main()
