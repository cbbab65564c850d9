"""`camshaft launch` does what torchrun does, and what torchrun lacks. Each test starts real processes."""

import signal
import socket
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from camshaft.engine import distributed
from camshaft.handlers import preemption
from camshaft.launch import ending
from camshaft.launch import program as launch_program

pytestmark = pytest.mark.distributed

# A rank that makes a process group; every collective of it ends with an error when another rank is gone.
TOGETHER = """
import torch, torch.distributed as dist
from camshaft.engine.distributed import initialise
initialise()
def together(): dist.all_reduce(torch.ones(1))
"""
RESTARTS = "int(os.environ['TORCHELASTIC_RESTART_COUNT'])"


def test_the_constants_that_stand_twice_are_the_same():
    assert launch_program.TIMEOUT_VARIABLE == distributed.TIMEOUT_VARIABLE
    assert ending.PREEMPTED == preemption.PREEMPTED


class TestOneLog:
    def test_has_each_line_with_its_rank_and_each_rank_has_a_file(self, launch, program, tmp_path):
        ended = launch(
            "--log-dir", "logs", program("print('out', sys.argv[1:]); print('error', file=sys.stderr)"), "--lr", "0.1"
        )
        assert ended.returncode == 0
        assert sorted(ended.stdout.splitlines()) == [f"[rank {rank}] out ['--lr', '0.1']" for rank in (0, 1)]
        assert sorted(ended.stderr.splitlines()) == ["[rank 0] error", "[rank 1] error"]
        for rank in (0, 1):
            file = tmp_path / "logs" / f"rank_{rank}.log"
            assert sorted(file.read_text().splitlines()) == ["error", "out ['--lr', '0.1']"]

    def test_shows_the_ranks_of_a_filter_only_and_keeps_what_is_redirected_in_files(self, launch, program, tmp_path):
        text = "print('out'); print('error', file=sys.stderr)"
        options = ("--local-ranks-filter", "1", "--redirects", "2", "--log-dir", "logs")
        ended = launch(*options, program(text))
        assert (ended.stdout, ended.stderr) == ("[rank 1] out\n", "")
        assert all(
            set((tmp_path / "logs" / f"rank_{rank}.log").read_text().split()) == {"out", "error"} for rank in (0, 1)
        )


class TestAFailure:
    def test_shows_the_first_failing_ranks_traceback_last_and_once(self, launch, program):
        text = TOGETHER + "together()\nif rank == '1': raise ValueError('boom')\ntogether()"
        ended = launch(program(text))
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1] == "ValueError: boom"
        assert ended.stderr.count("Traceback") == ended.stderr.count("boom')") == 1
        assert "[camshaft] Rank 1 was the first to fail: exit status 1\nTraceback" in ended.stderr
        assert "torch/distributed/elastic" not in ended.stderr

    def test_ends_all_ranks_within_seconds_with_the_status_of_the_one_that_failed(self, launch, program):
        ended = launch(program("if rank == '1': sys.exit(7)\ntime.sleep(1000)"))
        assert (ended.returncode, ended.stdout) == (7, "")
        assert ended.stderr == "[camshaft] Rank 1 was the first to fail: exit status 7\n"

    def test_of_a_rank_that_was_killed_has_the_status_of_a_shell(self, launch, program):
        text = "if rank == '1': os.kill(os.getpid(), signal.SIGSEGV)\ntime.sleep(1000)"
        ended = launch(program(text))
        assert ended.returncode == 128 + signal.SIGSEGV
        assert ended.stderr == "[camshaft] Rank 1 was the first to fail: killed by SIGSEGV\n"

    def test_names_the_file_that_has_all_of_it(self, launch, program):
        ended = launch("--log-dir", "logs", program("print('x'); sys.exit(3)"))
        assert "[camshaft] All that rank " in ended.stderr
        assert ended.stderr.endswith(".log\n")

    def test_before_any_rank_starts_is_one_line_and_status_2(self, launch, program):
        ended = launch("trian.py")
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1].endswith("error: there is no file 'trian.py' to run")

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            (["--nproc-per-node", "0"], "--nproc-per-node 0 starts no process"),
            (["--nproc-per-node", "many"], "Unsupported nproc_per_node value: many"),
            (["--nnodes", "4:2"], "--nnodes 4:2 is no number of hosts"),
            (["--nnodes", "1:x"], "--nnodes 1:x is no number of hosts"),
            (["--nnodes", "2"], "--nnodes 2 needs a place where the hosts meet: add --rdzv-endpoint"),
            (["--max-restarts", "-1"], "--max-restarts -1 is no number of restarts"),
            (["--collective-timeout", "0"], "--collective-timeout 0 must be more than 0 seconds"),
            (["--local-ranks-filter", "first"], "--local-ranks-filter first must be numbers"),
            (["--rdzv-endpoint", "localhost:first"], "must be an integer"),
            (["--rdzv-conf", "is_host"], "'is_host' must have a value"),
            (["--grace-period", "long"], "--grace-period: invalid float value: 'long'"),
            (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        ],
    )
    def test_of_an_option_is_one_line_after_the_usage_and_status_2(self, launch, program, options, error):
        ended = launch(*options, program(""))
        assert ended.returncode == 2
        usage, line = ended.stderr.splitlines()
        assert usage.startswith("usage: camshaft")
        assert error in line


