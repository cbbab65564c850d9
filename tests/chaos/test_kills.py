"""Real programs, killed with SIGKILL at random moments and started again until they are done.

They must end with the weights and the logs, to the byte, of a run that nobody disturbed. By default there is one round
of five kills for each program; ten rounds are 100 kills:

    CAMSHAFT_KILL_ROUNDS=10 pytest tests/chaos
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("CAMSHAFT_KILL_ROUNDS", "1"))
KILLS = 5  # in a round, two of them while a checkpoint is written
LONGEST = 120  # seconds, for one start of a program

PROGRAMS = {
    "digits": [str(ROOT / "examples" / "digits.py"), "--max-epochs", "3", "--seed", "1", "--run-dir"],
    "harder": [str(ROOT / "tests" / "chaos" / "harder.py")],
}


def start(name: str, directory: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *PROGRAMS[name], str(directory)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def digest_of(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, errors
    return re.findall(r"weights sha256: (\w+)", output)[-1]


def wait_until_training(process: subprocess.Popen[str], directory: Path) -> bool:
    """Wait until the run takes its directory, after all that a program does first; False if it ended before."""
    lock = directory / ".lock"
    before = lock.stat().st_mtime_ns if lock.exists() else None
    return wait_until(lambda: lock.exists() and lock.stat().st_mtime_ns != before, process)


def is_writing(directory: Path) -> bool:
    """Whether there is a checkpoint that is not whole yet."""
    return any((directory / "checkpoints").glob(".writing-*"))


def wait_until(condition, process: subprocess.Popen[str], seconds: float = LONGEST) -> bool:
    """Whether it came true before the process ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def kill(process: subprocess.Popen[str]) -> bool:
    """Kill the process and its workers; False if it had ended by then."""
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module", params=PROGRAMS)
def undisturbed(request, tmp_path_factory):
    """The program's name, where it ran undisturbed, its digest, and the seconds for which it trained."""
    directory = tmp_path_factory.mktemp(f"undisturbed_{request.param}") / "run"
    process = start(request.param, directory)
    assert wait_until_training(process, directory)
    began = time.monotonic()
    digest = digest_of(process)
    return request.param, directory, digest, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_run_killed_anywhere_ends_as_one_that_nobody_disturbed(undisturbed, number, tmp_path):
    name, reference, digest, seconds = undisturbed
    moments = random.Random(number)
    kills = killed_while_writing = runs = 0
    while kills < KILLS:
        directory = tmp_path / f"run-{runs}"
        runs += 1
        killed = True
        while killed:  # and started again, until it is done
            process = start(name, directory)
            if kills == KILLS or not wait_until_training(process, directory):
                killed = False
            else:
                time.sleep(moments.uniform(0, 0.4 * seconds))
                writes = kills % 2 and wait_until(partial(is_writing, directory), process)
                killed = kill(process)
                kills += killed
                killed_while_writing += bool(killed and writes)
        assert digest_of(process) == digest, f"after {kills} kills, in {directory}"
        assert (directory / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()
        assert not any((directory / "checkpoints").glob(".*"))
    assert killed_while_writing >= 1
