"""A process group for whatever launcher started the program. Tests of several ranks start real processes."""

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed as dist

from camshaft.engine.distributed import finalise, from_slurm, initialise

ROOT = Path(__file__).parent.parent.parent
LAUNCHERS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
PROGRAM = """
import os
import ignite.distributed as idist
import torch, torch.distributed as dist
from camshaft.engine.distributed import finalise, initialise

def main(local_rank=None):
    assert initialise()
    assert initialise()  # again: nothing
    total = torch.tensor(dist.get_rank() + 1)
    dist.all_reduce(total)
    seen_by_ignite = idist.get_rank(), idist.get_world_size(), idist.get_local_rank(), idist.backend()
    assert seen_by_ignite == (dist.get_rank(), 2, dist.get_rank(), "gloo"), seen_by_ignite
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {total.item()}\\n", end="", flush=True)

if __name__ == "__main__":
    if os.environ.get("PARALLEL"):
        with idist.Parallel(backend="gloo", nproc_per_node=2, master_port=int(os.environ["PARALLEL"])) as parallel:
            parallel.run(main)
    else:
        main()
"""
EXPECTED = ["rank 0 of 2: 3", "rank 1 of 2: 3"]


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in os.environ:
        if name in LAUNCHERS or name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def srun(program, tasks=2, **environment):
    """Start a program as SLURM's ``srun`` does: nothing but variables tells a process that it is one of several."""
    step = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(tasks), "SLURM_NODELIST": "localhost"}
    processes = [
        subprocess.Popen(
            [sys.executable, program],
            env=os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in range(tasks)
    ]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * tasks, ended
    return sorted("".join(stdout for stdout, _ in ended).splitlines())


@pytest.mark.distributed
class TestTwoRanks:
    def test_of_srun_find_each_other(self, program):
        assert srun(program, MASTER_PORT=free_port()) == EXPECTED

    def test_of_torchrun_find_each_other(self, program):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", program]
        ended = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
        assert sorted(ended.stdout.splitlines()) == EXPECTED

    def test_of_camshaft_launch_find_each_other_within_a_job_of_slurm(self, program):
        # A job's variables reach the ranks of a launcher, too, and say that each of them is the first task.
        job = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}
        command = [sys.executable, "-m", "camshaft", "launch", "--nproc-per-node", "2", program]
        ended = subprocess.run(
            command, env=os.environ | job, capture_output=True, encoding="utf-8", timeout=60, check=False
        )
        assert sorted(ended.stdout.splitlines()) == [f"[rank {line[5]}] {line}" for line in EXPECTED], ended.stderr

    def test_of_ignites_parallel_have_their_group_already(self, program):
        environment = os.environ | {"PARALLEL": free_port()}
        ended = subprocess.run(
            [sys.executable, program], env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False
        )
        assert sorted(ended.stdout.splitlines()) == EXPECTED, ended.stderr


PROGRAM_WITH_GLOBALS = """
import atexit, pathlib
from torch import nn, optim, ones

def count_threads():  # the last thing that python calls
    names = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    print(len([name for name in names if "gloo" in name]), flush=True)

atexit.register(count_threads)
from camshaft import *
model = nn.Linear(4, 1)
trainer = Engine(lambda engine, batch: model(batch).mean())
trainer.attach(OptimizerStep(optim.SGD(model.parameters(), lr=0.1)), DataParallel(model), TimeLimit(60))
trainer.run([ones(2, 4)] * 3)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_no_thread_of_a_group_outlives_the_interpreter_which_it_would_make_abort(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM_WITH_GLOBALS)
    assert srun(tmp_path / "train.py", MASTER_PORT=free_port()) == ["0", "0"]


def test_a_process_of_its_own_has_no_group():
    assert not initialise()
    assert not dist.is_initialized()
    finalise()


def test_a_program_that_is_the_only_one_has_no_group(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not initialise()


def test_an_environment_that_leaves_something_out_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = dict(os.environ)
    with pytest.raises(ValueError, match="says WORLD_SIZE=2, but RANK is not set"):
        initialise()
    assert os.environ == before


def test_on_a_tpu_tensors_go_through_xla_and_objects_through_gloo_beside_it(monkeypatch):
    """No TPU is at hand: this says what is called, by the names of torch_xla 2.9, which the real one has as well."""
    calls = []
    monkeypatch.setitem(sys.modules, "torch_xla", ModuleType("torch_xla"))
    monkeypatch.setitem(sys.modules, "torch_xla.distributed", ModuleType("torch_xla.distributed"))
    monkeypatch.setitem(sys.modules, "torch_xla.distributed.xla_backend", ModuleType("xla_backend"))
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(dist, "new_group", lambda **options: calls.append(options))
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    assert initialise(timeout=5)
    finalise()
    timeout = timedelta(seconds=5)
    assert calls == [
        (("xla",), {"init_method": "xla://", "timeout": timeout}),
        {"backend": "gloo", "timeout": timeout},
    ]


TASK = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "123456"}


class TestSlurm:
    def test_variables_become_torchruns(self):
        assert from_slurm(TASK | {"SLURM_NODELIST": "n1,n2"}) == {
            "RANK": "3",
            "LOCAL_RANK": "1",
            "WORLD_SIZE": "4",
            "MASTER_ADDR": "n1",
            "MASTER_PORT": "18456",
        }

    @pytest.mark.parametrize(
        ("nodes", "first"),
        [
            ("node1", "node1"),
            ("node1,node2", "node1"),
            ("gpu[07-12]", "gpu07"),
            ("gpu[3,5-9],login", "gpu3"),
            ("rack[2-3]gpu[007-009].site", "rack2gpu007.site"),
            ("a-b[1-2],c", "a-b1"),
        ],
    )
    def test_the_first_host_is_read_from_every_way_to_write_a_list(self, nodes, first):
        assert from_slurm(TASK | {"SLURM_NODELIST": nodes})["MASTER_ADDR"] == first

    def test_the_hosts_of_the_step_come_before_those_of_the_job(self):
        nodes = {"SLURM_JOB_NODELIST": "a[1-9]", "SLURM_STEP_NODELIST": "a[4-5]"}
        assert from_slurm(TASK | nodes)["MASTER_ADDR"] == "a4"

    def test_two_steps_of_a_job_use_different_ports(self):
        ports = {from_slurm(TASK | {"SLURM_STEP_ID": step})["MASTER_PORT"] for step in "01"}
        assert len(ports) == 2

    def test_an_address_and_a_port_that_are_set_are_kept(self):
        chosen = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4242"}
        assert chosen.items() <= from_slurm(TASK | chosen).items()

    @pytest.mark.parametrize(
        "alone", [{"ENVIRONMENT": "BATCH"}, {"SLURM_STEP_ID": "4294967290"}, {"SLURM_NTASKS": "1"}]
    )
    def test_a_script_or_a_shell_that_runs_once_is_not_one_of_several(self, alone):
        assert from_slurm(TASK | alone) == {}
