"""The table of a run in Lightning's place and form."""

import csv
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from camshaft.contrib.lightning.loggers import CSVLogger
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only


def rows_of(logger):
    with Path(logger.log_dir, "metrics.csv").open() as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_a_version_is_a_directory_of_the_experiment(tmp_path):
    logger = CSVLogger(tmp_path, name="digits", version=3)

    assert (logger.save_dir, logger.root_dir) == (str(tmp_path), str(tmp_path / "digits"))
    assert logger.log_dir == str(tmp_path / "digits" / "version_3")


def test_without_a_name_the_versions_are_in_the_directory_itself(tmp_path):
    assert CSVLogger(tmp_path, name=None, version="first").log_dir == str(tmp_path / "first")


def test_the_version_is_the_first_number_that_is_free(tmp_path):
    for name in ("version_0", "version_7", "version_x", "other_9"):
        (tmp_path / "lightning_logs" / name).mkdir(parents=True)

    assert CSVLogger(tmp_path).version == 8


def test_the_columns_are_in_alphabetical_order_and_a_cell_is_empty_where_nothing_is_new(tmp_path):
    logger = CSVLogger(tmp_path, version=0)
    logger.log_metrics({"loss": torch.tensor(0.5), "epoch": 0}, step=4)
    logger.log_metrics({"accuracy": 0.25}, step=9)
    logger.save()

    text = Path(logger.log_dir, "metrics.csv").read_text()
    assert text == "accuracy,epoch,loss,step\n,0,0.5,4\n0.25,,,9\n"


def test_columns_of_names_that_appear_later_are_added_to_the_rows_before(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.save()
    logger.log_metrics({"loss": 0.25, "accuracy": 1.0}, step=1)
    logger.save()

    assert rows_of(logger) == [{"loss": "0.5", "step": "0"}, {"loss": "0.25", "accuracy": "1.0", "step": "1"}]


def test_a_prefix_stands_before_each_name(tmp_path):
    logger = CSVLogger(tmp_path, prefix="first")
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.save()

    assert rows_of(logger) == [{"first-loss": "0.5", "step": "0"}]


def test_without_a_step_rows_are_numbered(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 0.5})
    logger.log_metrics({"loss": 0.25})
    logger.save()

    assert [row["step"] for row in rows_of(logger)] == ["0", "1"]


def test_what_waits_is_written_after_the_given_number_of_steps(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=3)
    written = []
    for step in range(6):
        logger.log_metrics({"loss": 0.5}, step=step)
        written.append(len(rows_of(logger)) if Path(logger.log_dir, "metrics.csv").exists() else 0)

    assert written == [0, 0, 3, 3, 3, 6]


