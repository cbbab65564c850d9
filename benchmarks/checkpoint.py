"""How long a checkpoint keeps the training loop waiting: written at once, in the background, and by the peers.

    python benchmarks/checkpoint.py [--megabytes 400] [--repeats 5]

A model of that size does nothing for a few iterations, of which one ends with a checkpoint; what that one takes longer
than the others is the stall. Each repeat runs every way once, in one process; printed are medians, and the ratios to
our own synchronous writing, which alone waits until the disk has it (fsync). Lightning takes part where it is
installed.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ignite.engine import Engine as IgniteEngine
from ignite.handlers import Checkpoint as IgniteCheckpoint
from ignite.handlers import DiskSaver
from torch import nn

from camshaft import Checkpoint, Engine, Events

GOAL = 0.15  # of the stall of synchronous writing
ITERATIONS, SAVE_AT = 6, (2, 4)  # the first save has to find its memory, the second is what a long run pays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400, help="of the state (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary directory)")
    options = parser.parse_args()

    ways: dict[str, Callable[[nn.Module, Path], IgniteEngine]] = {
        "camshaft, synchronous": lambda model, path: camshaft(model, path, asynchronous=False),
        "camshaft, asynchronous": lambda model, path: camshaft(model, path, asynchronous=True),
        "Ignite's Checkpoint": ignite,
    }
    stalls: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, build in ways.items():
            stalls[name].append(stall(build, options.megabytes, options.directory))
        if (lightning := lightning_stall(options.megabytes, options.directory)) is not None:
            stalls.setdefault("Lightning's save_checkpoint", []).append(lightning)

    synchronous = stalls["camshaft, synchronous"]
    print(f"A state of {options.megabytes} MB, {options.repeats} repeats, torch {torch.__version__}")
    for name, seconds in stalls.items():
        ratio = statistics.median(one / other for one, other in zip(seconds, synchronous, strict=True))
        verdict = ("  reached" if ratio <= GOAL else "  MISSED") if name.endswith("asynchronous") else ""
        print(f"{name:28} {statistics.median(seconds) * 1000:8.1f} ms  {ratio:5.2f} of synchronous{verdict}")
    if "Lightning's save_checkpoint" not in stalls:
        print("Lightning is left out: it is not installed, or cannot be imported")


def stall(build: Callable[[nn.Module, Path], IgniteEngine], megabytes: int, directory: Path | None) -> float:
    """The seconds by which the second iteration that saves is longer than those that do not."""
    model = of_size(megabytes)
    folder = Path(tempfile.mkdtemp(dir=directory))
    ends: list[float] = []
    engine = build(model, folder)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: ends.append(time.perf_counter()))
    gc.collect()
    engine.run(range(ITERATIONS), max_epochs=1)
    shutil.rmtree(folder)
    return ends[SAVE_AT[1]] - ends[SAVE_AT[1] - 1] - STEP_SECONDS


STEP_SECONDS = 2.0  # long enough for what is written in the background to be over before the next is


def of_size(megabytes: int) -> nn.Module:
    model = nn.Module()
    for number in range(8):
        model.register_parameter(f"weight_{number}", nn.Parameter(torch.randn(megabytes * 10**6 // 32)))
    return model


def wait(engine: IgniteEngine, batch: int) -> None:
    """The step: training that leaves the disk and the other core to the writer."""
    time.sleep(STEP_SECONDS)


def camshaft(model: nn.Module, folder: Path, asynchronous: bool) -> Engine:
    saves = Events.ITERATION_COMPLETED(once=list(SAVE_AT))
    return Engine(wait).attach(Checkpoint(folder, model=model, at=saves, asynchronous=asynchronous))


def ignite(model: nn.Module, folder: Path) -> IgniteEngine:
    engine = IgniteEngine(wait)
    saver = IgniteCheckpoint({"model": model}, DiskSaver(folder, require_empty=False), n_saved=2)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=list(SAVE_AT)), saver)
    return engine


def lightning_stall(megabytes: int, directory: Path | None) -> float | None:
    try:
        sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]  # where lightning.py is ours
        import lightning.pytorch as pl  # noqa: PLC0415 - may be missing
    except Exception:  # noqa: BLE001 - one that is there may fail in many ways
        return None
    model = of_size(megabytes)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def configure_optimizers(self) -> None:
            return None

    folder = Path(tempfile.mkdtemp(dir=directory))
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer.strategy.connect(Module())
    seconds = 0.0
    for number in range(2):
        begin = time.perf_counter()
        trainer.save_checkpoint(folder / f"{number}.ckpt")
        seconds = time.perf_counter() - begin
    shutil.rmtree(folder)
    return seconds


if __name__ == "__main__":
    main()
