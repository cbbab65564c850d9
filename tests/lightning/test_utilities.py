"""What programs import from the utilities."""

import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from camshaft.contrib.lightning import utilities
from camshaft.contrib.lightning.demos.boring_classes import RandomIterableDataset
from camshaft.contrib.lightning.utilities import rank_zero_deprecation, rank_zero_only, rank_zero_warn
from camshaft.contrib.lightning.utilities.apply_func import apply_to_collection
from camshaft.contrib.lightning.utilities.data import extract_batch_size, has_iterable_dataset, has_len
from camshaft.contrib.lightning.utilities.enums import GradClipAlgorithmType
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.grads import grad_norm
from camshaft.contrib.lightning.utilities.memory import is_oom_error, recursive_detach
from camshaft.contrib.lightning.utilities.model_helpers import get_torchvision_model, is_overridden
from camshaft.contrib.lightning.utilities.parameter_tying import find_shared_parameters, set_shared_parameters
from camshaft.contrib.lightning.utilities.parsing import lightning_getattr, lightning_hasattr, lightning_setattr
from camshaft.contrib.lightning.utilities.rank_zero import LightningDeprecationWarning, WarningCache
from camshaft.contrib.lightning.utilities.seed import (
    isolate_rng,
    pl_worker_init_function,
    reset_seed,
    seed_everything,
)


@pytest.mark.parametrize("name", utilities.__all__)
def test_every_public_name_is_there(name):
    assert getattr(utilities, name) is not None


def test_submodules_are_attributes_without_being_imported():
    code = "import camshaft.contrib.lightning as pl; print(pl.utilities.seed.seed_everything(1))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "1"


def test_importing_the_utilities_alone_imports_no_torch():
    code = "import sys, camshaft.contrib.lightning.utilities; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "False"


# Rank zero.


@pytest.fixture
def rank_one():
    rank_zero_only.rank = 1
    yield
    rank_zero_only.rank = None


def test_a_function_for_rank_zero_gives_its_default_elsewhere(rank_one):
    assert rank_zero_only(lambda: 1)() is None
    assert rank_zero_only(lambda: 1, default=2)() == 2


def test_a_function_for_rank_zero_runs_there():
    @rank_zero_only
    def double(x):
        return 2 * x

    assert (double(2), double.__name__) == (4, "double")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"])
def test_the_rank_is_what_a_launcher_has_set(monkeypatch, name):
    for other in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "3")
    assert rank_zero_only.rank == 3


def test_a_warning_names_the_line_that_gave_it():
    with pytest.warns(UserWarning, match="careful") as warned:
        rank_zero_warn("careful")
    assert warned[0].filename == __file__


def test_other_ranks_do_not_warn(rank_one):
    rank_zero_warn("careful")


def test_deprecation_has_a_category_of_its_own():
    with pytest.warns(LightningDeprecationWarning, match="old") as warned:
        rank_zero_deprecation("old")
    assert warned[0].filename == __file__


def test_a_cache_warns_once():
    cache = WarningCache()
    with pytest.warns(UserWarning, match="careful") as warned:
        cache.warn("careful")
    cache.warn("careful")
    assert warned[0].filename == __file__


# Seeds.


def drawn():
    return torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.setenv("PL_SEED_WORKERS", "0")


def test_one_seed_decides_all_numbers():
    seed_everything(3, verbose=False)
    first = drawn()
    seed_everything(3, verbose=False)
    assert drawn() == first


def test_processes_that_are_started_find_the_seed():
    seed_everything(3, workers=True)
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("3", "1")


def test_without_a_seed_that_of_the_environment_counts(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert seed_everything() == 5


def test_without_any_seed_it_is_zero_and_says_so():
    with pytest.warns(UserWarning, match="the seed is 0"):
        assert seed_everything() == 0


@pytest.mark.parametrize("seed", [-1, 2**32, "x"], ids=str)
def test_another_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"from 0 to 4294967295, but got"):
        seed_everything(seed)


def test_a_seed_of_another_type_of_number_is_taken():
    assert seed_everything(np.int64(3), verbose=False) == 3


def test_reset_seed_begins_again():
    seed_everything(3, verbose=False)
    first = drawn()
    reset_seed()
    assert drawn() == first


def test_reset_seed_without_a_seed_changes_nothing():
    state = torch.get_rng_state()
    reset_seed()
    assert torch.equal(torch.get_rng_state(), state)


def test_isolated_numbers_leave_no_trace():
    with isolate_rng():
        inside = drawn()
    assert drawn() == inside


def test_workers_of_each_process_draw_numbers_of_their_own():
    numbers = []
    for rank, worker in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.manual_seed(7 + worker)  # as a loader seeds its workers
        pl_worker_init_function(worker, rank)
        numbers.append(drawn())
    assert len(set(numbers)) == 4


