"""A learning rate that is found before training, and used."""

import pytest
import torch

from camshaft.contrib.lightning.callbacks import LambdaCallback, LearningRateFinder


@pytest.fixture
def model(model_class):
    class Rated(model_class):
        def __init__(self):
            super().__init__(schedule=True)
            self.lr = 1e-6

    return Rated()


def test_training_begins_with_what_was_found(fit, model):
    before = [parameter.clone() for parameter in model.parameters()]
    seen = {}

    def look(trainer, module):
        seen["rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        seen["untrained"] = all(map(torch.equal, before, module.parameters()))
        seen["step"] = trainer.global_step

    finder = LearningRateFinder(num_training_steps=30, min_lr=1e-4)
    trainer = fit(model, finder, LambdaCallback(on_train_start=look), max_epochs=2)
    found = finder.optimal_lr.suggestion()
    assert model.lr == found
    assert seen == {"rate": found, "untrained": True, "step": 0}
    assert trainer.global_step == 6
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(found * 0.9**2)  # the schedule goes on from it


def test_without_update_attr_it_only_looks(fit, model):
    finder = LearningRateFinder(num_training_steps=30, update_attr=False)
    trainer = fit(model, finder, max_epochs=1)
    assert model.lr == 1e-6
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.9)
    assert len(finder.optimal_lr.results["lr"]) <= 30


def test_a_subclass_finds_it_when_another_epoch_begins(fit, model):
    class Again(LearningRateFinder):
        def on_fit_start(self, trainer, pl_module):
            pass

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.lr_find(trainer, pl_module)
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = []
    finder = Again(num_training_steps=20)
    trainer = fit(model, finder, max_epochs=2)
    assert rates == [finder.optimal_lr.suggestion()]
    assert trainer.global_step == 6


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'exponential' or 'linear', not 'cubic'"):
        LearningRateFinder(mode="cubic")
