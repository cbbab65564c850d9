"""A batch size that is found before a run, and used."""

import pytest
import torch
from torch.utils.data import DataLoader

from camshaft.contrib.lightning.callbacks import BatchSizeFinder
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


@pytest.fixture
def model(model_class):
    """Has memory for 8 samples at once."""

    class Small(model_class):
        def __init__(self):
            super().__init__()
            self.batch_size = 1
            self.sizes = []

        def forward(self, x):
            if len(x) > 8:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(x)

        def loader(self):
            return DataLoader(torch.zeros(64, 2), batch_size=self.batch_size)

        train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader

    return Small()


@pytest.mark.parametrize("function", ["fit", "validate", "test", "predict"])
def test_each_function_runs_with_what_was_found(trainer_with, model, function):
    finder = BatchSizeFinder(init_val=8)
    trainer = trainer_with(finder, max_epochs=1)
    getattr(trainer, function)(model)
    assert finder.optimal_batch_size == model.batch_size == 8
    batches = {
        "fit": trainer.num_training_batches,
        "validate": sum(trainer.num_val_batches),
        "test": sum(trainer.num_test_batches),
        "predict": sum(trainer.num_predict_batches),
    }
    assert batches[function] == 8
    assert trainer.global_step == (8 if function == "fit" else 0)


def test_a_subclass_finds_it_when_another_epoch_begins(trainer_with, model):
    class Later(BatchSizeFinder):
        def on_fit_start(self, trainer, pl_module):
            pass

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.scale_batch_size(trainer, pl_module)

    model.batch_size = 4
    trainer = trainer_with(Later(init_val=8), max_epochs=2)
    trainer.fit(model)
    assert trainer.global_step == 16 + 8


def test_loaders_that_are_made_already_are_refused(fit, model):
    with pytest.raises(MisconfigurationException, match=r"let the module or a data module make them in train_data"):
        fit(model, BatchSizeFinder())


@pytest.mark.parametrize(
    ("options", "complaint"), [({"mode": "half"}, "not 'half'"), ({"margin": 1.5}, "not 1.5")], ids=["mode", "margin"]
)
def test_arguments_that_make_no_sense_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        BatchSizeFinder(**options)
