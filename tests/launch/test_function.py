"""`camshaft.launch(main, nproc=2)` from a script and from what was typed in. Each test starts real processes."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import camshaft

pytestmark = pytest.mark.distributed

SCRIPT = """
import json, traceback
import camshaft

def sum_of_ranks(offset, *, scale):
    import torch, torch.distributed as dist
    from camshaft.engine.distributed import initialise
    assert initialise()
    total = torch.tensor(dist.get_rank() + offset)
    dist.all_reduce(total)
    return [dist.get_rank(), scale * total.item()]

class Odd(Exception):  # pickled, but not read again
    def __init__(self, first, second):
        super().__init__(first)

def fails(kind):
    rank = int(os.environ["RANK"])
    if rank == 0:
        time.sleep(1000)
    if kind == "raises":
        raise KeyError("boom")
    if kind == "odd":
        raise Odd("a", "b")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "result":
        return lambda: 0
    sys.exit(7)

def once(folder):
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise ValueError("the first time")
    return os.environ["TORCHELASTIC_RESTART_COUNT"]

def outcome(kind):
    try:
        camshaft.launch(fails, nproc=2, args=[kind], start_method="fork")  # it is faster
    except Exception as error:
        return [type(error).__name__, str(error), str(error.__cause__)]

if __name__ == "__main__":
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    print(json.dumps({
        "results": camshaft.launch(sum_of_ranks, nproc=2, args=(1,), kwargs={"scale": 10}),
        "restarted": camshaft.launch(once, nproc=2, args=[0], max_restarts=1, start_method="fork"),
        **{kind: outcome(kind) for kind in ("raises", "odd", "killed", "result", "leaves")},
        "handlers given back": handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
    }))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What one script, which launches several times, has printed."""
    script = tmp_path_factory.mktemp("function") / "script.py"
    script.write_text("import os, signal, sys, time\n" + SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    ended = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


class TestFromAScript:
    def test_returns_what_each_rank_returned(self, outcomes):
        assert outcomes["results"] == [[0, 30], [1, 30]]

    def test_starts_all_ranks_again_after_a_failure(self, outcomes):
        assert outcomes["restarted"] == ["1", "1"]

    def test_raises_the_error_of_the_first_failing_rank_with_its_traceback(self, outcomes):
        name, message, cause = outcomes["raises"]
        assert (name, message) == ("KeyError", "'boom'")
        assert "Rank 1 was the first to fail" in cause
        assert 'raise KeyError("boom")' in cause

    def test_raises_another_for_an_error_that_cannot_be_sent(self, outcomes):
        name, message, cause = outcomes["odd"]
        assert (name, message) == ("RuntimeError", "Odd: a")
        assert 'raise Odd("a", "b")' in cause

    def test_says_how_a_rank_ended_that_raised_nothing(self, outcomes):
        assert outcomes["killed"][:2] == [
            "RuntimeError",
            "Rank 1 was the first to fail: killed by SIGKILL (by the system, if memory ran out).",
        ]
        assert outcomes["leaves"][:2] == ["RuntimeError", "Rank 1 was the first to fail: exit status 7."]

    def test_fails_where_a_result_cannot_be_sent(self, outcomes):
        assert "lambda" in outcomes["result"][1]

    def test_gives_the_signals_back(self, outcomes):
        assert outcomes["handlers given back"]


def test_a_function_that_was_typed_in_is_forked(run, program):
    text = """
import camshaft, torch
torch.randn(300, 300).mm(torch.randn(300, 300)).exp().sum()  # torch's threads, which a fork does not take along
def main(k):
    x = torch.randn(300, 300, requires_grad=True)
    (x @ x).exp().sum().backward()
    return k + int(os.environ["RANK"])
print(camshaft.launch(main, nproc=2, args=(5,)))
"""
    ended = run("-c", program(text).read_text())
    assert (ended.returncode, ended.stdout) == (0, "[5, 6]\n"), ended.stderr


def test_a_signal_lets_the_ranks_save_and_ends_the_script_with_their_status(start, program):
    text = """
import camshaft
def main():
    def save(number, frame):
        time.sleep(int(os.environ["RANK"]))
        print("saved", flush=True)
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
    while True: time.sleep(0.1)
if __name__ == "__main__":
    camshaft.launch(main, nproc=2)
"""
    process = start(program(text))
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (75, "saved\n" * 2), stderr


def test_a_rank_cannot_launch_ranks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="already rank 1 of 2, which a launcher started"):
        camshaft.launch(print)


def test_what_cannot_be_sent_to_a_process_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)  # nothing was typed in
    with pytest.raises(ValueError, match=r"cannot send <function .*<lambda>.* Define main\(\) at the top level"):
        camshaft.launch(lambda: None, nproc=2)


def test_no_processes_are_refused():
    with pytest.raises(ValueError, match="at least one process, but nproc is 0"):
        camshaft.launch(print, nproc=0)


def test_the_module_and_the_function_of_one_name_can_both_be_called():
    module = import_module("camshaft.launch")
    with pytest.raises(ValueError, match="nproc is 0"):
        module(print, nproc=0)
    with pytest.raises(ValueError, match="nproc is 0"):
        module.launch(print, nproc=0)
