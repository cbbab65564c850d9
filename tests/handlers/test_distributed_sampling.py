import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, DistributedSampler

from camshaft.engine import Engine
from camshaft.handlers import DistributedSampling


class TestOnOneProcess:
    def test_leaves_a_shuffling_loader_as_it_is(self, engine_of):
        seen = []
        loader = DataLoader(range(4), shuffle=True)
        engine = engine_of(lambda engine, batch: seen.append(batch.item()), DistributedSampling())
        assert engine.run(loader).dataloader is loader
        assert sorted(seen) == [0, 1, 2, 3]

    def test_leaves_a_distributed_sampler_alone(self, engine_of):
        sampler = DistributedSampler(range(4), num_replicas=1, rank=0)
        engine_of(lambda engine, batch: None, DistributedSampling()).run(
            DataLoader(range(4), sampler=sampler), max_epochs=3
        )
        assert sampler.epoch == 0

    def test_works_without_data(self, engine_of):
        assert engine_of(lambda engine, batch: None, DistributedSampling()).run(epoch_length=2).iteration == 2


def test_two_of_them_are_refused():
    engine = Engine(lambda engine, batch: None).attach(DistributedSampling(), DistributedSampling())
    with pytest.raises(ValueError, match="keep one of them"):
        engine.run([0])


# Each run writes down its batches as [epoch, *samples]; 11 samples, so that nothing comes out even.
PROGRAM = """
import json, os, random, sys
import torch
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, Sampler
from camshaft.engine import Engine
from camshaft.handlers import DistributedSampling, Evaluate

store, rank, world, result = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
data = list(range(11))
seen = {}

def note(batches):
    return lambda engine, batch: batches.append([engine.state.epoch, *torch.as_tensor(batch).reshape(-1).tolist()])

def run(name, loader, engine_class=Engine, handler=None, epochs=2):
    torch.manual_seed(rank)  # the first process decides, whatever the others would draw
    random.seed(rank)
    seen[name] = []
    engine = engine_class(note(seen[name]))
    (handler or DistributedSampling()).attach(engine)
    try:
        seen[name + " iterations"] = engine.run(loader, max_epochs=epochs).iteration
    except ValueError as error:
        seen[name] = str(error)

class OwnSampler(Sampler):
    def __len__(self):
        return len(data)
    def __iter__(self):
        yield from random.sample(data, len(data))

class OwnBatches:
    def __len__(self):
        return 3
    def __iter__(self):
        yield from ([0, 1, 2], [3, 4], [5])

class BatchesOfOne:
    def __len__(self):
        return len(data)
    def __iter__(self):
        yield from ([sample] for sample in data)

class EpochBatches:
    epoch = None
    def set_epoch(self, epoch):
        self.epoch = epoch
    def __iter__(self):
        yield [self.epoch, rank]

class Stream(IterableDataset):
    def __iter__(self):
        yield from data

size = 4 // world if world < 4 else 2  # of two processes, the batches are together those of one
run("shuffled", DataLoader(data, batch_size=size, shuffle=True))
run("on ignite", DataLoader(data, batch_size=size, shuffle=True), IgniteEngine)
run("in workers", DataLoader(data, batch_size=size, shuffle=True, num_workers=1))
run("drop last", DataLoader(data, batch_size=size, shuffle=True, drop_last=True))
run("own sampler", DataLoader(data, batch_size=size, sampler=OwnSampler()))
run("single", DataLoader(data, batch_size=None))
run("own batches", DataLoader(data, batch_sampler=OwnBatches()))
run("stream", DataLoader(Stream(), batch_size=size), epochs=1)
by_itself = DistributedSampling(split_iterable=False)
run("split by itself", DataLoader(Stream(), batch_size=size), handler=by_itself, epochs=1)
run("few", DataLoader([0], batch_size=1))
run("leftover of one", DataLoader(data[:9], batch_size=size))
run("list", [torch.tensor([1])], epochs=1)
if world > 1:
    run("distributed already", DataLoader(data, batch_size=2, sampler=DistributedSampler(data)))
    run("batch sampler", DataLoader(data, batch_sampler=BatchSampler(DistributedSampler(data), 2, False)))
    run("told the epoch", DataLoader(data, batch_sampler=EpochBatches()), epochs=3)

def evaluate(name, loader):
    seen[name] = []
    trainer = Engine(lambda engine, batch: None)
    trainer.attach(Evaluate(Engine(note(seen[name])), loader, modules=[torch.nn.Linear(1, 1)]), DistributedSampling())
    trainer.run([0], max_epochs=1)

evaluate("evaluated", DataLoader(data, batch_size=size))
evaluate("evaluated stream", DataLoader(Stream(), batch_size=1))
evaluate("evaluated one by one", DataLoader(data, batch_size=None))
evaluate("evaluated batches", DataLoader(data, batch_sampler=BatchesOfOne()))

with open(result, "w") as file:
    json.dump(seen, file)
if world > 1:
    dist.destroy_process_group()
"""


