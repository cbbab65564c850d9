"""What tests of the command line share: a small run, and the command line in a process of its own."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Trains for as many epochs as its argument says, and goes on with what is there.
PROGRAM = """
import sys
import torch
from camshaft import EMA, Checkpoint, CSVLogger, Engine, OptimizerStep
from camshaft.engine import Events

torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
trainer = Engine(lambda engine, batch: model(batch).square().mean())
trainer.attach(
    OptimizerStep(optimizer),
    EMA(model),
    Checkpoint("run", model=model, optimizer=optimizer, monitor="score", mode="max"),
    CSVLogger("run", every=1),
)
scores = {1: 0.5, 2: 0.75, 3: 0.25}
trainer.add_event_handler(
    Events.EPOCH_COMPLETED, lambda: trainer.state.metrics.update(score=scores.get(trainer.state.epoch, 0.0))
)
batches = torch.ones(4, 3, 2).unbind()
trainer.run(batches, max_epochs=int(sys.argv[1]))
print("trained for", trainer.state.epoch, "epochs")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that trains in `run`, beside itself."""
    path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="session")
def _run_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    (folder / "train.py").write_text(PROGRAM)
    subprocess.run([sys.executable, "train.py", "3"], cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture
def run(_run_of_the_session: Path, tmp_path: Path) -> Path:
    """A run of three epochs that is finished; its second is the best."""
    return Path(shutil.copytree(_run_of_the_session, tmp_path / "run"))


@pytest.fixture
def camshaft(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command line in a process of its own, in the folder of the test."""

    def call(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "camshaft", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120)

    return call
