"""`examples/distributed.py` takes the same steps on one process and on two, with either strategy."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "distributed.py"
ONE_PROCESS = [sys.executable, str(EXAMPLE)]
TWO_PROCESSES = [sys.executable, "-m", "camshaft", "launch", "--nproc-per-node", "2", str(EXAMPLE)]


class Ended(NamedTuple):
    out: str
    weights: dict[str, torch.Tensor]

    def told(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.out)


def run(folder: Path, command: list[str], *arguments: str) -> Ended:
    file = folder / f"{'-'.join([str(len(command)), *arguments])}.pt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*command, *arguments, "--weights", str(file)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return Ended(ended.stdout, torch.load(file))


def largest_difference(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return max((weight - others[name]).abs().max().item() for name, weight in weights.items())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return run(tmp_path_factory.mktemp("one"), ONE_PROCESS, "--max-epochs", "8")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    arguments = ("--max-epochs", "8", "--strategy", request.param)
    return run(tmp_path_factory.mktemp("two"), TWO_PROCESSES, *arguments)


@pytest.mark.distributed
def test_two_processes_end_with_the_weights_of_one_but_for_rounding(one_process: Ended, two_processes: Ended) -> None:
    assert list(two_processes.weights) == list(one_process.weights)
    assert largest_difference(two_processes.weights, one_process.weights) < 1e-6


@pytest.mark.distributed
def test_two_processes_tell_the_accuracy_of_one(one_process: Ended, two_processes: Ended) -> None:
    accuracy = one_process.told(r"test accuracy +([\d.]+%) of 357 images")
    assert float(accuracy[0].rstrip("%")) > 90
    assert two_processes.told(r"test accuracy +([\d.]+%) of 357 images") == accuracy


@pytest.mark.distributed
def test_only_the_first_process_tells_the_result(two_processes: Ended) -> None:
    assert two_processes.told(r"\[rank (\d)\] processes +2") == ["0"]
    assert len(two_processes.told(r"weights sha256: [0-9a-f]{64}")) == 1
