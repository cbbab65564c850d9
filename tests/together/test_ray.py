"""Ray Train starts the training function in workers of its own; `make interop` installs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray.train", reason="Ray is not installed: make interop installs and runs it")
pytestmark = [pytest.mark.distributed, pytest.mark.slow]

PROGRAM = Path(__file__).parent / "ray_program.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both workers wrote, of a run that was left alone and of one in which a worker has failed."""
    folder = tmp_path_factory.mktemp("ray")
    environment = os.environ | {
        "PYTHONPATH": str(PROGRAM.parents[2]),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {
        name: [json.loads((folder / name / f"{rank}.json").read_text()) for rank in (0, 1)]
        for name in ("whole", "failing")
    }


def test_two_workers_train_one_model(results):
    first, second = results["whole"]
    assert first == second
    assert first["began_at"] == 1


def test_a_group_that_was_started_again_goes_on_from_its_checkpoint_to_the_same_bits(results):
    for rank in (0, 1):
        assert results["failing"][rank]["began_at"] == 4
        assert results["failing"][rank]["weights"] == results["whole"][rank]["weights"]
