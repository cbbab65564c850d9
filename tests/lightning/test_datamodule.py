"""Data apart from the module that learns from it."""

import pytest
import torch
from torch.utils.data import RandomSampler, SequentialSampler

from camshaft.contrib.lightning.datamodule import LightningDataModule
from camshaft.contrib.lightning.demos.boring_classes import BoringDataModule, RandomDataset, RandomIterableDataset
from camshaft.contrib.lightning.hooks import is_overridden

HOOKS = [
    "prepare_data",
    "setup",
    "teardown",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "on_exception",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "state_dict",
    "load_state_dict",
]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_counts_only_where_a_subclass_has_it(hook):
    class Data(LightningDataModule):
        pass

    assert not is_overridden(hook, Data())
    setattr(Data, hook, lambda self, *args: None)
    assert is_overridden(hook, Data())


def test_hyperparameters_are_kept_under_names_of_their_own():
    class Data(LightningDataModule):
        def __init__(self, batch_size=4):
            super().__init__()
            self.save_hyperparameters()

    assert Data().hyperparameters_for_checkpoint() == {
        "datamodule_hparams_name": "kwargs",
        "datamodule_hyper_parameters": {"batch_size": 4},
    }


def test_data_sets_become_loaders_of_which_only_that_for_training_is_shuffled():
    train, val = RandomDataset(2, 8), RandomDataset(2, 6)
    data = LightningDataModule.from_datasets(train, val, batch_size=4)
    loader = data.train_dataloader()
    assert (loader.dataset, len(loader), type(loader.sampler)) == (train, 2, RandomSampler)
    assert (data.val_dataloader().dataset, type(data.val_dataloader().sampler)) == (val, SequentialSampler)


def test_only_data_sets_that_are_given_have_loaders():
    data = LightningDataModule.from_datasets(RandomDataset(2, 8), predict_dataset=RandomDataset(2, 8))
    names = ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]
    assert [is_overridden(name, data) for name in names] == [True, False, False, True]


def test_a_collection_of_data_sets_becomes_the_same_collection_of_loaders():
    data = LightningDataModule.from_datasets(
        {"a": RandomDataset(2, 8), "b": RandomIterableDataset(2, 3)}, [RandomDataset(2, 4)], batch_size=2
    )
    assert [len(list(loader)) for loader in data.train_dataloader().values()] == [4, 2]
    assert [len(loader) for loader in data.val_dataloader()] == [2]


def test_a_subclass_gets_the_batch_size_where_its_init_takes_it():
    class Data(LightningDataModule):
        def __init__(self, batch_size, name):
            super().__init__()
            self.batch_size, self.title = batch_size, name

    data = Data.from_datasets(RandomDataset(2, 8), batch_size=4, name="n")
    assert (data.batch_size, data.title) == (4, "n")


def test_a_loader_that_is_missing_is_told_by_name():
    with pytest.raises(NotImplementedError, match=r"LightningDataModule has no train_dataloader\(\)"):
        LightningDataModule().train_dataloader()


def test_batches_go_to_the_device_as_they_are():
    batch = {"x": torch.ones(1), "names": ["a"]}
    moved = LightningDataModule().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert (moved["x"].device.type, moved["names"]) == ("meta", ["a"])


def test_its_text_tells_the_sizes_of_its_data_sets():
    data = LightningDataModule.from_datasets(RandomDataset(2, 8), [RandomDataset(2, 4), RandomIterableDataset(2, 3)])
    assert str(data).splitlines() == [
        "{Train dataloader: size=8}",
        "{Validation dataloader: 1. size=4 ; 2. size=NA}",
        "{Test dataloader: None}",
        "{Predict dataloader: None}",
    ]


def test_its_text_can_be_had_before_it_is_set_up():
    assert "{Train dataloader: None}" in str(BoringDataModule())
