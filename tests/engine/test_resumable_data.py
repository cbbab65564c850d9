import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from camshaft.engine import Engine, Events
from camshaft.handlers import Checkpoint, OptimizerStep
from tests.resumption import differences_after_kills, run

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it

SAMPLES = 24


class Augmented(Dataset):
    """Samples with noise of each of the three generators."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        noise = torch.rand(3) + random.random() + np.random.rand()  # noqa: NPY002 - the global one
        return torch.full((3,), float(index)) + noise


class Lazy(Sampler):
    """Draws each index from those that are left when it is asked for it, from the global generators."""

    def __iter__(self):
        left = list(range(SAMPLES))
        while left:
            yield left.pop((random.randrange(len(left)) + int(torch.randint(len(left), ()))) % len(left))

    def __len__(self):
        return SAMPLES


class Endless:
    """Walks at random without end, in batches of steps that it draws from the global generators when it is asked."""

    def __iter__(self):
        index = 0
        while True:
            batch = []
            for step in torch.randint(SAMPLES, (4,)).tolist():
                index = (index + step) % SAMPLES
                batch.append(index)
            yield batch


class HasGenerators(Dataset):
    """Samples with noise of generators of its own, of all four kinds."""

    def __init__(self):
        self.generators = random.Random(1), np.random.default_rng(1), np.random.RandomState(1), torch.Generator()
        self.python, self.numpy, self.old_numpy, self.torch = self.generators

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        noise = self.python.random() + self.numpy.random() + self.old_numpy.rand()
        return torch.full((3,), index + noise) + torch.rand(3, generator=self.torch)


class GivesWholeBatches(Augmented):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class CountsItsEpochs(Sampler):
    """Draws another order each time, from a number that it counts."""

    def __init__(self):
        self.times = 0

    def __iter__(self):
        self.times += 1
        return iter(torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.times)).tolist())

    def __len__(self):
        return SAMPLES


class HasItsOwnGenerator(Sampler):
    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __iter__(self):
        for _ in range(SAMPLES):
            yield int(self.generator.integers(SAMPLES))

    def __len__(self):
        return SAMPLES


class Stream(IterableDataset):
    """Samples that each worker draws."""

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(first, SAMPLES, step):
            yield torch.full((3,), float(index)) + torch.rand(3)


class StatefulStream(Stream):
    """A stream without random numbers that can go on where it was."""

    def __init__(self):
        self.index = 0

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        self.index = self.index or first
        while self.index < SAMPLES:
            self.index += step
            yield torch.full((3,), float(self.index - step))
        self.index = 0

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


def first_of_two(engine, iteration):
    return iteration % 2 == 1


def program_with(make_data, **arguments):
    """A small network with dropout over data, with a checkpoint after every iteration."""

    def program(directory):
        data = make_data()
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        engine = Engine(lambda engine, batch: F.mse_loss(model(batch), batch.sum(-1, keepdim=True)))
        checkpoint = Checkpoint(
            directory,
            model=model,
            optimizer=optimizer,
            at=Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED,
        )
        for handler in (OptimizerStep(optimizer), checkpoint):
            handler.attach(engine)
        engine.model = model
        return engine, {"data": data, "max_epochs": 2, **arguments}

    return program


def loader(**options):
    return lambda: DataLoader(Augmented(), **{"batch_size": 6, "shuffle": True, **options})


MAP_STYLE = {
    "shuffled": loader(),
    "in order": loader(shuffle=False),
    "with an own generator": lambda: DataLoader(Augmented(), 6, shuffle=True, generator=torch.Generator()),
    "with replacement": lambda: DataLoader(Augmented(), 6, sampler=RandomSampler(range(SAMPLES), replacement=True)),
    "with replacement and an own generator": lambda: DataLoader(
        Augmented(), 6, sampler=RandomSampler(range(SAMPLES), replacement=True, generator=torch.Generator())
    ),
    "weighted": lambda: DataLoader(Augmented(), 6, sampler=WeightedRandomSampler([1.0] * SAMPLES, SAMPLES)),
    "of a subset": lambda: DataLoader(Augmented(), 4, sampler=SubsetRandomSampler(range(16))),
    "with a sampler that draws lazily": lambda: DataLoader(Augmented(), 6, sampler=Lazy()),
    "with a sampler that counts its epochs": lambda: DataLoader(Augmented(), 6, sampler=CountsItsEpochs()),
    "with a sampler that has its own generator": lambda: DataLoader(Augmented(), 6, sampler=HasItsOwnGenerator()),
    "with a batch sampler": lambda: DataLoader(Augmented(), batch_sampler=BatchSampler(Lazy(), 6, drop_last=False)),
    "without batches": lambda: DataLoader(Augmented(), batch_size=None, sampler=SubsetRandomSampler(range(6))),
    "of torchdata": lambda: StatefulDataLoader(Augmented(), 6, shuffle=True),
    "of a list": lambda: DataLoader(list(torch.rand(SAMPLES, 3, generator=torch.Generator())), 6, shuffle=True),
}


WITH_WORKERS = {
    "of two": {},
    "that persist": {"persistent_workers": True},
    "that get many batches ahead": {"prefetch_factor": 3},
    "without batches": {"batch_size": None, "sampler": SubsetRandomSampler(range(6)), "shuffle": None},
    "with a lazy sampler": {
        "batch_sampler": BatchSampler(Lazy(), 6, drop_last=False),
        "batch_size": 1,
        "shuffle": None,
    },
    "each with a data set whose generators are its own": {"dataset": HasGenerators},
    "with a data set that gives whole batches": {"dataset": GivesWholeBatches},
    "of torchdata": {"kind": StatefulDataLoader},
}


def loader_with_workers(dataset=Augmented, kind=DataLoader, **options):
    return kind(dataset(), **{"batch_size": 6, "shuffle": True, "num_workers": 2, **options})


@pytest.mark.parametrize("make_data", MAP_STYLE.values(), ids=MAP_STYLE)
def test_a_loader_goes_on_where_it_was(tmp_path, make_data):
    assert differences_after_kills(program_with(make_data), tmp_path) == []


@pytest.mark.parametrize("options", WITH_WORKERS.values(), ids=WITH_WORKERS)
def test_a_loader_with_workers_and_random_augmentation_goes_on_where_it_was(tmp_path, options):
    program = program_with(lambda: loader_with_workers(**options))
    assert differences_after_kills(program, tmp_path, (Events.ITERATION_STARTED(event_filter=first_of_two),)) == []


@pytest.mark.parametrize("epoch_length", [3, 7, 8, 9])
@pytest.mark.parametrize("kind", ["shuffled", "with a sampler that counts its epochs", "with a batch sampler"])
def test_so_does_a_loader_that_is_longer_or_shorter_than_an_epoch(tmp_path, kind, epoch_length):
    program = program_with(MAP_STYLE[kind], epoch_length=epoch_length)
    assert differences_after_kills(program, tmp_path) == []


@pytest.mark.parametrize("data", ["list", "tensor", "none"])
def test_so_does_data_that_is_no_loader(tmp_path, data):
    kinds = {"list": [torch.rand(6, 3)] * 4, "tensor": torch.rand(4, 6, 3), "none": None}

    def program(directory):
        engine, arguments = program_with(lambda: kinds[data])(directory)
        engine._process_function.function = lambda engine, batch: engine.model(torch.rand(6, 3)).square().mean()
        return engine, {**arguments, "epoch_length": 4}

    assert differences_after_kills(program, tmp_path) == []


def test_an_endless_batch_sampler_draws_from_generators_of_its_own(tmp_path):
    program = program_with(lambda: DataLoader(Augmented(), batch_sampler=Endless()), epoch_length=5)
    assert differences_after_kills(program, tmp_path) == []


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "batch_size": 4}], ids=["in this process", "in workers"])
def test_a_stream_is_gone_through_again_and_a_warning_says_what_that_costs(tmp_path, options):
    program = program_with(lambda: DataLoader(Stream(), **{"batch_size": 6, **options}), epoch_length=4)
    with pytest.warns(
        UserWarning, match="batches of DataLoader are loaded again and passed over, since it has no state"
    ):
        assert differences_after_kills(program, tmp_path, (Events.ITERATION_STARTED(event_filter=first_of_two),)) == []


@pytest.mark.parametrize(
    ("options", "epoch_length"),
    [({}, 4), ({}, None), ({"num_workers": 2}, 4), ({"num_workers": 2, "persistent_workers": True}, 4)],
)
def test_torchdatas_loader_of_a_stream_goes_on_by_its_own_state(tmp_path, options, epoch_length):
    program = program_with(lambda: StatefulDataLoader(StatefulStream(), 6, **options), epoch_length=epoch_length)
    assert differences_after_kills(program, tmp_path, (Events.ITERATION_STARTED(event_filter=first_of_two),)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_samples_that_were_seen_are_not_loaded_again(tmp_path, num_workers):
    loaded = tmp_path / "loaded"

    class Notes(Augmented):
        def __getitem__(self, index):
            with loaded.open("a") as file:
                file.write("x")
            return super().__getitem__(index)

    program = program_with(lambda: DataLoader(Notes(), 6, shuffle=True, num_workers=num_workers))

    def kill(engine):
        @engine.on(Events.ITERATION_STARTED(once=4))
        def die(engine):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(program, tmp_path / "run", watch=kill)
    loaded.write_text("")
    run(program, tmp_path / "run")
    assert len(loaded.read_text()) == SAMPLES // 4 * 5


def test_another_epoch_has_other_augmentation_in_workers(tmp_path):
    batches = []
    program = program_with(lambda: loader_with_workers(shuffle=False))

    def watch(engine):
        engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: batches.append(engine.state.batch))

    run(program, tmp_path, watch=watch)
    assert not torch.equal(batches[0], batches[4])
    assert not torch.equal(batches[0] - batches[1], torch.full_like(batches[0], -6.0))


def test_worker_init_fn_reaches_the_data_set_of_the_user(tmp_path):
    class Opened(Augmented):
        offset = None

        def __getitem__(self, index):
            return torch.full((3,), float(self.offset + index))

    def open_in_worker(worker):
        dataset = get_worker_info().dataset
        dataset.offset = len(dataset)

    batches = []
    program = program_with(lambda: DataLoader(Opened(), 6, num_workers=2, worker_init_fn=open_in_worker), max_epochs=1)

    def watch(engine):
        engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: batches.append(engine.state.batch))

    run(program, tmp_path, watch=watch)
    assert batches[0][0, 0] == SAMPLES


def test_the_loader_of_the_user_stays_as_it_was(tmp_path):
    data = loader()()
    parts = data.batch_sampler, data.sampler, data.dataset
    run(program_with(lambda: data), tmp_path)
    assert (data.batch_sampler, data.sampler, data.dataset) == parts


def test_numbers_that_do_not_change_are_not_kept_such_as_the_rank_of_a_process(tmp_path):
    class Ranked(CountsItsEpochs):
        def __init__(self, rank):
            super().__init__()
            self.rank = rank

    ranked = [Ranked(0), Ranked(1)]
    engine, arguments = program_with(lambda: DataLoader(Augmented(), 6, sampler=ranked[0]))(tmp_path)
    engine.run(**arguments)
    engine, arguments = program_with(lambda: DataLoader(Augmented(), 6, sampler=ranked[1]))(tmp_path)
    engine.run(**{**arguments, "max_epochs": 3})
    assert (ranked[1].rank, ranked[1].times) == (1, 3)


def test_data_that_is_set_while_running_begins_at_its_beginning(tmp_path):
    def program(directory):
        engine, arguments = program_with(MAP_STYLE["shuffled"])(directory)
        second = MAP_STYLE["in order"]()
        engine.add_event_handler(Events.EPOCH_STARTED(once=2), lambda engine: engine.set_data(second))
        return engine, arguments

    batches = []
    run(
        program,
        tmp_path,
        watch=lambda engine: engine.add_event_handler(
            Events.ITERATION_STARTED, lambda engine: batches.append(engine.state.batch)
        ),
    )
    assert batches[4].int().max() < 9
