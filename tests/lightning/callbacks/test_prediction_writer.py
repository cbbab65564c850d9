"""What a writer of predictions is given, and when."""

import pytest
import torch
from torch.utils.data import DataLoader

from camshaft.contrib.lightning.callbacks import BasePredictionWriter
from camshaft.contrib.lightning.callbacks.batch_indices import batch_indices
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


class Writer(BasePredictionWriter):
    def __init__(self, write_interval):
        super().__init__(write_interval)
        self.batches, self.epochs = [], []

    def write_on_batch_end(self, trainer, pl_module, prediction, indices, batch, batch_idx, dataloader_idx):  # noqa: PLR0917
        assert torch.equal(prediction, pl_module(batch).flatten())
        self.batches.append((dataloader_idx, batch_idx, indices))

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        self.epochs.append((predictions, batch_indices))


@pytest.fixture
def predicted(trainer_with, model_class):
    """Predicts with a writer, and gives it."""

    def run(loaders, write_interval):
        writer = Writer(write_interval)
        trainer_with(writer).predict(model_class(), loaders, return_predictions=False)
        return writer

    return run


def loader(samples, **options):
    return DataLoader(torch.arange(2.0 * samples).view(samples, 2), batch_size=2, **options)


def test_by_batches_it_gets_each_with_the_indices_of_its_samples(predicted):
    writer = predicted(loader(3), "batch")
    assert writer.batches == [(0, 0, [0, 1]), (0, 1, [2])]
    assert writer.epochs == []


def test_by_epochs_it_gets_all_in_the_end_also_if_predict_returns_nothing(predicted):
    writer = predicted(loader(3), "epoch")
    assert writer.batches == []
    ((predictions, indices),) = writer.epochs
    assert [len(prediction) for prediction in predictions] == [2, 1]
    assert indices == [[[0, 1], [2]]]


def test_with_several_loaders_there_is_a_list_for_each(predicted):
    writer = predicted([loader(3), loader(2)], "batch_and_epoch")
    assert writer.batches == [(0, 0, [0, 1]), (0, 1, [2]), (1, 0, [0, 1])]
    ((predictions, indices),) = writer.epochs
    assert [len(of_loader) for of_loader in predictions] == [2, 1]
    assert indices == [[[0, 1], [2]], [[0, 1]]]


def test_a_loader_that_shuffles_or_has_no_sampler_does_not_tell():
    assert next(batch_indices(loader(3, shuffle=True))) is None
    assert next(batch_indices([torch.zeros(2, 2)])) is None


def test_a_method_that_is_needed_and_not_there_is_named(trainer_with, model_class):
    class Half(BasePredictionWriter):
        pass

    for interval, method in (("batch", "write_on_batch_end"), ("epoch", "write_on_epoch_end")):
        with pytest.raises(NotImplementedError, match=f"Half has no {method}"):
            trainer_with(Half(interval)).predict(model_class(), loader(2))


def test_an_unknown_interval_is_refused():
    with pytest.raises(MisconfigurationException, match="'batch', 'epoch' or 'batch_and_epoch', not 'step'"):
        Writer("step")
