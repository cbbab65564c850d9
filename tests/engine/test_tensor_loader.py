import collections
import copy
import itertools
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from camshaft import TensorLoader
from camshaft.engine import Engine, Events, tensor_loader
from camshaft.engine.generators import generator_states, states_of
from camshaft.handlers import Checkpoint, OptimizerStep
from tests.resumption import differences_after_kills, different

SAMPLES = 23
INPUTS, CLASSES = torch.rand(SAMPLES, 2, 3), torch.arange(SAMPLES)

Pair = collections.namedtuple("Pair", "image label")


class Samples(Dataset):
    """Samples of one kind or another."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {
            "tensor": INPUTS[index],
            "number": float(index),
            "pair": (INPUTS[index], index),
            "named pair": Pair(INPUTS[index], index),
            "mapping": {"image": INPUTS[index], "name": f"sample {index}", "scores": [index, 2.0 * index]},
            "array": (np.full(2, index, dtype=np.float32), np.int64(index)),
            "text": f"sample {index}",
            "texts": (f"sample {index}", f"class {index % 3}"),
        }[self.kind]


class InBatches(Samples):
    """Loads a whole batch at a time."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


KINDS = ["tensor", "number", "pair", "named pair", "mapping", "array", "text", "texts"]
OPTIONS = {
    "in order": dict,
    "shuffled": lambda: {"shuffle": True},
    "shuffled by a generator": lambda: {"shuffle": True, "generator": torch.Generator()},
    "without the last": lambda: {"shuffle": True, "drop_last": True},
    "fewer than a batch, without the last": lambda: {"shuffle": True, "drop_last": True, "batch_size": SAMPLES + 1},
    "one batch that fits": lambda: {"shuffle": True, "drop_last": True, "batch_size": SAMPLES},
    "batches that fit": lambda: {"shuffle": True, "batch_size": 1, "generator": torch.Generator()},
    "one batch": lambda: {"batch_size": 100},
    "with replacement": lambda: {"sampler": RandomSampler(CLASSES, replacement=True, num_samples=40)},
    "many times": lambda: {"sampler": RandomSampler(CLASSES, num_samples=40, generator=torch.Generator())},
    "of a subset": lambda: {"sampler": SubsetRandomSampler(range(0, SAMPLES, 2))},
    "weighted": lambda: {"sampler": WeightedRandomSampler(torch.rand(SAMPLES), 30)},
    "from behind": lambda: {"sampler": range(-1, -SAMPLES, -1)},
    "of tensors": lambda: {"sampler": torch.arange(9)},
    "in batches of its own": lambda: {
        "batch_sampler": BatchSampler(RandomSampler(CLASSES), 4, drop_last=True),
    },
}


def passes(make_loader, options, times=2):
    """All batches of some passes, each with the states of the generators after it."""
    torch.manual_seed(3)
    own = options()
    loader = make_loader(**{**({} if "batch_sampler" in own else {"batch_size": 5}), **own})
    generators = {key: value for key, value in own.items() if key == "generator"}
    found = []
    for _ in range(times):
        found.append((generator_states(), states_of(generators)))
        found += [(batch, generator_states(), states_of(generators)) for batch in loader]
    return found


