"""Which devices the flags mean, on a machine with GPUs and on one without."""

import importlib.util

import pytest
import torch

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.devices import device_ids, gpu_ids, kind_of, number_of_devices, root_device


@pytest.fixture
def without_gpus(monkeypatch):
    """A machine without accelerators, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def four_gpus(monkeypatch):
    """A machine with four GPUs, as far as torch tells; nothing is computed on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


# gpus=


@pytest.mark.parametrize("gpus", [None, 0, "0", " 0 ", "", [], "None"], ids=repr)
def test_no_gpus_mean_the_cpu(gpus):
    assert gpu_ids(gpus) == []


@pytest.mark.parametrize(
    ("gpus", "ids"),
    [
        (2, [0, 1]),
        ("2", [0, 1]),
        ("0,1", [0, 1]),
        ("1, 3", [1, 3]),
        ("3,", [3]),
        ("[1, 2]", [1, 2]),
        ([1, 2], [1, 2]),
        (["1", "2"], [1, 2]),
        (-1, [0, 1, 2, 3]),
        ("-1", [0, 1, 2, 3]),
        ([-1], [0, 1, 2, 3]),
    ],
    ids=repr,
)
def test_gpus_are_a_number_or_a_list_or_text_with_either(gpus, ids, four_gpus):
    assert gpu_ids(gpus) == ids


@pytest.mark.parametrize(
    ("gpus", "asked"),
    [(1, "1 GPU"), (2, "2 GPUs"), ("2", "2 GPUs"), ("0,1", "2 GPUs"), ([3], "1 GPU"), (-1, "all GPUs")],
    ids=repr,
)
def test_gpus_are_an_error_where_there_are_none(gpus, asked, without_gpus):
    with pytest.raises(ValueError, match=f"asks for {asked}, but there is none here. Leave gpus out, or give 0"):
        gpu_ids(gpus)


@pytest.mark.parametrize("gpus", [5, [4], "0,7"], ids=repr)
def test_gpus_that_are_not_there_are_told_with_those_that_are(gpus, four_gpus):
    with pytest.raises(ValueError, match=r"there are only 4 cuda device\(s\) here: 0, 1, 2, 3"):
        gpu_ids(gpus)


@pytest.mark.parametrize("gpus", [True, "two", 1.5, {"a": 1}, ["a"], "1 2"], ids=repr)
def test_gpus_of_another_form_are_refused(gpus):
    with pytest.raises(ValueError, match="give a number of devices, or their numbers"):
        gpu_ids(gpus)


@pytest.mark.parametrize("gpus", [-2, [0, 0], [-1, 0]], ids=repr)
def test_gpus_that_make_no_sense_are_refused(gpus, four_gpus):
    with pytest.raises(ValueError, match="at least one device, and each of them once"):
        gpu_ids(gpus)


def test_the_trainer_refuses_gpus_that_are_not_there(without_gpus):
    with pytest.raises(ValueError, match=r"Trainer\(gpus='2'\) asks for 2 GPUs, but there is none here"):
        pl.Trainer(gpus="2")


# accelerator= and devices=


def test_auto_is_the_cpu_where_there_is_nothing_else(without_gpus):
    assert kind_of("auto") == "cpu"


def test_auto_is_the_gpu_where_there_is_one(four_gpus):
    assert (kind_of("auto"), kind_of("gpu")) == ("cuda", "cuda")


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_an_error(accelerator, without_gpus):
    with pytest.raises(ValueError, match=rf"Trainer\(accelerator='{accelerator}'\): there is no GPU here"):
        kind_of(accelerator)


def test_a_tpu_needs_torch_xla():
    if importlib.util.find_spec("torch_xla") is not None:
        pytest.skip("torch_xla is here")
    with pytest.raises(ValueError, match=r"Trainer\(accelerator='tpu'\): .*needs torch_xla of the same version"):
        kind_of("tpu")


def test_one_process_uses_one_tpu_core():
    assert device_ids(1, "xla") == [0]
    with pytest.raises(ValueError, match="one process uses one TPU core"):
        device_ids(8, "xla")


def test_a_strategy_is_no_accelerator():
    with pytest.raises(ValueError, match=r"Trainer\(accelerator='ddp'\): it is 'auto', 'cpu'.* goes to strategy="):
        kind_of("ddp")


@pytest.mark.parametrize(("devices", "ids"), [(1, [0]), ("3", [0, 1, 2]), ("auto", [0]), (None, [0])], ids=repr)
def test_devices_of_a_cpu_are_processes(devices, ids):
    assert device_ids(devices, "cpu") == ids


def test_a_cpu_cannot_be_counted():
    with pytest.raises(ValueError, match="means all devices, but a CPU is not counted: give a number"):
        device_ids(-1, "cpu")


@pytest.mark.parametrize(("devices", "number"), [(3, 3), ("2", 2), ("0,1", 2), ([4], 1), ("auto", 1)], ids=repr)
def test_devices_are_counted_whether_they_are_there_or_not(devices, number):
    assert number_of_devices(devices) == number


def test_each_local_rank_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert root_device("cuda", [2, 3]) == torch.device("cuda", 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_training_on_a_gpu_moves_module_and_batches():
    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            assert batch.is_cuda
            return {"loss": self.layer(batch).mean()}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Model()
    trainer = pl.Trainer(gpus="1", max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(model, [torch.ones(4, 2)] * 2)
    assert model.device == torch.device("cuda", 0)
