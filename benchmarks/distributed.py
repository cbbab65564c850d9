"""Samples per second on one and on two processes, beside a hand-written script, Ignite's helpers and Lightning.

    python benchmarks/distributed.py [--processes 1 2] [--steps 60] [--repeats 25]

All train the same network on the same data, with one thread a process, and exchange gradients with torch's
DistributedDataParallel over gloo. For each number of processes, `camshaft launch` starts that many; they run every way
in turn and do so again in each repeat, beginning with the next one, so that what else the machine does strikes all
alike. Measured is from the end of the warm-up to the last step, without what starting a run costs. Printed are medians,
and medians of the ratios to the hand-written script within a repeat. Lightning takes part where it is installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Events as IgniteEvents
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from camshaft import DataParallel, DistributedSampling, Engine, Events, OptimizerStep
from camshaft.engine.distributed import initialise, rank, world_size

GOAL = 0.98  # of the hand-written script's samples per second
BATCH = 64  # of each process
WARM_UP = 20  # steps that do not count


class Moments:
    """Notes when it is called: after the warm-up, and after the last step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self) -> None:
        self.seconds.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--steps", type=int, default=60, help="of one run that count (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="runs of each way (default: %(default)s)")
    parser.add_argument("--results-to", type=Path, help=argparse.SUPPRESS)  # of a process that was launched
    options = parser.parse_args()
    if options.results_to is not None:
        measure(options.steps, options.repeats, options.results_to)
        return
    parameters = sum(weight.numel() for weight in network().parameters())
    print(f"{parameters / 1e6:.1f} million parameters, batches of {BATCH} a process, torch {torch.__version__}")
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder, "results.json")
            own = ["--steps", options.steps, "--repeats", options.repeats, "--results-to", results]
            launcher = [sys.executable, "-m", "camshaft", "launch", "--nproc-per-node", processes, __file__, *own]
            environment = {"OMP_NUM_THREADS": "1", **os.environ}
            subprocess.run([str(part) for part in launcher], env=environment, check=True)
            report(processes, json.loads(results.read_text()))


def report(processes: int, speeds: dict[str, list[float]]) -> None:
    print(f"\n{processes} process{'es' if processes > 1 else ''}")
    for name, values in speeds.items():
        ratio = statistics.median(mine / other for mine, other in zip(values, speeds["by hand"], strict=True))
        verdict = f"   {'reached' if ratio >= GOAL else 'MISSED'}: {GOAL}" if name == "camshaft" else ""
        print(f"  {name:10} {statistics.median(values):9.0f} samples/s  {ratio:6.3f} of by hand{verdict}")
    if "Lightning" not in speeds:
        print("  Lightning is left out: it is not installed, or cannot be imported")


def measure(steps: int, repeats: int, results: Path) -> None:
    """What each process does: run every way, in turn, and leave the samples per second of all processes together."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    initialise()
    ways = {"by hand": by_hand, "camshaft": camshaft, "Ignite": ignite}
    if (lightning := lightning_way()) is not None:
        ways["Lightning"] = lightning
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    samples = (WARM_UP + steps) * BATCH * world_size()
    inputs = torch.randn(samples, 784, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    names = list(ways)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            measured = Moments()
            gc.collect()
            torch.manual_seed(0)
            ways[name](network(), data, measured)
            begin, end = measured.seconds
            speeds[name].append(steps * BATCH * world_size() / (end - begin))
    if rank() == 0:
        results.write_text(json.dumps(speeds))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def by_hand(model: nn.Module, data: TensorDataset, measured: Moments) -> None:
    sampler = None
    if world_size() > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, shuffle=sampler is None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    if sampler is not None:
        sampler.set_epoch(0)
    for number, (inputs, classes) in enumerate(loader, start=1):
        loss = F.cross_entropy(model(inputs), classes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number in (WARM_UP, len(loader)):
            measured()


def camshaft(model: nn.Module, data: TensorDataset, measured: Moments) -> None:
    def training_step(engine: Engine, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, classes = batch
        return F.cross_entropy(model(inputs), classes)

    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trainer = Engine(training_step).attach(OptimizerStep(optimizer), DataParallel(model), DistributedSampling())
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=[WARM_UP, len(loader) // world_size()]), measured)
    model.train()
    trainer.run(loader)


def ignite(model: nn.Module, data: TensorDataset, measured: Moments) -> None:
    model = idist.auto_model(model, **({"gradient_as_bucket_view": True} if world_size() > 1 else {}))
    loader = idist.auto_dataloader(data, batch_size=BATCH * world_size(), shuffle=True)
    optimizer = idist.auto_optim(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)
    trainer.add_event_handler(IgniteEvents.ITERATION_COMPLETED(once=[WARM_UP, len(loader)]), measured)
    trainer.run(loader)


def lightning_way() -> Callable[[nn.Module, TensorDataset, Moments], None] | None:
    try:
        sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]  # where lightning.py is ours
        import lightning.pytorch as pl  # noqa: PLC0415 - may be missing
    except Exception:  # noqa: BLE001 - one that is there may fail in many ways
        return None

    class Module(pl.LightningModule):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
            inputs, classes = batch
            return F.cross_entropy(self.model(inputs), classes)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    class Stopwatch(pl.Callback):
        def __init__(self, measured: Moments, at: tuple[int, int]) -> None:
            self.measured = measured
            self.at = at

        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step in self.at:
                self.measured()

    def way(model: nn.Module, data: TensorDataset, measured: Moments) -> None:
        loader = DataLoader(data, batch_size=BATCH, shuffle=True)
        strategy = "auto"
        if world_size() > 1:
            strategy = pl.strategies.DDPStrategy(process_group_backend="gloo", gradient_as_bucket_view=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that loaders have no workers
            trainer = pl.Trainer(
                accelerator="cpu", devices=world_size(), strategy=strategy, max_epochs=1, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                callbacks=[Stopwatch(measured, (WARM_UP, len(loader) // world_size()))],
            )  # fmt: skip
            trainer.fit(Module(model), loader)

    return way


if __name__ == "__main__":
    main()
