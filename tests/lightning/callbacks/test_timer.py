"""The time of training, and its end when that is over."""

import logging
from datetime import timedelta

import pytest

from camshaft.contrib.lightning.callbacks import LambdaCallback, Timer
from camshaft.contrib.lightning.callbacks.timer import Interval
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("01:02:03:04", 93784),
        (timedelta(minutes=2), 120),
        ({"weeks": 1, "seconds": 1}, 604801),
        (None, None),
    ],
    ids=["a string", "a timedelta", "a dict", "none"],
)
def test_a_limit_can_be_given_in_several_forms(duration, seconds):
    assert Timer(duration).time_remaining() == seconds


def test_a_time_of_another_form_is_refused():
    with pytest.raises(MisconfigurationException, match=r"DD:HH:MM:SS.*not '12 hours'"):
        Timer("12 hours")
    with pytest.raises(MisconfigurationException, match="'step' or 'epoch', not 'batch'"):
        Timer("00:12:00:00", interval="batch")


def test_it_measures_each_stage(fit, model_class, batches):
    timer = Timer()
    assert (timer.start_time("train"), timer.end_time("train"), timer.time_elapsed("train")) == (None, None, 0)
    trainer = fit(model_class(), timer, max_epochs=1)
    trainer.test(dataloaders=batches, verbose=False)
    for stage in ("train", "validate", "test"):
        elapsed = timer.end_time(stage) - timer.start_time(stage)
        assert elapsed > 0
        assert timer.time_elapsed(stage) == elapsed
    assert timer.time_elapsed("predict") == 0


def test_training_ends_with_the_batch_after_which_the_time_is_over(fit, model_class):
    timer = Timer("00:01:00:00")

    def an_hour_passes(trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            timer._offset = 3600.0

    trainer = fit(model_class(), LambdaCallback(on_train_batch_end=an_hour_passes), timer, max_epochs=5)
    assert trainer.global_step == 2


def test_by_epochs_training_ends_with_the_epoch(fit, model_class):
    timer = Timer("00:01:00:00", interval=Interval.epoch)

    def an_hour_passes(trainer, module, outputs, batch, batch_idx):
        timer._offset = 3600.0

    trainer = fit(model_class(), LambdaCallback(on_train_batch_end=an_hour_passes), timer, max_epochs=5)
    assert trainer.global_step == 3


def test_the_time_of_a_resumed_run_counts_on(fit, model_class, tmp_path):
    first = Timer()
    first._offset = 3000.0
    fit(model_class(), first, max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    second = Timer("00:00:40:00")
    trainer = fit(model_class(), second, max_epochs=5, ckpt_path=tmp_path / "last.ckpt")
    assert second.time_elapsed() > 3000
    assert (trainer.current_epoch, trainer.global_step) == (1, 3)  # where it was


def test_when_the_time_is_over_it_says_so(fit, model_class, caplog):
    with caplog.at_level(logging.INFO):
        fit(model_class(), Timer("00:00:00:00"))
        fit(model_class(), Timer("00:00:00:00", verbose=False))
    assert sum("The time limit is reached" in record.message for record in caplog.records) == 1