class TestARankThatStops:
    def test_ends_the_run_within_the_collective_timeout_and_is_named(self, launch, program):
        text = TOGETHER + "together()\nif rank == '1': os.kill(os.getpid(), signal.SIGSTOP)\ntogether()"
        ended = launch("--collective-timeout", 2, program(text))
        assert ended.returncode == 1
        assert "[camshaft] Rank 1 did not answer: it was stopped, as SIGSTOP does" in ended.stderr
        assert "Rank 0 was the first to fail" in ended.stderr
        assert "Timed out waiting 2000ms" in ended.stderr.splitlines()[-1]

    def test_may_be_the_first_of_four(self, launch, program):
        text = TOGETHER + "together()\nif rank == '0': os.kill(os.getpid(), signal.SIGSTOP)\ntogether()"
        ended = launch("--nproc-per-node", 4, "--collective-timeout", 2, program(text))
        assert ended.returncode == 1
        assert "[camshaft] Rank 0 did not answer: it was stopped, as SIGSTOP does" in ended.stderr
        assert ended.stderr.count("did not answer") == 1
        assert sum(f"Rank {rank} failed after it: exit status 1" in ended.stderr for rank in (1, 2, 3)) == 2
        assert "[camshaft] The ranks of this host waited in vain" not in ended.stderr


class TestASignal:
    # Rank 1 takes a second longer; what a rank has started must live on, as a DataLoader's workers.
    SAVES = """
child = subprocess.Popen(["sleep", "1000"])
def save(number, frame):
    time.sleep(int(rank))
    print(f"saved at {signal.Signals(number).name}, child", child.poll())
    child.kill()
    sys.exit(STATUS)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, save)
print("ready")
while True: time.sleep(0.1)
"""

    @pytest.mark.parametrize(
        ("number", "status", "expected"),
        [
            (signal.SIGTERM, 0, 0),
            (signal.SIGUSR1, 75, 75),
            (signal.SIGINT, 130, 130),
        ],
    )
    def test_lets_every_rank_save_and_keeps_their_status(self, start_ranks, program, number, status, expected):
        process = start_ranks(program(self.SAVES.replace("STATUS", str(status))))
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == expected
        assert stdout.splitlines() == [f"[rank {rank}] saved at {number.name}, child None" for rank in (0, 1)]
        assert stderr == ""

    def test_saves_what_the_preemption_handler_saves(self, start_ranks, program, tmp_path):
        text = (
            TOGETHER
            + """
from torch.utils.data import DataLoader
from camshaft import Checkpoint, Engine, Events, Preemption
def step(engine, batch):
    together()
    time.sleep(0.02)
engine = Engine(step).attach(Checkpoint("run"), Preemption())
engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: print("ready"))
engine.run(DataLoader(range(10000), num_workers=1))
"""
        )
        process = start_ranks(program(text))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == preemption.PREEMPTED
        assert any((tmp_path / "run").iterdir())

    def test_kills_what_lives_on_after_the_grace_period(self, start_ranks, program):
        text = "signal.signal(signal.SIGTERM, signal.SIG_IGN if rank == '1' else signal.SIG_DFL)\nprint('ready')\n"
        process = start_ranks("--grace-period", 1, program(text + "while True: time.sleep(0.1)"))
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGKILL
        assert stderr == "[camshaft] Rank 1 did not end within 1 s of being told to, and was killed\n"

    def test_of_ranks_that_were_preempted_one_by_one_waits_for_the_last_and_restarts_none(self, launch, program):
        ended = launch("--max-restarts", 2, program("time.sleep(2 * int(rank))\nprint('saved')\nsys.exit(75)"))
        assert (ended.returncode, ended.stderr) == (75, "")
        assert ended.stdout == "[rank 0] saved\n[rank 1] saved\n"


