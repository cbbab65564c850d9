"""How long it takes from starting Python to the end of the first optimizer step: a bare loop, Camshaft, and peers.

Each round starts every program once in a fresh process, in an order that changes from round to round, so that what
the machine does meanwhile falls on all alike. A ratio is the median of the rounds' own ratios.

    python benchmarks/startup.py --rounds 15
"""

import argparse
import subprocess
import sys
import tempfile
from statistics import median
from time import monotonic_ns

MODEL = """
import torch
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters())
data = [(torch.randn(32, 64), torch.randint(0, 10, (32,)))]  # one batch
"""

BARE_LOOP = """
for x, y in data:
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
"""

CAMSHAFT = """
from camshaft import Engine
from camshaft.handlers import OptimizerStep

def step(engine, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)

trainer = Engine(step)
trainer.attach(OptimizerStep(optimizer))
trainer.run(data)
"""

IGNITE = """
from ignite.engine import Engine

def step(engine, batch):
    x, y = batch
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()

trainer = Engine(step)
trainer.run(data)
"""

LIGHTNING = """
import logging, warnings
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
import lightning.pytorch as pl

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return optimizer

class Data:
    def __iter__(self):
        return iter(data)

    def __len__(self):
        return len(data)

off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
pl.Trainer(max_epochs=1, accelerator="cpu", **off).fit(Module(), Data())
"""

# Linux's and macOS's monotonic clock is one for all processes.
SAY_WHEN = """
from time import monotonic_ns
print(monotonic_ns())
"""

PROGRAMS = {
    "bare loop": MODEL + BARE_LOOP + SAY_WHEN,
    "Camshaft": MODEL + CAMSHAFT + SAY_WHEN,
    "Ignite": MODEL + IGNITE + SAY_WHEN,
}
PEERS = {"Lightning": MODEL + LIGHTNING + SAY_WHEN}  # which may be missing


def seconds_to_first_step(program: str) -> float:
    """Run the program in a fresh process, away from the source tree, and take its time."""
    elsewhere = tempfile.gettempdir()
    begin = monotonic_ns()
    process = subprocess.run([sys.executable, "-c", program], cwd=elsewhere, stdout=subprocess.PIPE, check=True)
    return (int(process.stdout) - begin) / 1e9


def runs(name: str, program: str) -> bool:
    """Whether it runs here; tells of what does not."""
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False)
    if process.returncode:
        print(f"{name} is left out: {process.stderr.strip().splitlines()[-1]}")
    return process.returncode == 0


def measure(rounds: int) -> dict[str, list[float]]:
    """The seconds of every program in every round."""
    programs = PROGRAMS | {name: program for name, program in PEERS.items() if runs(name, program)}
    names = list(programs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        seconds_to_first_step(programs[name])  # so that the files are in memory and compiled
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_to_first_step(programs[name]))
    return seconds


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Time from starting Python to the end of the first optimizer step.")
    parser.add_argument("--rounds", type=int, default=9, help="how often each program is run (default: %(default)s)")
    seconds = measure(parser.parse_args().rounds)
    bare_loop = seconds["bare loop"]
    print(f"{'program':<10}  {'median s':>8}  {'to bare loop':>12}  {'lowest to highest':>17}")
    for name, its in seconds.items():
        ratios = [one / bare for one, bare in zip(its, bare_loop, strict=True)]
        print(f"{name:<10}  {median(its):>8.2f}  {median(ratios):>12.3f}  {min(ratios):>8.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
