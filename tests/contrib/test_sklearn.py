"""Estimators of scikit-learn over engines, by scikit-learn's own checks and in its pipelines and searches."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data, parametrize_with_checks
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, StepLR

from camshaft.contrib.sklearn import EngineClassifier, EngineRegressor
from camshaft.engine import Events, Phase
from camshaft.handlers import Checkpoint, EarlyStopping, Evaluate, GradientClipping, Handler, LRScheduler, On

X, Y = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)


class InFloat64(nn.Linear):
    """For checks that compare to the seventh digit what is predicted for batches of different sizes."""

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features, dtype=torch.float64)


class Network(nn.Sequential):
    def __init__(self, in_features, out_features, width=8, dropout=0.0):
        layers = nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, out_features)
        super().__init__(*layers)


def classifier(**parameters):
    return EngineClassifier(**{"lr": 0.1, "batch_size": 32, "max_epochs": 3, "random_state": 0} | parameters)


def weights_of(estimator):
    return torch.cat([parameter.detach().flatten() for parameter in estimator.module_.parameters()])


# ------------------------------------------------------------------------------------------ scikit-learn's own checks

FOR_CHECKS = {"module": InFloat64, "lr": 0.1, "batch_size": 16, "random_state": 0}
# check_array_api_input, and what needs pandas, skip themselves where those are not there.
CANNOT_HOLD = {
    "check_sample_weight_equivalence_on_dense_data": "a sample given twice is in other batches than one of weight 2"
}


@parametrize_with_checks(
    [EngineClassifier(**FOR_CHECKS), EngineRegressor(**FOR_CHECKS)],
    expected_failed_checks=lambda estimator: CANNOT_HOLD,
)
def test_scikit_learns_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", [EngineClassifier, EngineRegressor])
def test_in_one_batch_a_sample_of_weight_2_is_the_same_as_one_given_twice(kind):
    check_sample_weight_equivalence_on_dense_data(kind.__name__, kind(**FOR_CHECKS | {"batch_size": 1000}))


# --------------------------------------------------------------------------------------------------- what fit() makes


def test_fit_runs_an_engine_with_the_handlers_that_the_parameters_ask_for():
    fitted = classifier(validation=0.2, precision="bf16", verbose=True).fit(X, Y)
    kinds = [type(handler).__name__ for handler in fitted.engine_.handlers]
    assert kinds == ["OptimizerStep", "Metrics", "Device", "AMP", "Evaluate", "ProgressBar"]
    assert fitted.engine_.state.epoch == 3
    assert fitted.engine_.state.optimizer_step == 3 * 4


def test_a_network_learns():
    fitted = classifier(module=Network, lr=0.05, max_epochs=10).fit(X, Y)
    assert fitted.score(X, Y) > 0.9
    assert fitted.history_[-1]["loss"] < fitted.history_[0]["loss"]


def test_what_the_module_the_criterion_and_the_optimizer_are_made_from_are_parameters():
    fitted = classifier(
        module=Network, module__width=5, criterion__label_smoothing=0.1, optimizer__weight_decay=0.5, max_epochs=1
    ).fit(X, Y)
    assert fitted.module_[0].out_features == 5
    assert fitted.optimizer_.param_groups[0]["weight_decay"] == 0.5
    smoothed, plain = fitted.history_[0]["loss"], classifier(module=Network, max_epochs=1).fit(X, Y).history_[0]["loss"]
    assert smoothed != plain


def test_a_function_may_make_the_module_and_another_be_the_criterion():
    fitted = classifier(
        module=lambda width: Network(4, 3, width), module__width=2, criterion=F.cross_entropy, max_epochs=1
    ).fit(X, Y)
    assert fitted.module_[0].out_features == 2
    same = classifier(module=Network, module__width=2, max_epochs=1).fit(X, Y)
    assert torch.equal(weights_of(fitted), weights_of(same))


def test_of_a_module_that_is_made_already_a_copy_is_trained():
    pretrained = nn.Linear(4, 3)
    before = pretrained.weight.clone()
    fitted = classifier(module=pretrained, lr=1e-3, max_epochs=1).fit(X, Y)
    assert torch.equal(pretrained.weight, before)
    torch.testing.assert_close(fitted.module_.weight, before, atol=0.01, rtol=0)


def test_images_are_taken_as_they_are():
    images = np.random.default_rng(0).random((20, 1, 4, 4))
    fitted = classifier(module=lambda: nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()), max_epochs=1)
    assert fitted.fit(images, np.arange(20) % 2).predict_proba(images).shape == (20, 2)
    assert fitted.n_features_in_ == 1


def test_tensors_are_taken_as_arrays_are():
    of_tensors = classifier(max_epochs=1).fit(torch.tensor(X), torch.tensor(Y), torch.ones(len(Y)))
    of_arrays = classifier(max_epochs=1).fit(X, Y, np.ones(len(Y)))
    assert torch.equal(weights_of(of_tensors), weights_of(of_arrays))
    assert (of_tensors.predict(torch.tensor(X)) == of_arrays.predict(X)).all()


def test_classes_may_have_names():
    names = np.array(["setosa", "versicolor", "virginica"])
    fitted = classifier(max_epochs=1).fit(X, names[Y])
    assert fitted.classes_.tolist() == names.tolist()
    assert set(fitted.predict(X)) <= set(names)


def test_the_names_of_a_data_frames_columns_are_kept():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    fitted = classifier(max_epochs=1).fit(pandas.DataFrame(X, columns=list("abcd")), Y)
    assert fitted.feature_names_in_.tolist() == list("abcd")


def test_a_regressor_has_a_prediction_for_each_target():
    inputs, targets = make_regression(64, n_features=3, n_targets=2, random_state=0)
    fitted = EngineRegressor(batch_size=16, max_epochs=2, random_state=0).fit(inputs, targets)
    assert fitted.predict(inputs).shape == (64, 2)
    assert fitted.fit(inputs, targets[:, 0]).predict(inputs).shape == (64,)


# --------------------------------------------------------------------------------------------------- handlers


def test_each_fit_attaches_copies_of_the_handlers():
    clipping = GradientClipping(1.0)
    engines = [estimator.fit(X, Y).engine_ for estimator in [classifier(handlers=[clipping])] for _ in range(2)]
    attached = [handler for engine in engines for handler in engine.handlers if isinstance(handler, GradientClipping)]
    assert len({id(handler) for handler in (clipping, *attached)}) == 3


def test_a_function_makes_a_handler_of_what_fit_has_made():
    estimator = classifier(handlers=[lambda made: LRScheduler(StepLR(made.optimizer_, 1, gamma=0.5))])
    assert estimator.fit(X, Y).optimizer_.param_groups[0]["lr"] == pytest.approx(0.1 / 2**3)


def test_held_out_samples_are_measured_and_can_stop_the_training():
    estimator = classifier(validation=0.2, handlers=[EarlyStopping("val_loss", patience=1, min_delta=100.0)])
    history = estimator.set_params(max_epochs=9).fit(X, Y).history_
    assert len(history) == 2
    assert history[0].keys() == {"loss", "val_loss", "val_accuracy"}
    assert history[-1]["val_accuracy"] > 0.5


def test_a_splitter_says_what_is_held_out():
    held_out = np.where(np.arange(len(X)) % 10 == 0, 0, -1)
    fitted = classifier(validation=PredefinedSplit(held_out), max_epochs=1).fit(X, Y)
    evaluate = next(handler for handler in fitted.engine_.handlers if isinstance(handler, Evaluate))
    assert torch.equal(evaluate.data.whole[0], torch.tensor(X[::10], dtype=torch.float32))


class Killed(Handler):
    listens = (On(Events.ITERATION_COMPLETED(once=7), Phase.USER, "kill"),)

    def kill(self, engine):
        raise KeyboardInterrupt


def test_a_fit_that_was_killed_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path):
    def checkpointed(directory, *handlers):
        keep = lambda made: Checkpoint(directory, model=made.module_, optimizer=made.optimizer_)  # noqa: E731
        return classifier(module=Network, module__dropout=0.5, handlers=[keep, *handlers])

    whole = checkpointed(tmp_path / "whole").fit(X, Y)
    interrupted = checkpointed(tmp_path / "killed", Killed())
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(X, Y)
    again = checkpointed(tmp_path / "killed").fit(X, Y)
    assert torch.equal(weights_of(again), weights_of(whole))


# --------------------------------------------------------------------------------------------------- random numbers


def test_one_random_state_gives_one_result():
    one, same = (classifier(module=Network, module__dropout=0.5).fit(X, Y) for _ in range(2))
    other = classifier(module=Network, module__dropout=0.5, random_state=1).fit(X, Y)
    assert torch.equal(weights_of(one), weights_of(same))
    assert not torch.equal(weights_of(one), weights_of(other))


def test_the_global_generators_are_left_as_they_were():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global one is meant
    classifier().fit(X, Y).predict(X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


# --------------------------------------------------------------------------------------------------- going on


def test_partial_fit_trains_one_epoch_more():
    estimator = classifier()
    for _ in range(3):
        estimator.partial_fit(X, Y, classes=[0, 1, 2, 3])
    assert len(estimator.history_) == 3
    assert estimator.predict_proba(X).shape == (len(X), 4)


def test_the_first_partial_fit_needs_all_classes():
    with pytest.raises(ValueError, match="needs all classes"):
        classifier().partial_fit(X, Y)


def test_with_warm_start_a_further_fit_goes_on():
    estimator = classifier(warm_start=True).fit(X, Y)
    before = weights_of(estimator)
    module, engine = estimator.module_, estimator.engine_
    estimator.fit(X, Y)
    assert (estimator.module_, estimator.engine_, len(estimator.history_)) == (module, engine, 6)
    assert not torch.equal(weights_of(estimator), before)


def test_with_warm_start_a_fit_that_was_stopped_early_is_followed_by_a_whole_run():
    stopping = EarlyStopping("loss", patience=1, min_delta=100.0)
    estimator = classifier(warm_start=True, max_epochs=9, handlers=[stopping])
    assert [len(estimator.fit(X, Y).history_) for _ in range(2)] == [2, 4]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda estimator: pickle.loads(pickle.dumps(estimator))], ids=["deepcopy", "pickle"]
)
def test_a_copy_predicts_the_same_and_goes_on_the_same(copied):
    estimator = classifier(module=Network, warm_start=True, handlers=[schedule]).fit(X, Y)
    again = copied(estimator)
    assert (again.predict_proba(X) == estimator.predict_proba(X)).all()
    assert again.optimizer_.param_groups[0]["lr"] == estimator.optimizer_.param_groups[0]["lr"] == 0.1 / 4
    assert torch.equal(weights_of(again.fit(X, Y)), weights_of(estimator.fit(X, Y)))
    assert again.optimizer_.param_groups[0]["lr"] == pytest.approx(0.1 / 7)


def schedule(made):  # not a lambda, for pickle's sake
    return LRScheduler(LambdaLR(made.optimizer_, inverse))


def inverse(epochs):
    return 1 / (epochs + 1)


# --------------------------------------------------------------------------------------------------- in scikit-learn


def test_a_search_goes_over_parameters_of_the_module_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), classifier(module=Network, max_epochs=1))
    grid = {"engineclassifier__module__width": [1, 16], "engineclassifier__lr": [1e-6, 0.1]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, Y)
    assert search.best_params_ == {"engineclassifier__lr": 0.1, "engineclassifier__module__width": 16}


def test_cross_validation_trains_anew_for_each_fold():
    estimator = classifier()
    assert cross_val_score(estimator, X, Y, cv=2).min() > 0.6
    assert not hasattr(estimator, "engine_")


def test_a_clone_has_the_parameters_and_nothing_that_was_trained():
    fitted = classifier(module=Network, module__width=5, optimizer__weight_decay=0.5).fit(X, Y)
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    assert not hasattr(fresh, "module_")


# --------------------------------------------------------------------------------------------------- mistakes


def test_a_parameter_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match=r"EngineClassifier has no parameter 'max_epoch'. It has module, .*max_epochs"):
        EngineClassifier(max_epoch=3)
    with pytest.raises(ValueError, match="Invalid parameter 'max_epoch'"):
        classifier().set_params(max_epoch=3)


def test_outputs_that_do_not_fit_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"have the shape \(32, 2\), but there are 3 classes"):
        classifier(module__out_features=2).fit(X, Y)


def test_outputs_that_do_not_fit_the_targets_are_refused():
    with pytest.raises(ValueError, match=r"have the shape \(128, 2\), but the targets \(128,\)"):
        EngineRegressor(module__out_features=2).fit(X, X[:, 0])


def test_arguments_for_a_module_that_is_made_already_are_refused():
    with pytest.raises(ValueError, match="module__width would be given to what makes the module, but module is a"):
        classifier(module=Network(4, 3), module__width=3).fit(X, Y)


def test_weights_for_a_criterion_that_has_one_loss_for_all_samples_are_refused():
    with pytest.raises(ValueError, match="takes no reduction='none'"):
        classifier(criterion=lambda outputs, targets: outputs.mean()).fit(X, Y, np.ones(len(Y)))


def test_a_share_to_hold_out_is_between_0_and_1():
    with pytest.raises(ValueError, match="between 0 and 1, or a splitter of scikit-learn, not 2"):
        classifier(validation=2).fit(X, Y)