# Gradients.


@pytest.mark.parametrize("p", [1, 2.0, "inf"], ids=str)
def test_the_total_norm_is_that_of_all_gradients_as_one_vector(p):
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    network(torch.randn(4, 3)).sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    norms = grad_norm(network, p)
    assert torch.allclose(norms[f"grad_{float(p)}_norm_total"], gradients.norm(float(p)))
    assert len(norms) == 5


def test_without_gradients_there_are_no_norms():
    assert grad_norm(nn.Linear(1, 1), 2) == {}


@pytest.mark.parametrize("p", [0, -1], ids=str)
def test_another_norm_is_refused(p):
    with pytest.raises(ValueError, match="above 0"):
        grad_norm(nn.Linear(1, 1), p)


# Attributes of a module, its hyperparameters and its data.


class _Trainer:
    def __init__(self, datamodule):
        self.datamodule = datamodule


class _Owner:
    def __init__(self, datamodule=None, **hparams):
        self.hparams = hparams
        self._trainer = _Trainer(datamodule)


def test_an_attribute_is_found_and_set_wherever_it_is():
    data = _Owner(batch_size=4)
    data.batch_size = 4
    model = _Owner(data, batch_size=2)
    assert (lightning_hasattr(model, "batch_size"), lightning_getattr(model, "batch_size")) == (True, 4)
    lightning_setattr(model, "batch_size", 8)
    assert (model.hparams["batch_size"], data.batch_size, data.hparams["batch_size"]) == (8, 8, 8)


def test_an_attribute_that_is_nowhere_is_told_by_name():
    with pytest.raises(AttributeError, match=r"nor the data module have 'lr': assign self\.lr"):
        lightning_getattr(_Owner(), "lr")


# Nested data.


def test_what_is_of_a_type_is_changed_wherever_it_is():
    data = {"a": 1, "b": [True, ("x", 2)]}
    changed = apply_to_collection(data, int, lambda number: number + 1, wrong_dtype=bool)
    assert changed == {"a": 2, "b": [True, ("x", 3)]}


def test_the_size_of_a_batch_is_that_of_its_first_tensor():
    assert extract_batch_size(["names", {"x": torch.ones(3, 2)}, torch.ones(5)]) == 3
    assert extract_batch_size(torch.tensor(1.0)) == 1
    with pytest.raises(MisconfigurationException, match="no tensor in the batch"):
        extract_batch_size(["names"])


def test_lengths_are_told_where_there_are_some():
    endless = torch.utils.data.DataLoader(RandomIterableDataset(2, 3))
    short = torch.utils.data.DataLoader([1, 2])
    assert (has_len(endless), has_iterable_dataset(endless)) == (False, True)
    assert (has_len(short), has_iterable_dataset(short)) == (True, False)


# The rest.


@pytest.mark.parametrize(
    ("error", "is_oom"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("CUDA out of memory"), False),
    ],
    ids=["cuda", "old cuda", "cpu", "python", "another", "another kind"],
)
def test_too_little_memory_is_recognised(error, is_oom):
    assert is_oom_error(error) is is_oom


def test_the_allocation_of_too_much_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert is_oom_error(raised.value)


def test_detached_data_has_no_graph():
    data = {"a": [torch.ones(1, requires_grad=True) * 2]}
    assert not recursive_detach(data, to_cpu=True)["a"][0].requires_grad


def test_shared_parameters_are_found_and_shared_again():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    shared = find_shared_parameters(network)
    network[1].weight = nn.Parameter(torch.zeros(2, 2))
    set_shared_parameters(network, shared)
    assert network[1].weight is network[0].weight


def test_names_of_algorithms_are_told_apart_from_others():
    assert GradClipAlgorithmType.supported_type("norm")
    assert not GradClipAlgorithmType.supported_type("other")


def test_a_method_is_compared_with_that_of_the_given_parent():
    class Parent:
        def method(self): ...

    class Child(Parent):
        def method(self): ...

    assert is_overridden("method", Child(), Parent)
    assert not is_overridden("method", Parent(), Parent)
    with pytest.raises(ValueError, match="no method 'other'"):
        is_overridden("other", Child(), Parent)


def test_models_of_torchvision_are_made_by_name():
    pytest.importorskip("torchvision", reason="an optional package")
    assert get_torchvision_model("resnet18", num_classes=3).fc.out_features == 3


def test_possible_mistakes_can_be_silenced():
    from camshaft.contrib.lightning.utilities.warnings import (  # noqa: PLC0415
        PossibleUserWarning,
        disable_possible_user_warnings,
    )

    with warnings.catch_warnings():
        disable_possible_user_warnings()
        warnings.warn("perhaps", PossibleUserWarning, stacklevel=1)
