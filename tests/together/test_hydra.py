"""Hydra's and OmegaConf's configurations: handlers made from them, a real command with overrides, and what is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from camshaft.engine import Engine
from camshaft.handlers import AMP, GradientClipping, RunRecord
from camshaft.handlers.preemption import PREEMPTED

omegaconf = pytest.importorskip("omegaconf", reason="Hydra is not installed: pip install hydra-core")
hydra = pytest.importorskip("hydra", reason="Hydra is not installed: pip install hydra-core")

PROGRAM = Path(__file__).parent / "hydra_program.py"


def command(folder, *arguments):
    """Start the program with these arguments in ``folder``."""
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def record_in(directory):
    return json.loads((directory / "run.json").read_text())


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same command twice, of which the first is told to end, and its record after each."""
    folder = tmp_path_factory.mktemp("run")
    arguments = "hydra.run.dir=run", "lr=0.25", "handlers.clipping.max_norm=0.5", "preempted_at=8"
    outcomes = []
    for _ in range(2):
        ended = command(folder, *arguments)
        outcomes.append((ended.returncode, ended.stderr, record_in(folder / "run")))
    return outcomes


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    ended = command(folder, "--multirun", "hydra.sweep.dir=sweep", "handlers.accumulation.micro_batches=1,3")
    assert ended.returncode == 0, ended.stderr
    return [record_in(folder / "sweep" / number) for number in "01"]


def test_a_command_with_overrides_trains_with_handlers_of_the_configuration(twice):
    _, _, record = twice[1]
    assert "GradientClipping(max_norm=0.5)" in record["attached"]
    assert "GradientAccumulation(micro_batches=2)" in record["attached"]
    assert record["ended"] | {"at": None} == {"status": "finished", "at": None, "epoch": 2, "iteration": 12}


def test_a_command_that_was_preempted_leaves_with_its_status_and_goes_on_when_given_again(twice):
    (first, error, record), (second, _, _) = twice
    assert (first, second) == (PREEMPTED, 0), error
    assert record["ended"]["iteration"] == 8


def test_the_record_holds_the_configuration_with_its_references_resolved(twice):
    configuration = twice[1][2]["configuration"]
    assert configuration["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.25}
    assert configuration["handlers"]["clipping"]["max_norm"] == 0.5


def test_a_sweep_has_a_run_of_its_own_for_each_value(sweep):
    sizes = [record["configuration"]["handlers"]["accumulation"]["micro_batches"] for record in sweep]
    assert sizes == [1, 3]
    assert [record["ended"]["status"] for record in sweep] == ["finished", "finished"]


def test_a_list_of_handlers_is_instantiated():
    listed = omegaconf.OmegaConf.create(
        [{"_target_": "camshaft.AMP", "precision": "bf16"}, {"_target_": "camshaft.GradientClipping", "max_norm": 1.0}]
    )
    handlers = list(hydra.utils.instantiate(listed))
    assert [type(handler) for handler in handlers] == [AMP, GradientClipping]
    assert Engine(lambda engine, batch: torch.ones(1)).attach(*handlers).handlers == handlers


def test_a_record_takes_a_configuration_of_omegaconf(tmp_path):
    configuration = omegaconf.OmegaConf.create({"widths": [8, "${last}"], "last": 4, "later": "???"})
    Engine(lambda engine, batch: None).attach(RunRecord(tmp_path, {"model": configuration})).run([0])
    assert record_in(tmp_path)["configuration"] == {"model": {"widths": [8, 4], "last": 4, "later": "???"}}
