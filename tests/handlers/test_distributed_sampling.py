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
        engine = engine_of(lambda engine, batch: seen.append(batch.item()), DistributedSampling())
        engine.run(DataLoader(range(4), shuffle=True))
        assert sorted(seen) == [0, 1, 2, 3]

    def test_leaves_a_distributed_sampler_alone(self, engine_of):
        sampler = DistributedSampler(range(4), num_replicas=1, rank=0)
        loader = DataLoader(range(4), sampler=sampler)
        engine_of(lambda engine, batch: None, DistributedSampling(loader)).run(loader, max_epochs=3)
        assert sampler.epoch == 0

    def test_works_without_data(self, engine_of):
        assert engine_of(lambda engine, batch: None, DistributedSampling()).run(epoch_length=2).iteration == 2


def test_two_of_them_are_refused():
    engine = Engine(lambda engine, batch: None).attach(DistributedSampling(), DistributedSampling())
    with pytest.raises(ValueError, match="keep one of them"):
        engine.run([0])


PROGRAM = """
import json, sys
import torch
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler
from camshaft.engine import Engine
from camshaft.handlers import DistributedSampling

store, rank, result = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
data = list(range(8))
seen = {}

def run(name, engine_class, loader, *arguments, epochs=2, over=None):
    batches = seen[name] = []
    engine = engine_class(lambda engine, batch: batches.append([engine.state.epoch, *batch.tolist()]))
    DistributedSampling(*arguments).attach(engine)
    try:
        engine.run(loader if over is None else over, max_epochs=epochs)
    except ValueError as error:
        seen[name] = str(error)

def distributed(seed=0):
    return DataLoader(data, batch_size=2, sampler=DistributedSampler(data, seed=seed))

run("camshaft", Engine, distributed())
run("ignite", IgniteEngine, distributed())
by_hand = seen["by hand"] = []
loader = distributed()
for epoch in range(2):
    loader.sampler.set_epoch(epoch)
    by_hand += [[epoch + 1, *batch.tolist()] for batch in loader]
run("batch sampler", Engine, DataLoader(data, batch_sampler=BatchSampler(DistributedSampler(data), 2, False)))

class OwnBatches:
    epoch = None
    def set_epoch(self, epoch):
        self.epoch = epoch
    def __iter__(self):
        yield [self.epoch, rank]
run("own batch sampler", Engine, DataLoader(data, batch_sampler=OwnBatches()), epochs=3)

class Stream(IterableDataset):
    def __iter__(self):
        yield from data[rank::2]
run("stream", Engine, DataLoader(Stream(), batch_size=2), epochs=1)

given = distributed()
run("given", Engine, given, given, over=[torch.ones(1)])
seen["given"] = given.sampler.epoch
run("random", Engine, DataLoader(data, shuffle=True))
run("random of ignite", IgniteEngine, DataLoader(data))
run("list", Engine, [torch.tensor([1])], epochs=1)
with open(result, "w") as file:
    json.dump(seen, file)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two real processes saw."""
    folder = tmp_path_factory.mktemp("two_processes")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(program), str(folder / "store")]
    results = [folder / f"{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen([*command, str(rank), str(result)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank, result in enumerate(results)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [json.loads(result.read_text()) for result in results]


@pytest.mark.distributed
class TestOnTwoProcesses:
    @pytest.mark.parametrize("engine", ["camshaft", "ignite"])
    def test_each_sees_its_part_in_another_order_each_epoch_as_in_a_loop_by_hand(self, two_processes, engine):
        orders = []
        for seen in two_processes:
            assert seen[engine] == seen["by hand"]
        for epoch in (1, 2):
            parts = [
                [sample for batch_epoch, *batch in seen[engine] for sample in batch if batch_epoch == epoch]
                for seen in two_processes
            ]
            assert sorted(parts[0] + parts[1]) == list(range(8))
            orders.append(parts)
        assert orders[0] != orders[1]

    def test_a_sampler_within_a_sampler_of_batches_is_told_the_epoch(self, two_processes):
        assert all(seen["batch sampler"] == seen["by hand"] for seen in two_processes)

    def test_a_sampler_of_batches_is_told_the_epoch(self, two_processes):
        for rank, seen in enumerate(two_processes):
            assert seen["own batch sampler"] == [[1, 0, rank], [2, 1, rank], [3, 2, rank]]

    def test_a_stream_is_left_to_split_itself(self, two_processes):
        assert [seen["stream"] for seen in two_processes] == [[[1, 0, 2], [1, 4, 6]], [[1, 1, 3], [1, 5, 7]]]

    def test_the_sampler_of_a_given_loader_is_told_the_epoch(self, two_processes):
        assert [seen["given"] for seen in two_processes] == [1, 1]

    def test_a_loader_that_gives_all_data_to_each_process_is_refused(self, two_processes):
        for seen in two_processes:
            assert seen["random"].startswith("There are 2 processes, but the DataLoader has a RandomSampler")
            assert "SequentialSampler" in seen["random of ignite"]

    def test_data_without_a_sampler_is_taken_as_it_is(self, two_processes):
        assert all(seen["list"] == [[1, 1]] for seen in two_processes)
