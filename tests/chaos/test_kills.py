"""Real programs, killed with SIGKILL at random moments and started again until they are done.

They must end with the weights and the logs of a run that nobody disturbed. At least a third of the kills fall into the
writing of a checkpoint: what is left of it tells. By default there is one round of 4 kills for each program; for 100:

    CAMSHAFT_KILL_ROUNDS=9 pytest tests/chaos
"""

import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("CAMSHAFT_KILL_ROUNDS", "1"))
KILLS = 4  # of each program in a round
LONGEST = 120  # seconds, for one start of a program

PROGRAMS = {
    "digits": [str(ROOT / "examples" / "digits.py"), "--max-epochs", "3", "--seed", "1", "--run-dir"],
    "harder": [str(ROOT / "tests" / "chaos" / "harder.py")],
    "harder, written in the background": [str(ROOT / "tests" / "chaos" / "harder.py"), "--asynchronous"],
}


class Run:
    """A program in a directory, which is started again and again."""

    def __init__(self, name, directory):
        self.command = [sys.executable, *PROGRAMS[name], str(directory)]
        self.directory = directory
        self.output = directory.with_suffix(".txt")
        self.process = None
        self.killed_while_writing = 0

    def start(self):
        """Start it, and return when it trains: when it has taken its directory."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        lock = self.directory / ".lock"
        before = lock.stat().st_mtime_ns if lock.exists() else None
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.wait_until(lambda: lock.exists() and lock.stat().st_mtime_ns != before)
        self.wait_until(lambda: not self.is_writing())  # what an earlier kill has left is cleared

    def wait_until(self, condition, seconds=LONGEST):
        """Wait until it comes true or the process ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None and not condition():
            time.sleep(0.0003)

    def is_writing(self):
        """Whether there is a checkpoint that is not whole yet."""
        return any((self.directory / "checkpoints").glob(".*"))

    def kill(self):
        """Kill the process and its workers; False if it had ended by itself."""
        if self.process.poll() is None:  # else its number may be another's by now
            os.killpg(self.process.pid, signal.SIGKILL)
        killed = self.process.wait() == -signal.SIGKILL
        self.killed_while_writing += killed and self.is_writing()
        return killed

    def end(self):
        """Let it end by itself, and return the digest of the weights that it prints."""
        status = self.process.wait(LONGEST)
        output = self.output.read_text()
        assert status == 0, output
        return re.findall(r"weights sha256: (\w+)", output)[-1]


def scalars_in(directory):
    """What TensorBoard shows: after the start of a session, scalars of its step and of later ones are void."""
    shown = []
    for path in sorted(directory.rglob("*.tfevents.*")):
        content = path.read_bytes()
        while len(content) >= 12:
            (length,) = struct.unpack("<Q", content[:8])
            if len(content) < 16 + length:  # cut off by a kill: the rest of the file is passed over
                break
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                shown = [point for point in shown if point[1] < event.step]
            shown += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return sorted(map(repr, shown))  # in which a NaN is equal to another


@pytest.fixture(scope="module", params=PROGRAMS)
def undisturbed(request, tmp_path_factory):
    """The program's name, its run, the digest that it printed, and the seconds for which it trained."""
    run = Run(request.param, tmp_path_factory.mktemp("undisturbed") / "run")
    run.start()
    began = time.monotonic()
    return request.param, run, run.end(), time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_run_killed_anywhere_ends_as_one_that_nobody_disturbed(undisturbed, tmp_path, number):
    name, reference, digest, seconds = undisturbed
    moments = random.Random(f"{name} {number}")
    runs = []
    kills = in_writing = 0
    while kills < KILLS or 3 * in_writing < kills:
        assert kills < 3 * KILLS, f"only {in_writing} of {kills} kills fell into the writing of a checkpoint"
        run = Run(name, tmp_path / f"run-{len(runs)}")
        runs.append(run)
        run.start()
        for _ in range(moments.randint(2, KILLS)):
            time.sleep(moments.uniform(0, 0.4 * seconds))
            if 2 * in_writing <= kills:
                run.wait_until(run.is_writing)
            if not run.kill():
                break
            kills += 1
            in_writing = sum(run.killed_while_writing for run in runs)
            run.start()
        assert run.end() == digest, f"{run.directory} after {kills} kills"
        assert (run.directory / "metrics.csv").read_text() == (reference.directory / "metrics.csv").read_text()
        assert scalars_in(run.directory) == scalars_in(reference.directory) != []
        assert not run.is_writing()
    sys.stdout.write(
        f"{name}: {kills} kills of {len(runs)} runs, {in_writing} of them while a checkpoint was written\n"
    )
