"""Where batches come from, and how many of them are used."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.data import batches_to_evaluate, batches_to_train, in_order
from camshaft.contrib.lightning.utilities import CombinedLoader


class Model(pl.LightningModule):
    """Notes the first element of the batches it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.trained: list[list[int]] = []
        self.validated: list[int] = []

    def on_train_epoch_start(self):
        self.trained.append([])

    def training_step(self, batch, batch_idx):
        self.trained[-1].append(int(batch[0]))
        return self.weight.square()

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.validated.append(int(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Numbers without a length."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = list(lengths)

    def __iter__(self):
        return iter(range(self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]))


def fitted(model: Model, train: Any = None, val: Any = None, **flags: Any) -> Model:
    settings = {"max_epochs": 2, **flags}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, train, val)
    return model


def loader(number: int = 6, **options: Any) -> DataLoader[Any]:
    return DataLoader(range(number), batch_size=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        ({}, [[0, 2, 4]] * 2),
        ({"limit_train_batches": 2}, [[0, 2]] * 2),
        ({"limit_train_batches": 0.67}, [[0, 2]] * 2),
        ({"limit_train_batches": 9}, [[0, 2, 4]] * 2),
        ({"max_steps": 4}, [[0, 2, 4], [0]]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "make", [lambda: loader(), lambda: [torch.tensor([index]) for index in (0, 2, 4)]], ids=["loader", "list"]
)
def test_each_epoch_begins_with_the_first_batch(flags, epochs, make):
    assert fitted(Model(), make(), **flags).trained == epochs


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [({}, [[0, 2, 4]] * 2), ({"limit_train_batches": 2}, [[0, 2]] * 2), ({"limit_train_batches": 9}, [[0, 2, 4]] * 2)],
    ids=str,
)
def test_data_without_length_ends_when_it_ends(flags, epochs):
    assert fitted(Model(), DataLoader(Stream(6), batch_size=2), **flags).trained == epochs


def test_its_epochs_may_have_different_lengths():
    train = DataLoader(Stream(8, 2, 6), batch_size=2)
    assert fitted(Model(), train, max_epochs=3).trained == [[0, 2, 4, 6], [0], [0, 2, 4]]


def test_it_is_validated_on_whole_though_less_was_looked_at_before():
    val = DataLoader(Stream(6), batch_size=2)
    assert fitted(Model(), loader(), val, num_sanity_val_steps=1).validated == [0, 2, 4] * 2


def test_loaders_that_are_made_anew_may_have_other_lengths():
    class Shrinks(Model):
        def train_dataloader(self):
            return loader(8 - 3 * self.current_epoch)

    assert fitted(Shrinks(), max_epochs=3, reload_dataloaders_every_n_epochs=1).trained == [
        [0, 2, 4, 6],
        [0, 2, 4],
        [0],
    ]


@pytest.mark.parametrize(("every", "epochs"), [(0, [0]), (1, [0, 1, 2, 3]), (2, [0, 2])], ids=str)
def test_loaders_are_asked_for_every_so_many_epochs(every, epochs):
    class Asked(Model):
        asked: list[int] = []  # noqa: RUF012

        def train_dataloader(self):
            self.asked.append(self.current_epoch)
            return loader()

    Asked.asked = []
    assert fitted(Asked(), max_epochs=4, reload_dataloaders_every_n_epochs=every).asked == epochs


def test_what_is_overfitted_is_not_shuffled():
    shuffled = loader(20, shuffle=True)
    model = fitted(Model(), shuffled, overfit_batches=2)
    assert model.trained == [[0, 2]] * 2
    assert isinstance(shuffled.sampler, RandomSampler)


def test_the_order_of_a_copy_leaves_the_loader_as_it_is():
    shuffled = loader(20, shuffle=True, drop_last=True)
    ordered = in_order(shuffled)
    assert [batch[0].item() for batch in ordered] == list(range(0, 20, 2))
    assert isinstance(ordered.sampler, SequentialSampler)
    assert ordered.batch_sampler.drop_last


def test_samplers_are_told_the_epoch():
    class Told(SequentialSampler):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    fitted(Model(), loader(6, sampler=Told(range(6))), max_epochs=3)
    assert Told.epochs == [0, 1, 2]


@pytest.mark.parametrize(("mode", "number"), [("min_size", 2), ("max_size_cycle", 3), ("max_size", 3)])
def test_several_loaders_are_gone_through_together(mode, number):
    batches = batches_to_train(CombinedLoader({"a": loader(6), "b": loader(4)}, mode), None)
    assert batches.number == number == len(list(batches.iterable))


def test_a_collection_begins_the_shorter_loader_again():
    batches = batches_to_train([loader(6), loader(2)], 1.0)
    assert [[int(part[0]) for part in batch] for batch in batches.iterable] == [[0, 0], [2, 0], [4, 0]]


def test_loaders_after_one_another_are_not_trained_on():
    with pytest.raises(ValueError, match="is for evaluation"):
        batches_to_train(CombinedLoader([loader()], "sequential"), None)


def test_each_loader_to_evaluate_has_the_limit():
    parts = batches_to_evaluate([loader(6), loader(2), loader(8)], "val", 2)
    assert [part.number for part in parts] == [2, 1, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"limit_train_batches": 0.1}, "limit_train_batches=0.1 of 3 batches is none"),
        ({"val_check_interval": 5}, "more than the 3 batches of an epoch"),
    ],
    ids=str,
)
def test_what_comes_to_nothing_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        fitted(Model(), loader(), loader(), **flags)


@pytest.mark.parametrize("flag", ["limit_train_batches", "val_check_interval"])
def test_a_share_of_data_without_length_is_refused(flag):
    with pytest.raises(ValueError, match="is a share of data without length"):
        fitted(Model(), DataLoader(Stream(6), batch_size=2), loader(), **{flag: 0.5})
