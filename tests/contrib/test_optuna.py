"""A search for hyperparameters over engines, with Optuna itself."""

import pytest
import torch
from torch import nn

from camshaft.engine import Engine, Events
from camshaft.handlers import Evaluate, Metrics, OptimizerStep

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install optuna")

from ignite.metrics import Average  # noqa: E402

from camshaft.contrib.optuna import OptunaPruning, sweep  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.WARNING)
DATA = [torch.ones(4, 1)]


def build(trial):
    """A model that learns the faster, the larger the learning rate."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    rate = trial.suggest_float("learning_rate", 1e-4, 0.2, log=True)
    engine = Engine(lambda engine, batch: (model(batch) - 3).square().mean())
    return engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=rate)))


def study_of(*rates, **options):
    study = optuna.create_study(**options)
    for rate in rates:
        study.enqueue_trial({"learning_rate": rate})
    return study


def test_the_best_trial_is_found():
    study = sweep(build, DATA, monitor="loss", trials=3, study=study_of(1e-4, 0.1, 1e-3), max_epochs=3)
    assert study.best_params == {"learning_rate": 0.1}
    assert len(study.trials) == 3


def test_without_a_study_one_is_made_in_the_direction_of_the_monitor():
    def accuracy(trial):
        return Engine(lambda engine, batch: {"accuracy": trial.suggest_float("x", 0, 1)})

    assert sweep(accuracy, DATA, monitor="accuracy", trials=2).direction.name == "MAXIMIZE"
    assert sweep(build, DATA, monitor="loss", trials=1).direction.name == "MINIMIZE"


def test_every_epoch_is_reported():
    study = sweep(build, DATA, monitor="loss", trials=1, study=study_of(0.1), max_epochs=4)
    assert list(study.trials[0].intermediate_values) == [1, 2, 3, 4]
    assert study.best_value == min(study.trials[0].intermediate_values.values())


def test_a_trial_that_lags_behind_is_pruned():
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=1)
    study = sweep(build, DATA, monitor="loss", trials=2, study=study_of(0.1, 1e-4, pruner=pruner), max_epochs=10)
    good, lagging = study.trials
    assert (good.state.name, lagging.state.name) == ("COMPLETE", "PRUNED")
    assert (len(good.intermediate_values), len(lagging.intermediate_values)) == (10, 2)


def test_a_metric_of_validation_is_monitored_as_often_as_it_is_made():
    def with_validation(trial):
        model = nn.Linear(1, 1)
        evaluator = Engine(lambda engine, batch: model(batch).mean()).attach(Metrics(output=Average()))
        trial.suggest_float("learning_rate", 0.1, 0.2)
        every = Events.EPOCH_COMPLETED(every=2)
        return Engine(lambda engine, batch: None).attach(Evaluate(evaluator, DATA, at=every))

    study = sweep(
        with_validation, DATA, monitor="val_output", trials=1, at=Events.EPOCH_COMPLETED(every=2), max_epochs=6
    )
    assert list(study.trials[0].intermediate_values) == [2, 4, 6]


def test_data_may_depend_on_the_trial():
    sizes = []

    def data(trial):
        size = trial.suggest_int("batch_size", 2, 8)
        sizes.append(size)
        return torch.ones(8, 1).split(size)

    study = sweep(build, data, monitor="loss", trials=3)
    assert [trial.params["batch_size"] for trial in study.trials] == sizes


def test_the_study_can_be_kept_in_a_database_and_gone_on_with(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    sweep(build, DATA, monitor="loss", trials=2, study=study_of(0.1, 0.01, storage=storage, study_name="one"))
    again = optuna.load_study(study_name="one", storage=storage)
    assert len(sweep(build, DATA, monitor="loss", trials=1, study=again).trials) == 3


def test_a_study_of_the_other_direction_is_refused():
    with pytest.raises(ValueError, match="create it with direction='minimize'"):
        sweep(build, DATA, monitor="loss", trials=1, study=study_of(direction="maximize"))


def test_a_run_that_made_no_value_is_an_error():
    with pytest.raises(ValueError, match=r"'missing'"):
        sweep(build, DATA, monitor="missing", trials=1, max_epochs=2)


def test_pruning_alone_ends_a_run():
    pruning = OptunaPruning(optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=2)).ask(), "loss")
    engine = Engine(lambda engine, batch: float(engine.state.epoch)).attach(pruning)
    assert engine.run([0], max_epochs=9).epoch == 3
    assert pruning.pruned
