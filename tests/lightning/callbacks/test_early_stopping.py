"""When training is ended, why, and what a checkpoint keeps of it."""

import logging

import pytest
import torch

from camshaft.contrib.lightning.callbacks import EarlyStopping
from camshaft.contrib.lightning.callbacks.early_stopping import EarlyStoppingReason
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

NAN = float("nan")


def reasons(stopping, values):
    """What a stopping says to values: the number of those it has seen in the end, and why it ended."""
    for number, value in enumerate(values, start=1):
        if stopping._evaluate_stopping_criteria(torch.tensor(float(value)))[0]:
            return number, stopping.stopping_reason.name
    return len(values), stopping.stopping_reason.name


@pytest.mark.parametrize(
    ("options", "values", "ends"),
    [
        ({"patience": 2}, [3, 2, 2, 2, 1], (4, "PATIENCE_EXHAUSTED")),
        ({"patience": 2}, [3, 2, 2, 1, 1], (5, "NOT_STOPPED")),
        ({"patience": 2, "mode": "max"}, [1, 2, 1, 1], (4, "PATIENCE_EXHAUSTED")),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.75, 2.5, 1], (3, "PATIENCE_EXHAUSTED")),
        ({"patience": 2, "min_delta": 0.5, "mode": "max"}, [1, 1.25, 1.5], (3, "PATIENCE_EXHAUSTED")),
        ({}, [3, NAN, 1], (2, "NON_FINITE_METRIC")),
        ({"check_finite": False, "patience": 2}, [3, NAN, NAN, 1], (3, "PATIENCE_EXHAUSTED")),
        ({"check_finite": False, "patience": 2}, [NAN, 3, NAN, 2], (4, "NOT_STOPPED")),
        ({"stopping_threshold": 1.5}, [3, 2, 1, 0], (3, "STOPPING_THRESHOLD")),
        ({"divergence_threshold": 5.0}, [3, 2, 9, 0], (3, "DIVERGENCE_THRESHOLD")),
        ({"divergence_threshold": 0.5, "mode": "max"}, [1, 2, 0.25], (3, "DIVERGENCE_THRESHOLD")),
    ],
    ids=[
        "patience",
        "an improvement in time",
        "the maximum is best",
        "too small an improvement",
        "too small an improvement of a maximum",
        "NaN",
        "NaN is no improvement",
        "anything is better than nothing",
        "good enough",
        "diverged",
        "a maximum diverged",
    ],
)
def test_which_value_ends_training_and_why(options, values, ends):
    assert reasons(EarlyStopping("val_loss", **options), values) == ends


def test_training_ends_after_the_epoch_that_exhausts_the_patience(fit, model_class):
    stopping = EarlyStopping("val_loss", patience=2)
    trainer = fit(model_class([3, 2, 2, 2, 1, 1]), stopping, max_epochs=6)
    assert (trainer.current_epoch, trainer.global_step) == (4, 12)
    assert (stopping.stopped_epoch, stopping.wait_count, float(stopping.best_score)) == (3, 2, 2)
    assert stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert stopping.stopping_reason_message == ("val_loss did not improve in the last 2 checks. The best value was 2.")


def test_training_that_is_not_ended_has_no_reason(fit, model_class):
    stopping = EarlyStopping("val_loss", patience=2)
    trainer = fit(model_class([3, 2, 1]), stopping)
    assert trainer.current_epoch == 3
    assert (stopping.stopping_reason.name, stopping.stopping_reason_message) == ("NOT_STOPPED", None)


def test_min_epochs_are_trained_whole_in_any_case(fit, model_class):
    trainer = fit(model_class([3]), EarlyStopping("val_loss", patience=1), max_epochs=6, min_epochs=4)
    assert (trainer.current_epoch, trainer.global_step) == (4, 12)


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        ({"check_val_every_n_epoch": 2, "max_epochs": 10}, 4),
        ({"val_check_interval": 0.34, "max_epochs": 10}, 1),
    ],
    ids=["each second epoch", "each batch"],
)
def test_patience_counts_validations(fit, model_class, flags, epochs):
    assert fit(model_class([3]), EarlyStopping("val_loss", patience=1), **flags).current_epoch == epochs


def test_the_value_may_be_one_of_training(fit, model_class):
    trainer = fit(model_class(), EarlyStopping("train_loss", stopping_threshold=1e9), limit_val_batches=0)
    assert trainer.current_epoch == 1


def test_the_sanity_check_before_training_does_not_count(fit, model_class):
    stopping = EarlyStopping("val_loss", patience=1, check_on_train_epoch_end=False)
    assert fit(model_class([3, 2, 1]), stopping, num_sanity_val_steps=1).current_epoch == 3
    assert stopping.wait_count == 0


def test_a_value_that_is_not_there_is_an_error_that_names_those_that_are(fit, model_class):
    with pytest.raises(RuntimeError, match=r"'val_los', which nothing has logged. There is: .*'val_loss'"):
        fit(model_class([1]), EarlyStopping("val_los"))


def test_a_value_that_is_not_there_is_passed_over_when_not_strict(fit, model_class):
    assert fit(model_class([1]), EarlyStopping("val_los", strict=False)).current_epoch == 3
    with pytest.warns(RuntimeWarning, match="'val_los'"):
        fit(model_class([1]), EarlyStopping("val_los", strict=False, verbose=True), max_epochs=1)


def test_an_unknown_mode_is_refused():
    with pytest.raises(MisconfigurationException, match="EarlyStopping is 'min', 'max' or 'auto', not 'best'"):
        EarlyStopping("val_loss", mode="best")


def test_as_before_lightning_1_the_name_may_be_left_out_and_the_mode_be_concluded():
    assert EarlyStopping().monitor == "val_loss"
    assert EarlyStopping("val_acc", mode="auto").mode == "max"


def test_what_it_knows_goes_on_when_a_run_is_resumed(fit, model_class, tmp_path):
    fit(model_class([2, 3, 3, 3]), EarlyStopping("val_loss", patience=3), max_epochs=2).save_checkpoint(
        tmp_path / "last.ckpt"
    )
    stopping = EarlyStopping("val_loss", patience=3)
    trainer = fit(model_class([2, 3, 3, 3]), stopping, max_epochs=9, ckpt_path=tmp_path / "last.ckpt")
    assert (trainer.current_epoch, float(stopping.best_score)) == (4, 2)


def test_a_state_of_an_older_lightning_is_taken():
    stopping = EarlyStopping("val_loss")
    stopping.load_state_dict({"wait_count": 1, "stopped_epoch": 0, "best_score": torch.tensor(0.5), "patience": 7})
    assert (stopping.patience, stopping.wait_count, stopping.stopping_reason.name) == (7, 1, "NOT_STOPPED")


def test_when_verbose_it_tells_of_improvements_and_of_the_end(fit, model_class, caplog):
    with caplog.at_level(logging.INFO):
        fit(model_class([3, 2, 2]), EarlyStopping("val_loss", patience=1, verbose=True))
    told = [record.message for record in caplog.records if record.name.endswith("early_stopping")]
    assert told == [
        "val_loss = 3 is the best so far.",
        "val_loss = 2 is the best so far, better by 1.",
        "val_loss did not improve in the last 1 checks. The best value was 2.",
    ]
