"""Several loaders as one."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from camshaft.contrib.lightning import Trainer
from camshaft.contrib.lightning.combined_loader import CombinedLoader
from camshaft.contrib.lightning.demos.boring_classes import BoringModel, RandomDataset
from camshaft.contrib.lightning.utilities.combined_loader import CombinedLoader as OfUtilities

SHORT, LONG = [1, 2], ["a", "b", "c"]


class WithoutLength(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("mode", "items"),
    [
        ("min_size", [([1, "a"], 0, 0), ([2, "b"], 1, 0)]),
        ("max_size", [([1, "a"], 0, 0), ([2, "b"], 1, 0), ([None, "c"], 2, 0)]),
        ("max_size_cycle", [([1, "a"], 0, 0), ([2, "b"], 1, 0), ([1, "c"], 2, 0)]),
        ("sequential", [(1, 0, 0), (2, 1, 0), ("a", 0, 1), ("b", 1, 1), ("c", 2, 1)]),
    ],
    ids=["min_size", "max_size", "max_size_cycle", "sequential"],
)
def test_each_mode_gives_its_batches_and_knows_their_number(mode, items):
    loader = CombinedLoader([SHORT, LONG], mode)
    assert (list(loader), len(loader)) == (items, len(items))


@pytest.mark.parametrize(
    ("mode", "items"),
    [
        ("min_size", [([1, "a"], 0, 0)]),
        ("max_size", [([1, "a"], 0, 0), ([None, "b"], 1, 0)]),
        ("max_size_cycle", [([1, "a"], 0, 0), ([2, "b"], 1, 0)]),
        ("sequential", [(1, 0, 0), ("a", 0, 1), ("b", 1, 1)]),
    ],
    ids=["min_size", "max_size", "max_size_cycle", "sequential"],
)
def test_limits_hold_for_each_iterable(mode, items):
    loader = CombinedLoader([SHORT, LONG], mode)
    loader.limits = [1, 2]
    assert (list(loader), len(loader)) == (items, len(items))


def test_one_limit_holds_for_all():
    loader = CombinedLoader([SHORT, LONG], "sequential")
    loader.limits = 1
    assert loader.limits == [1, 1]
    assert [batch for batch, *_ in loader] == [1, "a"]


def test_another_number_of_limits_is_refused():
    with pytest.raises(ValueError, match="2 iterables, but 3 limits"):
        CombinedLoader([SHORT, LONG]).limits = [1, 2, 3]


def test_another_mode_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"'min_size', 'max_size_cycle', 'max_size', 'sequential', but got 'longest'"):
        CombinedLoader([SHORT], "longest")


def test_batches_have_the_shape_of_the_collection():
    loader = CombinedLoader({"x": [SHORT, LONG], "y": (SHORT,)})
    assert next(loader) == ({"x": [1, "a"], "y": (1,)}, 0, 0)
    assert loader.flattened == [SHORT, LONG, SHORT]


def test_a_single_iterable_needs_no_collection():
    assert list(CombinedLoader(DataLoader(range(2), batch_size=None), "sequential")) == [(0, 0, 0), (1, 1, 0)]


def test_each_iteration_begins_anew():
    loader = CombinedLoader([SHORT, LONG])
    next(iter(loader))
    assert len(list(loader)) == len(list(loader)) == 2


def test_the_iterables_can_be_exchanged():
    loader = CombinedLoader({"x": SHORT, "y": LONG})
    loader.flattened = [[5], [6]]
    assert (loader.iterables, list(loader)) == ({"x": [5], "y": [6]}, [({"x": 5, "y": 6}, 0, 0)])
    with pytest.raises(ValueError, match="2 iterables; 1 cannot take their place"):
        loader.flattened = [[5]]


@pytest.mark.parametrize(("mode", "number"), [("min_size", 2), ("max_size_cycle", 3)], ids=["min_size", "cycle"])
def test_iterables_without_a_length_are_iterated_all_the_same(mode, number):
    endless = DataLoader(WithoutLength(), batch_size=None)
    loader = CombinedLoader([SHORT, endless], mode)
    assert len(list(loader)) == number


def test_the_length_is_that_of_those_that_have_one_where_they_decide():
    endless = DataLoader(WithoutLength(), batch_size=None)
    assert len(CombinedLoader([SHORT, endless], "min_size")) == 2
    with pytest.raises(TypeError, match=r"The length of .*'max_size'.* is not known"):
        len(CombinedLoader([SHORT, endless], "max_size"))


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle", "sequential"])
def test_no_iterables_give_no_batches(mode):
    assert (list(CombinedLoader([], mode)), len(CombinedLoader([], mode))) == ([], 0)


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle"])
def test_an_empty_iterable_ends_it(mode):
    assert list(CombinedLoader([[], LONG], mode)) == []


def test_the_loaders_samplers_have_the_shape_of_the_collection():
    first, second = DataLoader(range(2)), DataLoader(range(3))
    loader = CombinedLoader({"a": first, "b": second})
    assert loader.sampler == {"a": first.sampler, "b": second.sampler}
    assert loader.batch_sampler == {"a": first.batch_sampler, "b": second.batch_sampler}


def test_it_can_be_copied_while_it_is_iterated():
    loader = CombinedLoader([SHORT, LONG])
    next(loader)
    assert list(copy.deepcopy(loader)) == list(pickle.loads(pickle.dumps(loader)))


def test_reset_ends_the_workers_that_loaders_keep():
    kept = DataLoader(range(2), num_workers=1, persistent_workers=True)
    loader = CombinedLoader([kept])
    list(loader)
    workers = kept._iterator._workers
    loader.reset()
    assert not any(worker.is_alive() for worker in workers)
    assert torch.equal(next(loader)[0][0], torch.tensor([0]))
    loader.reset()


def test_a_trainer_gives_its_batches_to_the_module_as_one(tmp_path):
    class Watching(BoringModel):
        seen: list

        def training_step(self, batch, batch_idx):
            self.seen.append((batch_idx, len(batch["a"]), None if batch["b"] is None else len(batch["b"])))
            return self.step(batch["a"])

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.seen.append((batch_idx, dataloader_idx))

    def loader(samples):
        return DataLoader(RandomDataset(32, samples), batch_size=2)

    model = Watching()
    model.seen = []
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    together = CombinedLoader({"a": loader(6), "b": loader(3)}, "max_size")
    trainer.fit(model, together, CombinedLoader([loader(4), loader(2)], "sequential"))
    assert model.seen == [(0, 2, 2), (1, 2, 1), (2, 2, None), (0, 0), (1, 0), (0, 1)]
    assert (trainer.num_training_batches, trainer.num_val_batches) == (3, [2, 1])


def test_programs_find_it_among_the_utilities():
    assert OfUtilities is CombinedLoader
