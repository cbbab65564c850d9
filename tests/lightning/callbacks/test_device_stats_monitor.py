"""What is logged of the device."""

import csv
import sys

import pytest
import torch

from camshaft.contrib.lightning.callbacks import DeviceStatsMonitor, device_stats_monitor
from camshaft.contrib.lightning.loggers import CSVLogger
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


def test_statistics_are_logged_before_and_after_the_batches_that_are_logged(fit, model_class, tmp_path, monkeypatch):
    monkeypatch.setattr(device_stats_monitor, "cpu_stats", lambda: {"cpu_percent": 12.5})  # psutil may not be there
    logger = CSVLogger(tmp_path)
    fit(model_class(), DeviceStatsMonitor(), logger=logger, log_every_n_steps=2, max_epochs=1, limit_val_batches=0)
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    logged = [(row["step"], sorted(name for name in row if "Monitor" in name)) for row in rows]
    before, after = (f"DeviceStatsMonitor.on_train_batch_{moment}/cpu_percent" for moment in ("start", "end"))
    names = {(step, name) for step, found in logged for name in found}
    assert names == {("1", before), ("1", after)}


def test_of_the_cpu_nothing_is_read_when_told_so(fit, model_class, tmp_path):
    logger = CSVLogger(tmp_path)
    fit(model_class(), DeviceStatsMonitor(cpu_stats=False), logger=logger, log_every_n_steps=1, max_epochs=1)
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
        assert not [name for name in csv.DictReader(file).fieldnames if "Monitor" in name]


def test_without_a_logger_it_is_refused(fit, model_class):
    with pytest.raises(MisconfigurationException, match="DeviceStatsMonitor needs a logger"):
        fit(model_class(), DeviceStatsMonitor())


def test_without_psutil_the_error_says_what_to_do(fit, model_class, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install psutil`, or pass DeviceStatsMonitor\(cpu_stats=False\)"
    ):
        fit(model_class(), DeviceStatsMonitor(), logger=CSVLogger(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_of_a_cuda_device_it_is_the_memory():
    torch.zeros(1, device="cuda")
    assert device_stats_monitor.device_stats(torch.device("cuda"))["allocated_bytes.all.peak"] > 0
