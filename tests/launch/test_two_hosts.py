"""Two hosts that a link joins: network namespaces with a veth pair between them, and a launcher in each.

They share the disk, as hosts of a cluster do. Where namespaces are not allowed, this is skipped.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
SAMPLES = 400
PROGRAM = f"""
import time
import torch
from torch import nn
from torch.utils.data import DataLoader
from camshaft import Checkpoint, DataParallel, DistributedSampling, Engine, Events, OptimizerStep

model = nn.Linear(4, 2)

def step(engine, batch):
    time.sleep(0.02)
    return model(batch).square().mean()

trainer = Engine(step).attach(
    OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)), DataParallel(model), DistributedSampling(),
    Checkpoint("run", model=model, at=Events.ITERATION_COMPLETED(every=10)),
)

@trainer.on(Events.STARTED)
def begin():
    print("begins after", trainer.state.iteration, flush=True)

@trainer.on(Events.ITERATION_COMPLETED(every=10))
def progress():
    print("iteration", trainer.state.iteration, flush=True)

trainer.run(DataLoader(torch.ones({SAMPLES}, 4), batch_size=1), max_epochs=1)
print("done after", trainer.state.iteration, flush=True)
"""


class Host:
    """A network of its own: a process that only keeps it, and others that are started in it."""

    def __init__(self, name: str, address: str, *command: str) -> None:
        self.name = name
        self.address = address
        self.keeper = subprocess.Popen(
            [*command, "sh", "-c", "echo ready; exec sleep 1000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self.keeper.stdout is not None
        if self.keeper.stdout.readline() != "ready\n":
            raise OSError(self.keeper.communicate()[1].strip())

    def inside(self, *command: object) -> list[str]:
        namespaces = ["nsenter", f"--target={self.keeper.pid}", "--user", "--net", "--preserve-credentials"]
        return [*namespaces, *map(str, command)]

    def ip(self, *arguments: object) -> None:
        done = subprocess.run(self.inside("ip", *arguments), capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join(map(str, arguments))}: {done.stderr.strip()}")

    def close(self) -> None:
        self.keeper.kill()
        self.keeper.communicate()


@pytest.fixture
def hosts():
    """Two hosts, of which the first has the address 10.9.0.1 and the second 10.9.0.2, with a link between them."""
    made = []
    try:
        first = Host("host1", "10.9.0.1", "unshare", "--user", "--map-root-user", "--net")
        made.append(first)
        second = Host("host2", "10.9.0.2", *first.inside("unshare", "--net"))
        made.append(second)
        first.ip("link", "add", "name", first.name, "type", "veth", "peer", "name", second.name,
                 "netns", second.keeper.pid)  # fmt: skip
        for host in made:
            host.ip("address", "add", f"{host.address}/24", "dev", host.name)
            host.ip("link", "set", host.name, "up")
            host.ip("link", "set", "lo", "up")
    except OSError as error:
        for host in made:
            host.close()
        pytest.skip(f"this machine allows no network namespaces joined by a veth pair: {error}")
    yield made
    for host in made:
        host.close()


@pytest.fixture
def launch_on_each(hosts, tmp_path):
    """Types the same command on both hosts."""
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "camshaft", "launch", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-endpoint", "10.9.0.1:29400", "--collective-timeout", "3", script]
    started = []

    def launch_on(host):
        with (tmp_path / f"{host.name}.out").open("w") as out, (tmp_path / f"{host.name}.err").open("w") as err:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(
                host.inside(*command), cwd=tmp_path, env=environment, stdout=out, stderr=err, start_new_session=True
            )
        started.append(process)
        return process

    def launch():
        return [launch_on(host) for host in hosts]

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_end_when_their_link_is_cut_and_go_on_when_the_same_command_is_given_again(hosts, launch_on_each, tmp_path):
    def written(kind):
        return [(tmp_path / f"{host.name}.{kind}").read_text() for host in hosts]

    launched = launch_on_each()
    deadline = time.monotonic() + 120
    while not all("iteration 30" in out for out in written("out")):
        assert all(process.poll() is None for process in launched), written("err")
        assert time.monotonic() < deadline, written("err")
        time.sleep(0.05)
    hosts[0].ip("link", "set", hosts[0].name, "down")
    statuses = [process.wait(timeout=120) for process in launched]

    # Now and then gloo aborts a process that ends while it waits for another.
    assert all(status in (1, 128 + signal.SIGABRT) for status in statuses), (statuses, written("err"))
    for number, (out, err) in enumerate(zip(written("out"), written("err"), strict=True)):
        assert "done" not in out
        assert "[camshaft] The ranks of this host waited in vain for those of another" in err
        assert f"[camshaft] Rank {number} was the first to fail" in err
        assert "Timed out waiting 3000ms" in err

    hosts[0].ip("link", "set", hosts[0].name, "up")
    launched = launch_on_each()
    statuses = [process.wait(timeout=120) for process in launched]
    assert statuses == [0, 0], written("err")
    for rank, out in enumerate(written("out")):
        first, *_, last = [line for line in out.splitlines() if "after" in line]
        begun = int(first.removeprefix(f"[rank {rank}] begins after "))
        assert begun >= 20
        assert last == f"[rank {rank}] done after {SAMPLES // 2}"