class TestRestarts:
    def test_a_killed_rank_comes_back_with_all_others(self, launch, program):
        text = f"together()\nif rank == '1' and {RESTARTS} == 0: os.kill(os.getpid(), signal.SIGKILL)\ntogether()\n"
        ended = launch("--max-restarts", 1, program(TOGETHER + text + f"print('done', {RESTARTS})"))
        assert ended.returncode == 0
        assert sorted(ended.stdout.splitlines()) == ["[rank 0] done 1", "[rank 1] done 1"]
        assert "[camshaft] Rank 1 was the first to fail: killed by SIGKILL" in ended.stderr
        assert ended.stderr.splitlines()[-1] == "[camshaft] Restart 1 of 1"

    def test_that_are_used_up_leave_the_last_failures_status(self, launch, program):
        ended = launch("--max-restarts", 1, program(f"if rank == '0': sys.exit(3 + {RESTARTS})\ntime.sleep(1000)"))
        assert ended.returncode == 4


class TestHosts:
    def test_of_one_machine_need_no_endpoint_and_no_free_port_of_a_number(self, launch, program):
        assert launch("--standalone", program("")).returncode == 0

    def test_meet_at_an_endpoint_that_one_of_them_was_told_is_its_own(self, start, program):
        script = program("print(os.environ['GROUP_RANK'], rank, os.environ['WORLD_SIZE'])")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        meet = ("--nnodes", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1")
        hosts = [
            start("-m", "camshaft.launch", *meet, "--nproc-per-node", 1, "--rdzv-conf", f"is_host={own}", script)
            for own in (1, 0)
        ]
        lines = [host.communicate(timeout=60)[0] for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0]
        assert sorted(lines) == ["[rank 0] 0 0 2\n", "[rank 1] 1 1 2\n"]

    @pytest.mark.parametrize("option", ["--rdzv-endpoint=127.0.0.1:{}", "--master-port={}"])
    def test_are_told_when_another_program_has_the_port(self, launch, program, option):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            ended = launch(option.format(port), program(""))
        assert ended.returncode == 1
        (line,) = ended.stderr.splitlines()
        assert line.startswith("[camshaft] The hosts did not meet: ")
        assert "address already in use" in line
        assert f"127.0.0.1:{port}" in line


def test_without_a_number_there_is_a_rank_for_each_chip_of_a_tpu(monkeypatch):
    torch_xla = ModuleType("torch_xla")  # no TPU is at hand
    torch_xla.tpu = SimpleNamespace(num_available_chips=lambda: 4)
    monkeypatch.setitem(sys.modules, "torch_xla", torch_xla)
    assert launch_program.processes_of_this_machine() != 4  # it is not even asked
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    assert launch_program.processes_of_this_machine() == 4


def test_without_a_number_there_is_a_rank_for_each_accelerator_or_one(run, program):
    expected = torch.accelerator.device_count() if torch.accelerator.is_available() else 1
    ended = run("-m", "camshaft.launch", program("print(os.environ['WORLD_SIZE'])"))
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.splitlines()) == [f"[rank {rank}] {expected}" for rank in range(expected)]
