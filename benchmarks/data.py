"""What loading ahead saves, and what batches out of whole tensors cost.

    python benchmarks/data.py [--batches 60] [--repeats 7]

First: a loader and a step that take as long as each other, with `Prefetch` and without it. Both compute, in torch and
on one thread, so that without it an iteration takes the sum of the two and at best the longer one. Each repeat runs the
loading alone, the step alone, and a run with and one without `Prefetch`, one after the other; printed are medians of
the times, and of the ratios within a repeat. Both in threads that have nothing to do with each other tell what the
machine can do: more than the longer, where other programs compute as well. The loader that waits stands for one that
reads from a disk or a network.

Second: samples per second of `TensorLoader` and of torch's `DataLoader` over the same shuffled data, of the size of
scikit-learn's digits, in turn, each several passes in a row, as a training makes them: a pass of a third of a
millisecond by itself would tell of the caches that the one before has left.
"""

from __future__ import annotations

import argparse
import gc
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from camshaft import Engine, Prefetch, TensorLoader

LONGEST = 1.15  # times the longer of loading and step, with Prefetch
FASTER = 10  # times DataLoader's samples per second, with TensorLoader
SAMPLES, PIXELS, CLASSES = 1797, 64, 10  # of scikit-learn's digits
PASSES = 10  # in a row
MILLISECONDS = 10  # of each loading and each step


class Work:
    """Multiplies matrices for about so many milliseconds."""

    def __init__(self, milliseconds: float) -> None:
        self.matrix = torch.rand(192, 192) / 192
        self.times = 1
        while (seconds := min(_seconds_of(self) for _ in range(5))) < milliseconds / 1000:
            self.times = max(self.times + 1, round(self.times * milliseconds / 1000 / seconds * 0.98))

    def __call__(self) -> torch.Tensor:
        product = self.matrix
        for _ in range(self.times):
            product = product @ self.matrix
        return product


class Computed(Dataset[torch.Tensor]):
    """Samples that are computed when they are loaded: decoding, augmentation by a generator of its own."""

    def __init__(self, length: int, work: Callable[[], Any]) -> None:
        self.length = length
        self.work = work

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        self.work()
        return torch.full((4,), float(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=60, help="of a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, one thread")
    loading_ahead(options.batches, options.repeats)
    whole_tensors(options.repeats)


def loading_ahead(batches: int, repeats: int) -> None:
    print(f"\n{batches} iterations, a loader that takes as long as the step: about {MILLISECONDS} ms")
    step_work = Work(MILLISECONDS)
    loaders = {
        "a loader that computes": Work(MILLISECONDS),
        "a loader that waits": lambda: time.sleep(MILLISECONDS / 1000),
    }
    for name, work in loaders.items():
        data = DataLoader(Computed(batches, work))
        ways: dict[str, Callable[[], Any]] = {
            "loading alone": lambda data=data: _use_up(data),
            "step alone": lambda: [step_work() for _ in range(batches)],
            "both in threads": lambda data=data: _at_once(
                lambda: _use_up(data), lambda: [step_work() for _ in range(batches)]
            ),
            "without Prefetch": lambda data=data: Engine(lambda engine, batch: step_work()).run(data),
            "with Prefetch": lambda data=data: Engine(lambda engine, batch: step_work()).attach(Prefetch()).run(data),
        }
        seconds = _alternating(ways, repeats)
        longer = [max(pair) for pair in zip(seconds["loading alone"], seconds["step alone"], strict=True)]
        print(f"  {name}")
        for way, values in seconds.items():
            ratio = statistics.median(one / other for one, other in zip(values, longer, strict=True))
            goal = ""
            if way == "with Prefetch":
                goal = f"   {'reached' if ratio <= LONGEST else 'MISSED'}: {LONGEST}"
            each = statistics.median(values) / batches * 1000
            print(f"    {way:18} {each:7.2f} ms an iteration  {ratio:6.3f} of the longer{goal}")


def whole_tensors(repeats: int) -> None:
    print(f"\nshuffled passes over {SAMPLES} samples of {PIXELS} numbers and a class")
    dataset = TensorDataset(torch.rand(SAMPLES, PIXELS), torch.randint(CLASSES, (SAMPLES,)))
    for batch_size in (32, 64, 128):
        options: dict[str, Any] = {"batch_size": batch_size, "shuffle": True}
        loaders = {"DataLoader": DataLoader(dataset, **options), "TensorLoader": TensorLoader(dataset, **options)}
        seconds = _alternating(
            {name: lambda loader=loader: _use_up(loader, PASSES) for name, loader in loaders.items()}, 3 * repeats
        )
        ratio = statistics.median(
            one / other for one, other in zip(seconds["DataLoader"], seconds["TensorLoader"], strict=True)
        )
        rates = {name: PASSES * SAMPLES / statistics.median(values) / 1e6 for name, values in seconds.items()}
        print(
            f"  batches of {batch_size:<4} DataLoader {rates['DataLoader']:6.3f} million samples/s  "
            f"TensorLoader {rates['TensorLoader']:6.3f}  {ratio:5.1f} times   "
            f"{'reached' if ratio >= FASTER else 'MISSED'}: {FASTER}"
        )


def _alternating(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each way, by repeat; each repeat begins with another one."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        ways[name]()  # to warm up
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            gc.collect()
            seconds[name].append(_seconds_of(ways[name]))
    return seconds


def _seconds_of(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _at_once(*functions: Callable[[], Any]) -> None:
    """What the machine can do at best: as many threads that have nothing to do with each other."""
    with ThreadPoolExecutor(len(functions), initializer=torch.set_num_threads, initargs=(1,)) as threads:
        for future in [threads.submit(function) for function in functions]:
            future.result()


def _use_up(data: Iterable[Any], passes: int = 1) -> None:
    for _ in range(passes):
        for _ in data:
            pass


if __name__ == "__main__":
    main()
