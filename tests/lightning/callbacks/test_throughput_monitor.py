"""How many batches, samples and operations a second."""

import csv

import pytest

from camshaft.contrib.lightning.callbacks import ThroughputMonitor
from camshaft.contrib.lightning.callbacks.throughput_monitor import Throughput
from camshaft.contrib.lightning.loggers import CSVLogger


def updated(throughput, *times, samples=10, flops=None):
    for number, time in enumerate(times, start=1):
        throughput.update(
            time=time, batches=number, samples=number * samples, lengths=number * samples * 2, flops=flops
        )
    return throughput


def test_before_the_window_is_full_there_are_totals_only():
    throughput = updated(Throughput(window_size=3), 1.0, 2.0)
    assert throughput.compute() == {"time": 2.0, "batches": 2, "samples": 20, "lengths": 40}


def test_rates_are_those_of_the_window():
    throughput = updated(Throughput(window_size=3), 1.0, 100.0, 101.0, 102.0)
    rates = {name: rate for name, rate in throughput.compute().items() if name.startswith("device")}
    assert rates == {
        "device/batches_per_sec": 1.0,
        "device/samples_per_sec": 10.0,
        "device/items_per_sec": 20.0,
    }


def test_with_several_devices_there_are_the_rates_of_all_beside_those_of_each():
    metrics = updated(Throughput(window_size=2, world_size=4, separator="."), 1.0, 2.0).compute()
    assert (metrics["batches_per_sec"], metrics["samples_per_sec"], metrics["items_per_sec"]) == (4.0, 40.0, 80.0)
    assert metrics["device.samples_per_sec"] == 10.0


def test_operations_are_a_share_of_what_the_device_can_do():
    metrics = updated(Throughput(window_size=2, available_flops=1e6, world_size=2), 1.0, 3.0, flops=1000).compute()
    assert metrics["device/flops_per_sec"] == 500.0
    assert metrics["flops_per_sec"] == 1000.0
    assert metrics["device/mfu"] == 0.0005


def test_a_reset_begins_anew():
    throughput = updated(Throughput(window_size=2), 5.0, 6.0)
    throughput.reset()
    assert updated(throughput, 1.0).compute()["batches"] == 1


@pytest.mark.parametrize(
    ("totals", "complaint"),
    [
        ({"time": 1.0, "batches": 2, "samples": 20}, "The total of time grows, but 1.0 follows 1.0"),
        ({"time": 2.0, "batches": 2, "samples": 10}, "The total of samples grows"),
        ({"time": 2.0, "batches": 20, "samples": 11}, "at least a sample"),
        ({"time": 2.0, "batches": 2, "samples": 20, "lengths": 19}, "a length of 1"),
    ],
    ids=["time", "samples", "batches", "lengths"],
)
def test_totals_that_cannot_be_are_refused(totals, complaint):
    throughput = Throughput()
    throughput.update(time=1.0, batches=1, samples=10)
    with pytest.raises(ValueError, match=complaint):
        throughput.update(**totals)


def test_a_window_of_one_is_refused(fit, model_class):
    with pytest.raises(ValueError, match="at least two updates, but window_size is 1"):
        fit(model_class(), ThroughputMonitor(len, window_size=1))


def test_each_stage_logs_its_own(trainer_with, model_class, batches, tmp_path):
    class Counted(model_class):
        flops_per_batch = 1000

    logger = CSVLogger(tmp_path)
    monitor = ThroughputMonitor(len, length_fn=lambda batch: batch.numel(), window_size=2)
    trainer = trainer_with(monitor, logger=logger, log_every_n_steps=1, max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(Counted(), batches, batches)
    trainer.test(dataloaders=batches, verbose=False)
    trainer.predict(dataloaders=batches)
    logger.save()
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    for stage in ("train", "validate", "test", "predict"):
        of_stage = [row for row in rows if f"{stage}/batches" in row]
        assert [(row[f"{stage}/batches"], row[f"{stage}/samples"], row[f"{stage}/lengths"]) for row in of_stage] == [
            (1, 4, 8),
            (2, 8, 16),
            (3, 12, 24),
        ]
        assert f"{stage}/device/flops_per_sec" in of_stage[1]
        assert of_stage[1][f"{stage}/device/samples_per_sec"] == pytest.approx(
            4 * of_stage[1][f"{stage}/device/batches_per_sec"]
        )


def test_accumulated_batches_are_logged_together(fit, model_class, tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = ThroughputMonitor(len)
    fit(model_class(), monitor, logger=logger, log_every_n_steps=1, max_epochs=1, accumulate_grad_batches=2)
    with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
        assert [row["train/batches"] for row in csv.DictReader(file) if row["train/batches"]] == ["2", "3"]
