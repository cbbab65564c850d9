"""Submitit runs a training as a job in a process of its own, here without SLURM, and puts it back when preempted."""

from pathlib import Path

import pytest

submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install submitit")

from tests.together.submitit_program import Training  # noqa: E402


@pytest.fixture
def executor(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    return executor


def test_a_preempted_job_goes_on_from_its_checkpoint_to_the_same_bits(executor, tmp_path):
    preempted = executor.submit(Training(), tmp_path / "preempted", preempted_at=5)
    whole = executor.submit(Training(), tmp_path / "whole")
    iterations, weights = preempted.result()
    assert iterations == list(range(6, 13))  # those of the second process
    assert (list(range(1, 13)), weights) == whole.result()
    assert "Caught signal SIGUSR2" in preempted.stderr()