class TestItsBatchesAreThoseOfDataLoader:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_to_the_same_bits_from_the_same_random_numbers(self, options):
        expected = passes(lambda **kwargs: DataLoader(TensorDataset(INPUTS, CLASSES), **kwargs), options)
        found = passes(lambda **kwargs: TensorLoader(INPUTS, CLASSES, **kwargs), options)
        assert list(different(expected, found)) == []

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dataset_class", [Samples, InBatches])
    def test_for_data_sets_of_whatever_can_be_put_together(self, kind, dataset_class):
        dataset = dataset_class(kind)
        expected = passes(lambda **kwargs: DataLoader(dataset, **kwargs), OPTIONS["shuffled"])
        found = passes(lambda **kwargs: TensorLoader(dataset, **kwargs), OPTIONS["shuffled"])
        assert list(different(expected, found)) == []
        assert type(found[1][0]) is type(expected[1][0])

    def test_for_a_part_of_a_data_set(self):
        dataset = Subset(TensorDataset(INPUTS, CLASSES), [3, 1, 7])
        assert list(different([*DataLoader(dataset, 2)], [*TensorLoader(dataset, batch_size=2)])) == []

    def test_its_attributes_are_too(self):
        dataset = TensorDataset(INPUTS, CLASSES)
        options = {"batch_size": 4, "shuffle": True, "drop_last": True, "generator": torch.Generator()}
        loader, expected = TensorLoader(dataset, **options), DataLoader(dataset, **options)
        assert isinstance(loader, DataLoader)
        assert loader.dataset is dataset
        for name in ("batch_size", "drop_last", "generator", "num_workers"):
            assert getattr(loader, name) == getattr(expected, name)
        assert type(loader.sampler) is type(expected.sampler)
        assert type(loader.batch_sampler) is type(expected.batch_sampler)
        assert len(loader) == len(expected)

    def test_a_training_ends_in_the_same_bits(self):
        def weights(loader_class):
            torch.manual_seed(0)
            loader = loader_class(TensorDataset(INPUTS.flatten(1), CLASSES % 3), batch_size=4, shuffle=True)
            model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3))
            optimizer = torch.optim.Adam(model.parameters(), 0.01)
            engine = Engine(lambda engine, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
            engine.attach(OptimizerStep(optimizer)).run(loader, max_epochs=3)
            return model.state_dict()

        assert list(different(weights(DataLoader), weights(TensorLoader))) == []


def test_a_batch_can_be_changed_without_changing_the_data():
    inputs = torch.zeros(4, 2)
    for (batch,) in TensorLoader(inputs, batch_size=2):
        batch.add_(1)
    assert inputs.sum() == 0


def test_tensors_are_not_copied():
    inputs = torch.zeros(4)
    loader = TensorLoader(inputs, batch_size=4)
    inputs += 1
    [[batch]] = loader
    assert batch.tolist() == [1, 1, 1, 1]


def test_it_keeps_the_data_on_a_device():
    loader = TensorLoader(Samples("mapping"), batch_size=2, device="meta")
    assert loader.whole["image"].device.type == loader.whole["scores"][0].device.type == "meta"
    assert next(iter(loader))["image"].device.type == "meta"
    assert next(iter(loader))["name"] == ["sample 0", "sample 1"]


def test_a_copy_and_a_pickled_one_give_the_same_batches():
    loader = TensorLoader(INPUTS, batch_size=4)
    for other in (copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        assert list(different([*loader], [*other])) == []


def test_two_passes_at_a_time_do_not_disturb_each_other():
    loader = TensorLoader(CLASSES, batch_size=2)
    pairs = list(itertools.islice(zip(loader, loader, strict=True), 3))
    assert [(one[0].tolist(), other[0].tolist()) for one, other in pairs] == [([n, n + 1],) * 2 for n in (0, 2, 4)]


@pytest.mark.parametrize("make_generator", [lambda: None, torch.Generator], ids=["global", "own"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, make_generator):
    def program(directory):
        model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        engine = Engine(lambda engine, batch: model(batch[0].flatten(1)).square().mean())
        at = Events.ITERATION_COMPLETED(every=2)
        engine.attach(OptimizerStep(optimizer), Checkpoint(directory, model=model, optimizer=optimizer, at=at))
        loader = TensorLoader(INPUTS, batch_size=4, shuffle=True, generator=make_generator())
        return engine, {"data": loader, "max_epochs": 2}

    assert differences_after_kills(program, tmp_path) == []


def test_a_shuffled_batch_of_plain_tensors_costs_two_calls_of_ours_and_one_look_up_for_each_tensor():
    calls = collections.Counter()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename == tensor_loader.__file__:
            calls[frame.f_code.co_name] += 1
        elif event == "c_call" and argument.__name__ == "index_select":
            calls["index_select"] += 1

    batches = iter(TensorLoader(INPUTS, CLASSES, batch_size=5, shuffle=True))
    next(batches)
    sys.setprofile(note)
    try:
        next(batches)
    finally:
        sys.setprofile(None)
    calls.pop("<listcomp>", None)  # a call before Python 3.12
    assert calls == {"__next__": 1, "_drawn_at_once": 1, "index_select": 2}


def test_a_sample_that_is_not_there_is_an_error():
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        list(TensorLoader(INPUTS, CLASSES, sampler=[0, SAMPLES]))


class TestRefused:
    def test_tensors_of_different_length(self):
        with pytest.raises(ValueError, match=r"as many rows each, but they have \[3, 4\]"):
            TensorLoader(torch.zeros(3), torch.zeros(4))

    @pytest.mark.parametrize(
        "data",
        [(), (torch.zeros(3), [1, 2, 3]), ({"x": torch.zeros(3)},), (iter([1]),)],
        ids=lambda data: str(len(data)),
    )
    def test_what_is_neither_tensors_nor_one_data_set(self, data):
        with pytest.raises(TypeError, match="TensorLoader takes tensors, or one data set"):
            TensorLoader(*data)

    def test_a_data_set_that_only_iterates(self):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(range(3))

        with pytest.raises(TypeError, match="but got Stream"):
            TensorLoader(Stream())

    def test_samples_that_cannot_be_put_together(self):
        with pytest.raises(
            ValueError, match="its samples cannot be put together: stack expects each tensor to be equal"
        ):
            TensorLoader([torch.zeros(2), torch.zeros(3)])

    def test_single_samples(self):
        with pytest.raises(ValueError, match="batch_size=None"):
            TensorLoader(torch.zeros(3), batch_size=None)

    def test_what_data_loader_refuses(self):
        with pytest.raises(ValueError, match="mutually exclusive"):
            TensorLoader(torch.zeros(3), shuffle=True, sampler=range(3))
