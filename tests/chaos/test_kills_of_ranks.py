"""Ranks of a real program, killed with SIGKILL at random moments; the launcher starts all of them again.

The run must end with the checkpoint, to the bit, of one that nobody disturbed. By default this is left out, because
each kill costs the start of two processes; tests/handlers/test_checkpoint_distributed.py has one kill. For 4 a round:

    CAMSHAFT_KILL_ROUNDS=9 pytest tests/chaos
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from camshaft.__main__ import main
from camshaft.handlers.checkpoint_store import CheckpointStore

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("CAMSHAFT_KILL_ROUNDS", "0"))
KILLS = 4  # in a round
LONGEST = 300  # seconds, for one run

PROGRAM = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.handlers.checkpoint_program import *

def train(folder, asynchronous):
    initialise()
    folder.with_name(f"pid-{{rank()}}").write_text(str(os.getpid()))
    seed_everything(1)
    study, more = much(folder, asynchronous=asynchronous)
    study.engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: time.sleep(0.05))  # a moment to be killed in
    study.run(*more, max_epochs=12)

train(Path(sys.argv[1]), sys.argv[2] == "asynchronous")
"""


def last_in(run):
    return CheckpointStore(run / "checkpoints").list()[-1].path


@pytest.fixture(scope="module", params=["synchronous", "asynchronous"])
def undisturbed(request, tmp_path_factory):
    """The program, its mode, and the last checkpoint of its run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    start(program, folder / "run", request.param, restarts=0).wait(LONGEST)
    return program, request.param, last_in(folder / "run")


def start(program, run, mode, restarts):
    line = [sys.executable, "-m", "camshaft", "launch", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with run.with_suffix(".txt").open("w") as output:
        return subprocess.Popen(
            [*line, str(program), str(run), mode], env=environment, stdout=output, stderr=output, start_new_session=True
        )


@pytest.mark.skipif(not ROUNDS, reason="set CAMSHAFT_KILL_ROUNDS to the number of rounds")
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("number", range(max(ROUNDS, 1)))
def test_a_run_whose_ranks_are_killed_anywhere_ends_as_one_that_nobody_disturbed(undisturbed, tmp_path, number):
    program, mode, expected = undisturbed
    moments = random.Random(f"{mode} {number}")
    launcher = start(program, tmp_path / "run", mode, restarts=KILLS)
    kills, killed = 0, set()
    while kills < KILLS and launcher.poll() is None:
        victim = tmp_path / f"pid-{moments.randrange(2)}"
        if not victim.exists() or victim.read_text() in ("", *killed):  # the new one has yet to come
            time.sleep(0.01)
            continue
        time.sleep(moments.uniform(0, 2.5))
        pid = victim.read_text()
        killed.add(pid)
        if launcher.poll() is None and Path(f"/proc/{pid}").exists():
            os.kill(int(pid), signal.SIGKILL)
            kills += 1
    assert launcher.wait(LONGEST) == 0, (tmp_path / "run.txt").read_text()
    assert main(["diff", str(expected), str(last_in(tmp_path / "run"))]) == 0
    sys.stdout.write(f"{mode}: {kills} kills\n")
