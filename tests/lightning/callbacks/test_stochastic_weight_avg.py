"""The mean of the weights of the last epochs."""

import pytest
import torch

from camshaft.contrib.lightning.callbacks import (
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from camshaft.contrib.lightning.strategies import FSDPStrategy
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


@pytest.fixture
def watched():
    """The weights of the head at the beginning of each epoch, the rates at its end, and what collects them."""
    weights, rates = [], []
    collect = LambdaCallback(
        on_train_epoch_start=lambda trainer, module: weights.append(module.head.weight.detach().clone()),
        on_train_epoch_end=lambda trainer, module: rates.append(trainer.optimizers[0].param_groups[0]["lr"]),
    )
    return weights, rates, collect


def test_the_module_ends_with_the_mean_of_the_weights_at_the_beginning_of_the_last_epochs(fit, model_class, watched):
    weights, _, collect = watched
    averaging = StochasticWeightAveraging(0.01, swa_epoch_start=3)
    fit(model := model_class(), averaging, collect, max_epochs=6)
    torch.testing.assert_close(model.head.weight, torch.stack(weights[2:]).mean(0))
    assert averaging.n_averaged == 4


def test_a_fraction_of_the_epochs_says_where_they_begin(fit, model_class, watched):
    weights, _, collect = watched
    fit(model := model_class(), StochasticWeightAveraging(0.01, swa_epoch_start=0.5), collect, max_epochs=6)
    torch.testing.assert_close(model.head.weight, torch.stack(weights[2:]).mean(0))


def test_the_learning_rate_goes_to_its_own(fit, model_class, watched):
    _, rates, collect = watched
    averaging = StochasticWeightAveraging(0.01, 2, annealing_epochs=2, annealing_strategy="linear")
    fit(model_class(schedule=True), averaging, collect, max_epochs=4)
    assert rates == [pytest.approx(rate) for rate in (0.09, 0.05, 0.01, 0.01)]


def test_it_takes_the_place_of_a_schedule_or_brings_one(fit, model_class):
    for schedule in (True, False):
        trainer = fit(model_class(schedule=schedule), StochasticWeightAveraging(0.01, 1), max_epochs=2)
        (config,) = trainer.lr_scheduler_configs
        assert type(config.scheduler).__name__ == "SWALR"


def test_another_average_can_be_given(fit, model_class, watched):
    weights, _, collect = watched
    latest = StochasticWeightAveraging(0.01, 1, avg_fn=lambda average, weight, number: weight)
    fit(model := model_class(), latest, collect, max_epochs=3)
    assert torch.equal(model.head.weight, weights[-1])


def test_training_that_ends_early_gives_the_mean_so_far(fit, model_class, watched):
    weights, _, collect = watched
    stopping = EarlyStopping("val_loss", patience=1)
    fit(model := model_class([3, 2, 1, 1]), StochasticWeightAveraging(0.01, 2), stopping, collect, max_epochs=9)
    torch.testing.assert_close(model.head.weight, torch.stack(weights[1:4]).mean(0))


def test_training_that_ends_before_the_first_of_its_epochs_gives_the_weights(fit, model_class):
    averaging = StochasticWeightAveraging(0.01, 3)
    fit(model := model_class(), averaging, max_epochs=9, max_steps=4)
    fit(plain := model_class(), max_epochs=9, max_steps=4)
    assert torch.equal(model.head.weight, plain.head.weight)
    assert averaging.n_averaged is None


def test_batch_statistics_are_those_of_the_mean_and_nothing_else_is_changed_by_computing_them(
    fit, model_class, watched, batches
):
    weights, _, collect = watched
    trainer = fit(
        model := model_class(batch_norm=True), StochasticWeightAveraging(0.01, 2), collect, limit_val_batches=0
    )
    torch.testing.assert_close(model.head.weight, torch.stack(weights[1:]).mean(0))
    means = torch.stack([model.backbone(batch).mean(0) for batch in batches])
    torch.testing.assert_close(model.norm.running_mean, means.mean(0))
    assert model.norm.num_batches_tracked == 3
    assert model.norm.momentum == 0.1
    assert trainer.global_step == 9
    assert model.training


def test_a_run_that_is_resumed_ends_in_the_same_bits(fit, model_class, tmp_path):
    def averaging():
        return StochasticWeightAveraging(0.01, swa_epoch_start=2)

    options = {"batch_norm": True, "schedule": True}
    fit(model_class(**options), averaging(), ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}"))
    fit(whole := model_class(**options), averaging(), max_epochs=5)
    for epoch in (0, 1, 2):
        fit(resumed := model_class(**options), averaging(), max_epochs=5, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"swa_lrs": 0}, "a positive float or a list"),
        ({"swa_lrs": [0.1, -1.0]}, "a positive float or a list"),
        ({"swa_epoch_start": 0}, "counts from 1, but is 0"),
        ({"swa_epoch_start": 1.5}, "As a fraction"),
        ({"avg_fn": 3}, "avg_fn is a function, not 3"),
        ({"device": 3}, "a torch.device or a string, not 3"),
    ],
    ids=["no rate", "a negative rate", "epoch 0", "a fraction above 1", "no function", "no device"],
)
def test_arguments_that_make_no_sense_are_refused(options, complaint):
    with pytest.raises(MisconfigurationException, match=complaint):
        StochasticWeightAveraging(**{"swa_lrs": 0.01, **options})


def test_what_it_cannot_average_is_refused_before_training(fit, model_class):
    class TwoOptimizers(model_class):
        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.backbone, self.head)]

    by_hand = TwoOptimizers()
    by_hand.automatic_optimization = False
    with pytest.raises(
        MisconfigurationException, match="one optimizer and at most one schedule, but there are 2 and 0"
    ):
        fit(by_hand, StochasticWeightAveraging(0.01))
    with pytest.raises(MisconfigurationException, match=r"a fraction of max_epochs, which is not given"):
        fit(model_class(), StochasticWeightAveraging(0.01), max_epochs=-1, max_steps=3)
    with pytest.raises(MisconfigurationException, match="cannot average a model that is sharded"):
        fit(model_class(), StochasticWeightAveraging(0.01), strategy=FSDPStrategy())
    own_steps = model_class(batch_norm=True)
    own_steps.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="makes its own steps"):
        fit(own_steps, StochasticWeightAveraging(0.01))