def test_the_end_of_a_run_writes_what_waits(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.finalize("failed")

    assert len(rows_of(logger)) == 1


def test_the_end_of_a_run_that_logged_nothing_makes_no_directory(tmp_path):
    CSVLogger(tmp_path).finalize("success")

    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_are_beside_the_table_as_yaml(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams(Namespace(lr=0.1, layers=(4, 2), optimizer={"name": "SGD"}, loss=torch.nn.MSELoss))

    values = yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text())
    assert values == {"lr": 0.1, "layers": [4, 2], "optimizer": {"name": "SGD"}, "loss": "MSELoss"}


def test_a_run_that_resumes_drops_the_rows_after_its_checkpoint(tmp_path):
    lost = CSVLogger(tmp_path, version=0)
    for step in range(6):
        lost.log_metrics({"loss": float(step)}, step=step)
    lost.save()

    resumed = CSVLogger(tmp_path, version=0)
    resumed.resume_from(4)
    resumed.log_metrics({"loss": 40.0}, step=4)
    resumed.save()

    assert [row["loss"] for row in rows_of(resumed)] == ["0.0", "1.0", "2.0", "3.0", "40.0"]


def test_a_run_that_resumes_in_a_later_version_of_the_logger_keeps_columns_that_it_does_not_know(tmp_path):
    lost = CSVLogger(tmp_path, version=0)
    lost.log_metrics({"loss": 1.0, "old": 2.0}, step=0)
    lost.save()

    resumed = CSVLogger(tmp_path, version=0)
    resumed.resume_from(1)
    resumed.log_metrics({"loss": 0.5, "new": 3.0}, step=1)
    resumed.save()

    assert rows_of(resumed) == [
        {"loss": "1.0", "old": "2.0", "step": "0"},
        {"loss": "0.5", "new": "3.0", "step": "1"},
    ]


def test_that_also_holds_for_a_logger_that_the_program_has_used_before(tmp_path):
    lost = CSVLogger(tmp_path, version=0)
    for step in range(3):
        lost.log_metrics({"loss": float(step)}, step=step)
    lost.save()

    resumed = CSVLogger(tmp_path, version=0)
    resumed.log_hyperparams({"lr": 0.1})
    resumed.save()
    resumed.resume_from(2)
    resumed.save()

    assert [row["loss"] for row in rows_of(resumed)] == ["0.0", "1.0"]


def test_one_logger_can_go_back(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in range(4):
        logger.log_metrics({"loss": float(step)}, step=step)
    logger.resume_from(1)
    logger.log_metrics({"loss": 10.0}, step=1)
    logger.save()

    assert [row["loss"] for row in rows_of(logger)] == ["0.0", "10.0"]


def test_the_end_of_an_epoch_that_was_logged_after_its_checkpoint_is_not_there_twice(tmp_path):
    lost = CSVLogger(tmp_path, version=0)
    lost.log_metrics({"loss": 0.5}, step=9)
    lost.log_metrics({"val_loss": 0.25}, step=9)  # here the checkpoint is saved, after 10 steps
    lost.log_metrics({"loss_epoch": 0.75}, step=9)
    lost.save()

    resumed = CSVLogger(tmp_path, version=0)
    resumed.resume_from(10)
    resumed.log_metrics({"loss_epoch": 0.75}, step=9)
    resumed.log_metrics({"loss": 0.125}, step=10)
    resumed.save()

    assert [sorted(row) for row in rows_of(resumed)] == [
        ["loss", "step"],
        ["step", "val_loss"],
        ["loss_epoch", "step"],
        ["loss", "step"],
    ]


def test_a_row_that_a_kill_cut_in_the_middle_is_left_out_when_the_run_resumes(tmp_path):
    path = tmp_path / "lightning_logs" / "version_0" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("loss,step\n0.5,0\n0.25,1\n0.12")

    resumed = CSVLogger(tmp_path, version=0)
    resumed.resume_from(2)
    resumed.log_metrics({"loss": 0.125}, step=2)
    resumed.save()

    assert [row["loss"] for row in rows_of(resumed)] == ["0.5", "0.25", "0.125"]


def test_a_new_run_in_the_version_of_an_earlier_one_keeps_its_table_under_another_name(tmp_path):
    for loss in (0.5, 0.25, 0.125):
        logger = CSVLogger(tmp_path, version=0)
        logger.log_metrics({"loss": loss}, step=0)
        logger.save()

    directory = Path(logger.log_dir)
    kept = {path.name: path.read_text().split()[1] for path in directory.iterdir()}
    assert kept == {"metrics.1.csv": "0.5,0", "metrics.2.csv": "0.25,0", "metrics.csv": "0.125,0"}


def test_a_directory_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OSError, match=r"CSVLogger cannot write to .*file/lightning_logs/version_0.* another directory"):
        CSVLogger(tmp_path / "file").save()


def test_an_address_is_refused():
    with pytest.raises(ValueError, match="local directory, but got save_dir='s3://bucket/logs'"):
        CSVLogger("s3://bucket/logs")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "_rank", 1)
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.experiment.anything("at all")
    logger.finalize("success")

    assert list(tmp_path.iterdir()) == []


def test_a_logger_can_be_sent_to_another_process(tmp_path):
    logger = CSVLogger(tmp_path, name="digits")
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.save()

    assert pickle.loads(pickle.dumps(logger)).log_dir == logger.log_dir
