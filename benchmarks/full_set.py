"""What the full set of handlers costs, over a loop written by hand with the same mathematics and outputs.

    python benchmarks/full_set.py [--batches 1000] [--epochs 3] [--repeats 5] [--peers all]

The model is `Linear(16, 4)` with batches of 32 in memory on one thread, so that what a library adds is seen: one
gradient in four makes a step, clipped, with a schedule, in bf16; each 50th loss goes to a CSV file; there is a progress
bar; each epoch ends with a validation, a look at its loss and a checkpoint. Each repeat runs every way once, in an
order that changes, in one process; peers, of which some take ten times as long, run a third as often and for one epoch.
A ratio is the median of the repeats' own ratios to the loop by hand; that of the fastest runs, which other programs on
the machine disturb least, is shown beside it. Fabric and Accelerate leave the bar, the validation, the stopping and,
the latter, the log to the loop that calls them; Keras trains in float32, as its wrapper of torch modules demands.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import libraries  # first: it mends the path
import torch
from libraries import Batches, Train, Trained, Training
from torch import nn

GOAL = 1.05
Way = TypeVar("Way")
VALIDATION_BATCHES = 40

CONCERNS = {
    "accumulation": {"accumulation": 4},
    "clipping": {"clipping": 1.0},
    "schedule": {"schedule": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)},
    "bf16": {"bf16": True},
    "log": {"log": True},
    "progress bar": {"bar": True},
    "validation": {"validation": True},
    "early stopping": {"validation": True, "early_stopping": True},
    "checkpoint": {"checkpoint": True},
}
FURTHER_CONCERNS = {"moving average": {"ema": True}, "NaN guard": {"nan_guard": True}}  # not in the full set


class Timed(NamedTuple):
    """One way in all repeats, in microseconds an iteration."""

    times: list[float]
    last: Trained

    def ratio_to(self, other: Timed) -> float:
        """The median of the repeats' own ratios."""
        return statistics.median(one / another for one, another in zip(self.times, other.times, strict=True))

    def more_than(self, other: Timed) -> float:
        """The median of the repeats' own differences."""
        return statistics.median(one - another for one, another in zip(self.times, other.times, strict=True))

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def fastest(self) -> float:
        return min(self.times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=1000, help="of an epoch (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="(default: %(default)s)")
    parser.add_argument("--concerns", choices=("all", "none"), default="all", help="(default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    libraries.silence()
    nothing = training_of(options.batches, options.epochs)
    everything = replace(nothing, **{key: value for concern in CONCERNS.values() for key, value in concern.items()})
    peers = libraries.installed_peers() if options.peers == "all" else {}

    print(f"{options.repeats} repeats of {options.epochs} epochs of {options.batches} batches; µs an iteration\n")
    for name, training in (("nothing but the training", nothing), ("the full set", everything)):
        table_of_libraries(name, training, peers, options.repeats)
    if options.concerns == "all":
        table_of_concerns(nothing, options.repeats)


def training_of(batches: int, epochs: int) -> Training:
    """The training without any concern."""
    torch.manual_seed(0)
    data = [(torch.randn(32, 16), torch.randint(4, (32,))) for _ in range(batches + VALIDATION_BATCHES)]
    return Training(
        model=nn.Linear(16, 4),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        train=Batches(data[:batches]),
        val=Batches(data[batches:]),
        epochs=epochs,
    )


def table_of_libraries(name: str, training: Training, peers: dict[str, Train], repeats: int) -> None:
    """Ours and the peers beside the loop by hand."""
    print(f"{name:24} fastest   median    ratio   of fastest   weights")
    ways = {"by hand": libraries.by_hand, "Camshaft": libraries.camshaft, **peers}
    ours = measure({way: (ways[way], training) for way in ("by hand", "Camshaft")}, repeats)
    shorter = replace(training, epochs=1)  # some of the peers take ten times as long
    theirs = measure({way: (ways[way], shorter) for way in ("by hand", *peers)}, max(repeats // 3, 1)) if peers else {}
    for way in ways:
        measured = ours if way in ours else theirs
        timed, by_hand = measured[way], measured["by hand"]
        verdict = ""
        if way == "Camshaft":
            verdict = f"   goal {GOAL}: {'reached' if timed.ratio_to(by_hand) <= GOAL else 'MISSED'}"
        weights = "same bits" if timed.last.same_weights(by_hand.last) else "others"
        print(
            f"{way:24} {timed.fastest:7.1f}  {timed.median:7.1f}   {timed.ratio_to(by_hand):6.3f}       "
            f"{timed.fastest / by_hand.fastest:6.3f}   {weights}{verdict}"
        )
    print()


def table_of_concerns(nothing: Training, repeats: int) -> None:
    """What each concern alone takes, and what it adds to the training without any, by hand and attached."""
    trainings = {"nothing": nothing}
    for name, values in {**CONCERNS, **FURTHER_CONCERNS}.items():
        trainings[name] = replace(nothing, **values)
    ways: dict[tuple[str, Train], tuple[Train, Training]] = {
        (name, train): (train, training)
        for name, training in trainings.items()
        for train in (libraries.by_hand, libraries.camshaft)
    }
    measured = measure(ways, repeats)
    print("one concern alone        by hand  Camshaft    ratio   of fastest   it adds, by hand   attached")
    for name in trainings:
        hand, ours = measured[name, libraries.by_hand], measured[name, libraries.camshaft]
        added_by_hand = hand.more_than(measured["nothing", libraries.by_hand])
        added = ours.more_than(measured["nothing", libraries.camshaft])
        print(
            f"{name:24} {hand.median:7.1f}   {ours.median:7.1f}   {ours.ratio_to(hand):6.3f}       "
            f"{ours.fastest / hand.fastest:6.3f}   {added_by_hand:16.1f}   {added:8.1f}"
        )


def measure(ways: dict[Way, tuple[Train, Training]], repeats: int) -> dict[Way, Timed]:
    """Time every way in every repeat; the order goes round, and a first round is for warming up."""
    names = list(ways)
    times: dict[Way, list[float]] = {name: [] for name in names}
    last: dict[Way, Trained] = {}
    for repeat in range(-1, repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            train, training = ways[name]
            with tempfile.TemporaryDirectory() as directory:
                gc.collect()
                last[name] = train(training, Path(directory))
            if repeat >= 0:
                times[name].append(last[name].seconds / training.iterations * 1e6)
    return {name: Timed(times[name], last[name]) for name in names}


if __name__ == "__main__":
    main()
