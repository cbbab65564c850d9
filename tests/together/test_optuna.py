"""Optuna beside what tests/contrib/test_optuna.py shows: a study goes on in another process after a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install optuna")

PROGRAM = """
import os, sys
import optuna
import torch
from camshaft import Checkpoint, Engine, Events, OptimizerStep
from camshaft.contrib.optuna import sweep

optuna.logging.set_verbosity(optuna.logging.ERROR)
folder, kill_in_trial = sys.argv[1], int(sys.argv[2])


def build(trial):
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("learning_rate", 1e-4, 0.2, log=True))
    engine = Engine(lambda engine, batch: (model(batch) - 3).square().mean())
    engine.attach(OptimizerStep(optimizer), Checkpoint(f"{folder}/{trial.number}", model=model, optimizer=optimizer))

    @engine.on(Events.ITERATION_COMPLETED(once=1))
    def kill(engine):
        if trial.number == kill_in_trial:
            os._exit(9)

    return engine


study = optuna.create_study(
    study_name="rates", storage=f"sqlite:///{folder}/study.db", load_if_exists=True, direction="minimize",
    sampler=optuna.samplers.TPESampler(seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=1),
)
if not study.trials:
    for rate in (0.1, 1e-4, 0.05):
        study.enqueue_trial({"learning_rate": rate})
done = sum(trial.state.is_finished() for trial in study.trials)
sweep(build, [torch.ones(4, 1)], monitor="loss", trials=4 - done, study=study, max_epochs=6)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Of a process that is killed in its third trial, and of another that goes on."""
    folder = tmp_path_factory.mktemp("study")
    program = folder / "search.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    for kill_in_trial, status in ((2, 9), (-1, 0)):
        command = [sys.executable, str(program), str(folder), str(kill_in_trial)]
        ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=280)
        assert ended.returncode == status, ended.stderr
    return optuna.load_study(study_name="rates", storage=f"sqlite:///{folder}/study.db")


def test_trials_that_were_finished_are_not_run_again(study):
    assert [trial.params["learning_rate"] for trial in study.trials[:2]] == [0.1, 1e-4]
    assert [trial.state.name for trial in study.trials[:2]] == ["COMPLETE", "PRUNED"]


def test_the_trial_under_way_is_left_as_running_and_others_take_its_place(study):
    assert study.trials[2].state.name == "RUNNING"
    assert sum(trial.state.is_finished() for trial in study.trials) == 4


def test_the_best_is_the_best_of_both_processes(study):
    assert study.best_params == {"learning_rate": 0.1}
