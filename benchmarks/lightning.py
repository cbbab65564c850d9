"""What a Trainer costs an iteration, ours beside Lightning's, over a loop written by hand, in one process.

    pip install lightning==2.6.6
    python benchmarks/lightning.py [--batches 2000] [--repeats 7]

The model is `Linear(16, 4)` with batches of 32 in memory on one thread, so that what a library adds is seen. Each
repeat runs the loop by hand, ours and Lightning's one after the other; printed are medians of the time of an iteration,
of the cost (the time over the loop's), and of the ratio of the two costs. The goal is 1/10.
"""

# ruff: noqa: E402 - the path is mended before the imports

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]  # where `lightning` is this file

import lightning.pytorch as real
import torch
from torch import nn
from torch.nn import functional as F

import camshaft.contrib.lightning as ours

GOAL = 1 / 10
OFF = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """Batches in memory; Lightning takes a list for a collection of loaders."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Case(NamedTuple):
    """One way to train.

    Attributes:
        flags: of the Trainer.
        logs: how many values a step logs.
        validates: whether each epoch is validated.
        epochs: of so many batches together.
        callbacks: made for each of the two libraries.
    """

    flags: dict[str, Any]
    logs: int = 0
    validates: bool = False
    epochs: int = 1
    callbacks: Callable[[Any], list[Any]] = lambda library: []


CASES = {
    "a. all off": Case(OFF),
    "b. defaults, self.log": Case({"log_every_n_steps": 50}, logs=1),
    "c. the full set": Case(
        {"log_every_n_steps": 50, "gradient_clip_val": 1.0, "accumulate_grad_batches": 4, "num_sanity_val_steps": 0},
        logs=1,
        validates=True,
        epochs=4,
        callbacks=lambda library: [library.callbacks.EarlyStopping("val_loss", patience=1000)],
    ),
    "d. bf16, all off": Case({**OFF, "precision": "bf16-mixed"}),
    "4 more self.log": Case(OFF, logs=4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=2000, help="of one run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    data = [(torch.randn(32, 16), torch.randint(4, (32,))) for _ in range(options.batches)]
    print(f"Python {platform.python_version()}, torch {torch.__version__}, Lightning {real.__version__}")
    print(f"{'µs an iteration':24} by hand  camshaft  Lightning     cost    their cost   ratio")
    costs: dict[str, tuple[float, float]] = {}
    for name, case in CASES.items():
        times = [
            (by_hand(case, data), fitted(ours, case, data), fitted(real, case, data)) for _ in range(options.repeats)
        ]
        hand, camshaft, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        our_cost = statistics.median(time[1] - time[0] for time in times)
        their_cost = statistics.median(time[2] - time[0] for time in times)
        costs[name] = our_cost, their_cost
        ratio = our_cost / their_cost
        verdict = "reached" if ratio <= GOAL else "MISSED"
        shown = f"1/{1 / ratio:.1f}" if ratio > 0 else "none"
        print(
            f"{name:24} {hand:7.1f}  {camshaft:8.1f}  {theirs:9.1f}  {our_cost:7.1f}  {their_cost:12.1f}   {shown} "
            f"{verdict}"
        )
    further = [(costs["4 more self.log"][i] - costs["a. all off"][i]) / 4 for i in (0, 1)]
    print(f"a self.log: {further[0]:.1f} µs, theirs {further[1]:.0f} µs (goal 5 µs)")
    validation(data, options.repeats)


def validation(data: Sequence[Batch], repeats: int) -> None:
    """What a batch of a validation costs."""
    times = []
    for _ in range(repeats):
        model = module_of(ours, Case(OFF, validates=True))
        begin = time.perf_counter()
        model.eval()
        with torch.inference_mode():
            losses = [F.cross_entropy(model.layer(inputs), labels) for inputs, labels in data]
        torch.stack(losses).mean().item()
        hand = (time.perf_counter() - begin) / len(data) * 1e6
        times.append((hand, *(validated(library, data) for library in (ours, real))))
    hand, camshaft, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    our_cost = statistics.median(time[1] - time[0] for time in times)
    print(
        f"a validation batch: by hand {hand:.1f} µs, camshaft {camshaft:.1f} ({our_cost:.1f} over it, goal 10), "
        f"Lightning {theirs:.1f}"
    )


def module_of(library: Any, case: Case) -> Any:
    """The same research for a library."""

    class Model(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            inputs, labels = batch
            loss = F.cross_entropy(self.layer(inputs), labels)
            for index in range(case.logs):
                self.log(f"loss_{index}", loss)
            return loss

        def on_train_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_end(self) -> None:
            self.ended = time.perf_counter()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            if not case.validates:
                return optimizer
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    if case.validates:

        def validation_step(self: Any, batch: Batch, batch_idx: int) -> None:
            inputs, labels = batch
            self.log("val_loss", F.cross_entropy(self.layer(inputs), labels), batch_size=32)

        Model.validation_step = validation_step
        Model.on_validation_epoch_start = lambda self: setattr(self, "val_began", time.perf_counter())
        Model.on_validation_epoch_end = lambda self: setattr(self, "val_ended", time.perf_counter())
    return Model()


def fitted(library: Any, case: Case, data: Sequence[Batch]) -> float:
    """Microseconds of one iteration of a Trainer, from the beginning of the training to its end."""
    model = module_of(library, case)
    per_epoch = data[: len(data) // case.epochs]
    with tempfile.TemporaryDirectory() as directory, quiet():
        trainer = library.Trainer(
            max_epochs=case.epochs,
            accelerator="cpu",
            default_root_dir=directory,
            callbacks=case.callbacks(library),
            **case.flags,
        )
        gc.collect()
        trainer.fit(model, Batches(per_epoch), Batches(per_epoch[:20]) if case.validates else None)
    return (model.ended - model.began) / (case.epochs * len(per_epoch)) * 1e6


def validated(library: Any, data: Sequence[Batch]) -> float:
    """Microseconds of one batch of a validation."""
    model = module_of(library, Case(OFF, validates=True))
    with quiet():
        library.Trainer(accelerator="cpu", **OFF).validate(model, Batches(data), verbose=False)
    return (model.val_ended - model.val_began) / len(data) * 1e6


def by_hand(case: Case, data: Sequence[Batch]) -> float:
    """Microseconds of one iteration of a loop with the same mathematics."""
    model = nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100) if case.validates else None
    group = case.flags.get("accumulate_grad_batches", 1)
    mixed = "precision" in case.flags
    per_epoch = data[: len(data) // case.epochs]
    gc.collect()
    begin = time.perf_counter()
    for _ in range(case.epochs):
        for index, (inputs, labels) in enumerate(per_epoch):
            with torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext():
                loss = F.cross_entropy(model(inputs), labels)
            (loss / group if group > 1 else loss).backward()
            if (index + 1) % group == 0:
                if case.validates:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if schedule is not None:
                    schedule.step()
        if case.validates:
            model.eval()
            with torch.inference_mode():
                torch.stack([F.cross_entropy(model(inputs), labels) for inputs, labels in per_epoch[:20]]).mean().item()
            model.train()
    return (time.perf_counter() - begin) / (case.epochs * len(per_epoch)) * 1e6


@contextlib.contextmanager
def quiet() -> Any:
    """Without what is printed; a terminal would make both slower."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    main()