def seen_by(processes, folder):
    """What each of so many real processes saw."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    results = [folder / f"{rank}.json" for rank in range(processes)]
    started = []
    for rank, result in enumerate(results):
        arguments = [str(folder / "store"), str(rank), str(processes), str(result)]
        command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(program), *arguments]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)
    return [json.loads(result.read_text()) for result in results]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return seen_by(1, tmp_path_factory.mktemp("one_process"))[0]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return seen_by(2, tmp_path_factory.mktemp("two_processes"))


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory):
    return seen_by(4, tmp_path_factory.mktemp("four_processes"))


EVALUATIONS = ["evaluated", "evaluated stream", "evaluated one by one", "evaluated batches"]


@pytest.mark.distributed
class TestOnTwoProcesses:
    @pytest.mark.parametrize("name", ["shuffled", "on ignite", "in workers", "drop last", "own sampler"])
    def test_both_together_see_the_batches_of_one_process_with_batches_twice_as_large(
        self, one_process, two_processes, name
    ):
        first, second = (seen[name] for seen in two_processes)
        together = [[epoch, *sorted(mine + others)] for (epoch, *mine), (_, *others) in zip(first, second, strict=True)]
        assert together == [[epoch, *sorted(samples)] for epoch, *samples in one_process[name]]

    def test_each_epoch_has_another_order(self, two_processes):
        epochs = [[batch[1:] for batch in two_processes[0]["shuffled"] if batch[0] == epoch] for epoch in (1, 2)]
        assert epochs[0] != epochs[1]

    def test_a_last_batch_too_small_to_share_goes_into_the_one_before(self, two_processes):
        batches = [[samples for _, *samples in seen["leftover of one"]][:2] for seen in two_processes]
        assert batches == [[[0, 2], [4, 6, 8]], [[1, 3], [5, 7]]]

    def test_whole_batches_and_single_samples_are_taken_in_turn_as_often_by_each(self, two_processes):
        for rank, seen in enumerate(two_processes):
            assert seen["own batches"] == [[epoch, *([0, 1, 2], [3, 4])[rank]] for epoch in (1, 2)]
            assert seen["single"] == [[epoch, sample] for epoch in (1, 2) for sample in range(rank, 10, 2)]
            assert seen["stream"] == [
                [1, *samples] for samples in ([[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10]])[rank]
            ]

    def test_a_stream_that_splits_itself_is_left_alone(self, two_processes):
        assert two_processes[0]["split by itself"] == two_processes[1]["split by itself"]

    def test_epochs_are_as_long_as_the_share(self, two_processes):
        assert all(seen["shuffled iterations"] == 2 * 3 for seen in two_processes)

    def test_fewer_samples_than_processes_are_refused(self, two_processes):
        assert all("1 samples cannot be shared among 2 processes" in seen["few"] for seen in two_processes)

    def test_data_that_is_no_loader_is_left_alone(self, two_processes):
        assert all(seen["list"] == [[1, 1]] for seen in two_processes)

    def test_a_sampler_that_is_distributed_already_is_kept_and_told_the_epoch(self, two_processes):
        for name in ("distributed already", "batch sampler"):
            orders = [
                [sample for epoch, *batch in two_processes[0][name] for sample in batch if epoch == n] for n in (1, 2)
            ]
            assert orders[0] != orders[1]
        for rank, seen in enumerate(two_processes):
            assert seen["told the epoch"] == [[1, 0, rank], [2, 1, rank], [3, 2, rank]]

    @pytest.mark.parametrize("name", EVALUATIONS)
    def test_an_evaluation_sees_each_sample_once(self, two_processes, name):
        evaluated = [sample for seen in two_processes for _, *samples in seen[name] for sample in samples]
        assert sorted(evaluated) == list(range(11))


@pytest.mark.distributed
class TestOnFourProcesses:
    """Batches of 2 on each, so that 11 samples are one whole batch of all and 3 more, too few to share."""

    @pytest.mark.parametrize("name", ["shuffled", "on ignite", "in workers", "own sampler"])
    def test_each_sample_is_seen_once_an_epoch_in_as_many_batches_by_all(self, four_processes, name):
        for epoch in (1, 2):
            batches = [[samples for of, *samples in seen[name] if of == epoch] for seen in four_processes]
            assert [len(of_rank) for of_rank in batches] == [1] * 4
            assert sorted(len(of_rank[0]) for of_rank in batches) == [2, 3, 3, 3]
            assert sorted(sample for of_rank in batches for samples in of_rank for sample in samples) == list(range(11))

    def test_dropping_the_last_batch_leaves_as_many_samples_to_each(self, four_processes):
        assert [[len(samples) for _, *samples in seen["drop last"]] for seen in four_processes] == [[2, 2]] * 4

    def test_what_comes_in_turn_is_left_out_where_it_does_not_suffice_for_all(self, four_processes):
        for rank, seen in enumerate(four_processes):
            assert seen["single"] == [[epoch, sample] for epoch in (1, 2) for sample in (rank, rank + 4)]
            assert seen["stream"] == [[1, 2 * rank, 2 * rank + 1]]  # and two batches are left over

    @pytest.mark.parametrize("name", EVALUATIONS)
    def test_an_evaluation_sees_each_sample_once(self, four_processes, name):
        evaluated = [sample for seen in four_processes for _, *samples in seen[name] for sample in samples]
        assert sorted(evaluated) == list(range(11))
