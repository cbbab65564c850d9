import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from camshaft.handlers.run_lock import RunLock

HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from camshaft.handlers.run_lock import RunLock\n"
    "RunLock(Path(sys.argv[1])).acquire()\n"  # the object is gone at once, and the lock with it
    "lock = RunLock(Path(sys.argv[1]))\n"
    "lock.acquire()\n"
    "if 'fork' in sys.argv:\n"
    "    import os\n"
    "    if os.fork() == 0:\n"
    "        print(os.getpid(), flush=True)\n"
    "        time.sleep(60)\n"
    "print(os.getpid() if 'os' in vars() else 'held', flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock on ``tmp_path``."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        processes.append(process)
        process.first_line = process.stdout.readline()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path, holder):
    process = holder()
    with pytest.raises(
        RuntimeError, match=f"The process {process.pid} is training in .*wait for it, end it, or choose"
    ):
        RunLock(tmp_path).acquire()


def test_a_killed_process_holds_it_no_longer(tmp_path, holder):
    process = holder()
    process.kill()
    process.wait()
    RunLock(tmp_path).acquire()


def test_nor_do_processes_that_it_had_forked_such_as_the_workers_of_a_loader(tmp_path, holder):
    process = holder("fork")
    child = int(process.first_line)
    if child == process.pid:
        child = int(process.stdout.readline())
    process.stdout.readline() if child != process.pid else None
    process.kill()
    process.wait()
    try:
        os.kill(child, 0)  # it lives on
        RunLock(tmp_path).acquire()
    finally:
        os.kill(child, 9)


def test_the_same_process_may_take_it_again(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    first.acquire()
    second.acquire()


def test_released_it_is_free_for_another(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    program = HOLD.replace("time.sleep(60)", "")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, check=True
    )
    assert other.stdout == b"held\n"


def test_a_directory_that_is_not_there_is_made(tmp_path):
    RunLock(tmp_path / "runs" / "one").acquire()
    assert (tmp_path / "runs" / "one").is_dir()
