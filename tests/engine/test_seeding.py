import os
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from camshaft import seed_everything


def numbers():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


@pytest.fixture
def _restored():
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_the_same_seed_makes_the_same_numbers_and_is_returned():
    assert seed_everything(5) == 5
    first = numbers()
    seed_everything(5)
    assert numbers() == first
    seed_everything(6)
    assert numbers() != first


def test_workers_take_their_seeds_from_it():
    class Random(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.tensor([torch.rand(1).item(), random.random()])

    def drawn():
        seed_everything(7)
        return torch.cat(list(DataLoader(Random(), num_workers=2)))

    assert torch.equal(drawn(), drawn())
    assert len(drawn()[:, 0].unique()) == 4


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "1"])
def test_a_seed_that_numpy_does_not_take_is_refused(seed):
    with pytest.raises(ValueError, match=r"A seed is an integer from 0 to 4294967295, but got"):
        seed_everything(seed)


@pytest.mark.usefixtures("_restored")
def test_deterministic_algorithms_are_asked_for_only_if_wanted():
    seed_everything(1)
    assert not torch.are_deterministic_algorithms_enabled()
    seed_everything(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
