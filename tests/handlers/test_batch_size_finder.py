import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from camshaft.handlers import BatchSizeFinder, OptimizerStep


class Program:
    def __init__(self, engine_of, fits):
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.fits, self.sizes = fits, []
        self.engine = engine_of(self.step, OptimizerStep(torch.optim.Adam(self.model.parameters())))

    def step(self, engine, batch):
        self.sizes.append(len(batch))
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.model(batch).square().mean()

    @staticmethod
    def data(size):
        return DataLoader(torch.ones(1000, 2), batch_size=size)


def test_the_size_is_doubled_while_it_fits(engine_of):
    program = Program(engine_of, fits=100)
    assert BatchSizeFinder(batches=1).run(program.engine, program.data) == 64
    assert program.sizes == [2, 4, 8, 16, 32, 64, 128]


def test_the_limit_itself_is_found_by_bisection(engine_of):
    program = Program(engine_of, fits=100)
    assert BatchSizeFinder(bisect=True).run(program.engine, program.data) == 100


def test_a_first_size_that_does_not_fit_is_halved(engine_of):
    program = Program(engine_of, fits=10)
    assert BatchSizeFinder(64).run(program.engine, program.data) == 8


def test_so_many_batches_of_each_size_are_run(engine_of):
    program = Program(engine_of, fits=4)
    BatchSizeFinder(2, batches=3).run(program.engine, program.data)
    assert program.sizes == [2, 2, 2, 4, 4, 4, 8]


def test_the_largest_size_is_not_passed(engine_of):
    program = Program(engine_of, fits=10**9)
    assert BatchSizeFinder(largest=100).run(program.engine, program.data) == 100


def test_more_than_there_are_samples_is_not_tried(engine_of):
    program = Program(engine_of, fits=10**9)
    assert BatchSizeFinder(batches=1).run(program.engine, program.data) == 1024
    assert max(program.sizes) == 1000


def test_the_model_and_the_engine_are_as_they_were(engine_of):
    program = Program(engine_of, fits=10)
    weight = program.model.weight.detach().clone()
    BatchSizeFinder().run(program.engine, program.data)
    assert torch.equal(program.model.weight, weight)
    assert program.engine.state.iteration == 0
    assert program.engine.run(program.data(5)).iteration == 200


def test_another_error_is_raised(engine_of):
    program = Program(engine_of, fits=10)
    with pytest.raises(RuntimeError, match="shapes"):
        BatchSizeFinder().run(program.engine, lambda size: [torch.ones(size, 3)])


def test_too_little_memory_for_one_sample_is_said(engine_of):
    program = Program(engine_of, fits=0)
    with pytest.raises(RuntimeError, match="BatchSizeFinder found no size that fits into memory, down to 1"):
        BatchSizeFinder().run(program.engine, program.data)


@pytest.mark.parametrize("name", ["first", "largest", "batches"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        BatchSizeFinder(**{name: 0})
