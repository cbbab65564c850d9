import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from camshaft.handlers.run_lock import RunLock

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

# Holds the lock on a directory until its input ends; with "fork" it forks a process first, and prints its number.
HOLD = """
import os, sys, time
from pathlib import Path
from camshaft.handlers.run_lock import RunLock

lock = RunLock(Path(sys.argv[1]))
lock.acquire()
forked = os.fork() if "fork" in sys.argv else None
if forked == 0:
    os.close(1)
    time.sleep(60)
print(forked, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock on ``tmp_path``."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-c", HOLD, str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path, holder):
    process, _ = holder()
    with pytest.raises(
        BlockingIOError, match=f"The process {process.pid} is training in .*wait for it, end it, or choose"
    ):
        RunLock(tmp_path).acquire()


def test_a_killed_process_holds_it_no_longer(tmp_path, holder):
    process, _ = holder()
    process.kill()
    process.wait()
    RunLock(tmp_path).acquire()


def test_nor_do_processes_that_it_had_forked_such_as_the_workers_of_a_loader(tmp_path, holder):
    process, forked = holder("fork")
    process.kill()
    process.wait()
    try:
        RunLock(tmp_path).acquire()
    finally:
        os.kill(int(forked), signal.SIGKILL)  # it was still there


def test_the_same_process_may_take_it_again(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    first.acquire()
    second.acquire()


def test_released_it_is_free_for_another(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    subprocess.run(command, input="", text=True, env=ENVIRONMENT, capture_output=True, check=True)


def test_a_directory_that_is_not_there_is_made(tmp_path):
    RunLock(tmp_path / "runs" / "one").acquire()
    assert (tmp_path / "runs" / "one").is_dir()
