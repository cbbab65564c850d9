"""Averages of weights: what they are, who sees them, and what a checkpoint keeps."""

import os
import signal

import pytest
import torch

from camshaft.contrib.lightning.callbacks import (
    EMAWeightAveraging,
    LambdaCallback,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from camshaft.contrib.lightning.strategies import FSDPStrategy
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


@pytest.fixture
def history():
    """The weights of the head after each step, and a callback that collects them."""
    weights = []
    collect = LambdaCallback(
        on_train_batch_end=lambda trainer, module, *_: weights.append(module.head.weight.detach().clone())
    )
    return weights, collect


def test_the_module_ends_with_the_mean_of_the_weights_after_each_step(fit, model_class, history):
    weights, collect = history
    fit(model := model_class(), collect, WeightAveraging())
    torch.testing.assert_close(model.head.weight, torch.stack(weights).mean(0))


def test_an_exponential_average_starts_from_the_weights_after_the_first_step(fit, model_class, history):
    weights, collect = history
    fit(model := model_class(), collect, EMAWeightAveraging(decay=0.5), max_epochs=1)
    one, two, three = weights
    torch.testing.assert_close(model.head.weight, 0.25 * one + 0.25 * two + 0.5 * three)


def test_updates_can_begin_later_and_come_more_seldom(fit, model_class, history):
    weights, collect = history
    averaging = EMAWeightAveraging(decay=0.5, update_every_n_steps=2, update_starting_at_step=3)
    fit(model := model_class(), collect, averaging)  # steps are counted from 0: 4, 6 and 8
    torch.testing.assert_close(model.head.weight, 0.25 * weights[4] + 0.25 * weights[6] + 0.5 * weights[8])


def test_a_subclass_says_when_there_are_updates(fit, model_class, history):
    class EachEpoch(WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return epoch_idx is not None

    weights, collect = history
    fit(model := model_class(), collect, EachEpoch())
    torch.testing.assert_close(model.head.weight, torch.stack(weights[2::3]).mean(0))


def test_accumulated_batches_make_one_update(fit, model_class, history):
    weights, collect = history
    fit(model := model_class(), collect, WeightAveraging(), accumulate_grad_batches=3)
    torch.testing.assert_close(model.head.weight, torch.stack(weights[2::3]).mean(0))


def test_validation_sees_the_averages_and_training_goes_on_with_the_weights(fit, model_class, history):
    weights, collect = history
    seen = []
    look = LambdaCallback(
        on_validation_batch_end=lambda trainer, module, *_: seen.append(module.head.weight.detach().clone())
    )
    fit(model_class(), collect, look, WeightAveraging(), max_epochs=2)
    averaged = weights.copy()
    torch.testing.assert_close(seen[0], torch.stack(averaged[:3]).mean(0))
    torch.testing.assert_close(seen[1], torch.stack(averaged).mean(0))
    weights.clear()
    fit(model_class(), collect, max_epochs=2)
    assert all(map(torch.equal, weights, averaged))


def test_buffers_are_averaged_unless_they_are_not_to_be(fit, model_class):
    fit(plain := model_class(batch_norm=True), max_epochs=1)
    fit(averaged := model_class(batch_norm=True), WeightAveraging(), max_epochs=1)
    assert not torch.equal(averaged.norm.running_mean, plain.norm.running_mean)


def test_an_exception_in_validation_leaves_the_weights(fit, model_class, history):
    class Fails(model_class):
        def validation_step(self, batch, batch_idx):
            raise ZeroDivisionError

    weights, collect = history
    with pytest.raises(ZeroDivisionError):
        fit(model := Fails(), collect, WeightAveraging())
    assert torch.equal(model.head.weight, weights[-1])


def test_a_checkpoint_has_the_averages_as_weights_and_the_weights_beside_them(fit, model_class, history, tmp_path):
    weights, collect = history
    fit(model_class(), collect, EMAWeightAveraging(decay=0.5), ModelCheckpoint(tmp_path, filename="one"), max_epochs=1)
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    one, two, three = weights
    torch.testing.assert_close(content["state_dict"]["head.weight"], 0.25 * one + 0.25 * two + 0.5 * three)
    assert torch.equal(content["current_model_state"]["head.weight"], three)
    assert content["averaging_state"] == {"n_averaged": torch.tensor(3)}
    assert content["callbacks"]["EMAWeightAveraging"]["latest_update_step"] == 3


def test_a_run_that_is_resumed_ends_in_the_same_bits(fit, model_class, tmp_path):
    def averaging():
        return EMAWeightAveraging(decay=0.5, update_starting_at_epoch=0)

    fit(model_class(batch_norm=True), averaging(), ModelCheckpoint(tmp_path, filename="two"), max_epochs=2)
    fit(resumed := model_class(batch_norm=True), averaging(), max_epochs=4, ckpt_path=tmp_path / "two.ckpt")
    fit(whole := model_class(batch_norm=True), averaging(), max_epochs=4)
    assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))


@pytest.mark.parametrize(
    "averaging", [lambda: EMAWeightAveraging(decay=0.5), lambda: StochasticWeightAveraging(0.01, 2)], ids=["ema", "swa"]
)
def test_a_run_that_is_preempted_goes_on_from_the_weights_and_not_from_the_averages(
    fit, model_class, tmp_path, averaging
):
    def preempt(trainer, module, *_):
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(model_class(), averaging(), ModelCheckpoint(tmp_path), LambdaCallback(on_train_batch_end=preempt))
    fit(resumed := model_class(), averaging(), ckpt_path=tmp_path / "preempted.ckpt")
    fit(whole := model_class(), averaging())
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))


@pytest.mark.parametrize(
    "averaging", [lambda: EMAWeightAveraging(decay=0.5), lambda: StochasticWeightAveraging(0.01, 2)], ids=["ema", "swa"]
)
def test_with_another_trainer_it_starts_afresh(fit, model_class, averaging):
    callback = averaging()
    models = model_class(), model_class()
    for model in models:
        fit(model, callback)
    assert all(map(torch.equal, *(model.parameters() for model in models)))


def test_a_model_that_is_sharded_is_refused(fit, model_class):
    with pytest.raises(MisconfigurationException, match="WeightAveraging cannot average a model that is sharded"):
        fit(model_class(), WeightAveraging(), strategy=FSDPStrategy())


def test_a_checkpoint_without_averages_starts_them(fit, model_class, tmp_path):
    fit(model_class(), ModelCheckpoint(tmp_path, filename="plain"), max_epochs=1)
    with pytest.warns(UserWarning, match="saved without WeightAveraging"):
        fit(model_class(), WeightAveraging(), max_epochs=2, ckpt_path=tmp_path / "plain.ckpt")


def test_outside_of_fit_there_are_no_averages_and_nothing_is_exchanged(trainer_with, model_class, batches, tmp_path):
    trainer = trainer_with(WeightAveraging())
    model = model_class([1])
    before = model.head.weight.detach().clone()
    trainer.validate(model, batches, verbose=False)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    assert torch.equal(model.head.weight, before)
    assert "averaging_state" not in torch.load(tmp_path / "plain.ckpt", weights_only=True)
