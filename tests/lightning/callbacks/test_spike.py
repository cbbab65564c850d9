"""A loss that jumps ends training."""

import json

import pytest
import torch

from camshaft.contrib.lightning.callbacks import SpikeDetection
from camshaft.contrib.lightning.callbacks.spike import TrainingSpikeException


def first_spike(detection, values):
    """The index of the first value that is a spike, or None."""
    for index, value in enumerate(values):
        if index >= detection.warmup and detection._is_spike(value):
            return index
        detection._update_stats(value)
    return None


@pytest.mark.parametrize(
    ("options", "values", "spike"),
    [
        ({}, [1, 1.1, 0.9, 4.0], 3),
        ({}, [1, 1.1, 0.9, 2.5], None),
        ({"rtol": 1.0}, [1, 1, 2.5], 2),
        ({"rtol": None, "atol": 3.0}, [1, 3, 4.5, 9], 3),
        ({"rtol": 1.0, "atol": 5.0}, [1, 3, 5], None),
        ({"mode": "max", "rtol": 0.5}, [1, 2, 3, 0.5], 3),
        ({}, [1, float("nan")], 1),
        ({"warmup": 3}, [1, 9, 9, 1], None),
        ({"window": 1, "rtol": 1.0}, [100, 1, 3], 2),
    ],
    ids=["far from the mean", "near it", "rtol", "atol", "both", "max", "NaN", "warmup", "window"],
)
def test_what_a_spike_is(options, values, spike):
    assert first_spike(SpikeDetection(**options), [float(value) for value in values]) == spike


def test_a_spike_ends_training_and_leaves_the_numbers_of_the_batches(fit, model_class, tmp_path):
    class Jumps(model_class):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * 1e4 if batch_idx == 2 else loss

    with pytest.raises(TrainingSpikeException, match="The loss of batch 2 is a spike"):
        fit(Jumps(), SpikeDetection())
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [1, 2]


def test_what_it_knows_goes_on_when_a_run_is_resumed():
    before, after = SpikeDetection(rtol=1.0), SpikeDetection()
    for value in (1.0, 2.0):
        before._update_stats(value)
    after.load_state_dict(before.state_dict())
    assert (after.rtol, after.last_val) == (1.0, 2.0)
    assert after._is_spike(3.1)
    assert not after._is_spike(2.9)


def test_a_step_without_a_loss_is_an_error(fit, model_class):
    class Nothing(model_class):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(TypeError, match="a training_step that returns a loss"):
        fit(Nothing(), SpikeDetection())


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'min' or 'max', not 'auto'"):
        SpikeDetection(mode="auto")


def test_a_loss_that_may_be_infinite_is_left_out_of_the_mean(fit, model_class):
    class Overflows(model_class):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + torch.inf if batch_idx == 1 else loss

    detection = SpikeDetection(finite_only=False, rtol=1e9)
    fit(Overflows(), detection, max_epochs=1, limit_train_batches=2)
    assert len(detection._recent) == 1
