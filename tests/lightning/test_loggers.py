"""What all loggers have in common, and those of services when the service fails."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from camshaft.contrib.lightning import LightningModule, Trainer, loggers
from camshaft.contrib.lightning.loggers import (
    CometLogger,
    CSVLogger,
    DummyLogger,
    Logger,
    MLFlowLogger,
    NeptuneLogger,
    WandbLogger,
)
from camshaft.contrib.lightning.loggers.base import LightningLoggerBase
from camshaft.contrib.lightning.loggers.checkpoints import new_checkpoints
from camshaft.contrib.lightning.loggers.service import ServiceLogger
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only


class Service(ServiceLogger):
    """A logger of a service in memory, which can be out of order."""

    name, version = "service", 0

    def __init__(self, refuses=None, log_model=False):
        super().__init__(log_model)
        self.refuses = refuses  # to begin a run
        self.fails = None  # to take a record
        self.calls = []
        self.uploads = []

    def _start(self):
        if self.refuses is not None:
            raise self.refuses
        return self.calls

    def log_metrics(self, metrics, step=None):
        self._send(lambda calls: self._call(calls, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        self._send(lambda calls: self._call(calls, params))

    def _call(self, calls, what):
        if self.fails is not None:
            raise self.fails
        calls.append(what)

    def _upload(self, experiment, checkpoint, about):
        self.uploads.append((checkpoint.path.name, about["score"], checkpoint.aliases))


@pytest.mark.parametrize("name", loggers.__all__)
def test_every_public_name_is_there(name):
    assert getattr(loggers, name).__module__.startswith("camshaft.contrib.lightning.loggers")


def test_the_base_had_another_name_in_2020():
    assert LightningLoggerBase is loggers.LightningLoggerBase is Logger


def test_a_logger_of_the_program_says_only_how_it_records():
    class Memory(Logger):
        name, version = "memory", 1

        def __init__(self):
            self.rows = []

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, metrics))

        def log_hyperparams(self, params, *args, **kwargs): ...

    logger = Memory()
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.log_graph(torch.nn.Linear(2, 1))
    logger.after_save_checkpoint(None)
    logger.resume_from(1)
    logger.finalize("success")

    assert logger.rows == [(1, {"loss": 0.5})]
    assert (logger.root_dir, logger.log_dir, logger.save_dir, logger.group_separator) == (None, None, None, "/")


def test_a_logger_that_does_not_say_how_it_records_cannot_be_made():
    class Silent(Logger):
        name, version = "silent", 0

    with pytest.raises(TypeError, match="log_metrics"):
        Silent()


def test_the_dummy_takes_every_call():
    logger = DummyLogger()

    assert logger.experiment.add_image("digit", torch.zeros(1)) is None
    assert logger[0].experiment[1].add_scalar("loss", 0.5) is None
    assert logger.log_table(key="digits", data=[]) is None


def test_a_service_that_fails_is_one_warning_and_the_training_goes_on():
    logger = Service()
    logger.log_metrics({"loss": 0.5})
    logger.fails = ConnectionError("no route to host")

    with pytest.warns(UserWarning, match="Service could not send a record, and the training goes on"):
        logger.log_metrics({"loss": 0.25})
    logger.log_metrics({"loss": 0.125})  # silently
    with pytest.warns(UserWarning, match="could not send 2 records"):
        logger.finalize("success")


def test_a_service_is_asked_again_after_a_while(monkeypatch):
    logger = Service()
    logger.log_metrics({"loss": 0.5})
    logger.fails = ConnectionError("no route to host")
    with pytest.warns(UserWarning, match="could not send a record"):
        logger.log_metrics({"loss": 0.25})
    logger.fails = None

    logger.log_metrics({"loss": 0.125})  # dropped at once: a client may wait for long before it gives up
    logger._rest_until = 0.0
    logger.log_metrics({"loss": 0.0625})

    assert logger.calls == [{"loss": 0.5}, {"loss": 0.0625}]


def test_a_service_that_cannot_be_reached_at_the_start_is_a_warning_and_the_experiment_takes_every_call():
    logger = Service(refuses=ConnectionError("no route to host"))

    with pytest.warns(UserWarning, match="could not begin a run, so nothing of this one is recorded there"):
        logger.log_hyperparams({"lr": 0.1})
    logger._experiment.log_image("digit")
    logger._send(lambda experiment: experiment.log_table("digits"))
    logger.finalize("success")

    assert logger.calls == []


def test_arguments_that_the_client_does_not_take_are_an_error_at_once():
    with pytest.raises(TypeError, match="unexpected keyword"):
        Service(refuses=TypeError("unexpected keyword argument")).log_metrics({"loss": 0.5})


def test_a_value_of_log_model_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="log_model is True, False or 'all', but got 'some'"):
        Service(log_model="some")


@pytest.fixture
def checkpoint(tmp_path):
    """A ModelCheckpoint after it has saved."""
    path = tmp_path / "best.ckpt"
    path.write_text("weights")
    return SimpleNamespace(
        best_model_path=str(path),
        best_model_score=torch.tensor(0.5),
        best_k_models={str(path): torch.tensor(0.5)},
        last_model_path="",
        monitor="val_loss",
        save_top_k=1,
    )


def test_checkpoints_are_uploaded_at_the_end(checkpoint):
    logger = Service(log_model=True)
    logger.log_metrics({"loss": 0.5})
    logger.after_save_checkpoint(checkpoint)
    assert logger.uploads == []

    logger.finalize("success")
    assert logger.uploads == [("best.ckpt", 0.5, ["latest", "best"])]


def test_or_when_they_are_saved(checkpoint):
    logger = Service(log_model="all")
    for _ in range(2):
        logger.after_save_checkpoint(checkpoint)

    assert len(logger.uploads) == 1  # it has not changed since


def test_or_never(checkpoint):
    logger = Service()
    logger.log_metrics({"loss": 0.5})
    logger.after_save_checkpoint(checkpoint)
    logger.finalize("success")

    assert logger.uploads == []


def test_a_checkpoint_that_was_saved_again_is_uploaded_again(checkpoint):
    path = Path(checkpoint.best_model_path)
    before = path.stat().st_mtime

    assert new_checkpoints(checkpoint, {str(path): before}) == []
    assert [found.path for found in new_checkpoints(checkpoint, {str(path): before - 1})] == [path]


@pytest.mark.parametrize(
    ("logger_class", "module"),
    [(MLFlowLogger, "mlflow"), (WandbLogger, "wandb"), (CometLogger, "comet_ml"), (NeptuneLogger, "neptune")],
    ids=["mlflow", "wandb", "comet", "neptune"],
)
def test_a_client_that_is_missing_is_an_error_that_says_what_to_install(logger_class, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ModuleNotFoundError, match=f"{logger_class.__name__} needs .*pip install {module}"):
        logger_class()


def record_a_run(logger):
    logger.log_hyperparams({"lr": 0.5, "optimizer": {"name": "SGD"}})
    for step in range(3):
        logger.log_metrics({"loss": 0.5**step, "epoch": 0}, step=step)
    logger.save()


@pytest.mark.filterwarnings("default")  # mlflow's own
def test_mlflow_has_the_numbers_of_a_run(tmp_path, checkpoint):
    pytest.importorskip("mlflow", reason="the client of MLflow is not part of the development environment")
    logger = MLFlowLogger("digits", "first", save_dir=str(tmp_path / "mlruns"), log_model=True)
    record_a_run(logger)
    logger.after_save_checkpoint(checkpoint)
    logger.finalize("success")

    run = logger.experiment.get_run(logger.version)
    assert (run.info.status, run.info.run_name, run.data.params) == (
        "FINISHED",
        "first",
        {"lr": "0.5", "optimizer/name": "SGD"},
    )
    history = logger.experiment.get_metric_history(logger.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert "best/best.ckpt" in [entry.path for entry in logger.experiment.list_artifacts(logger.run_id, "best")]


@pytest.mark.filterwarnings("default")
def test_wandb_has_the_numbers_of_a_run(tmp_path):
    wandb = pytest.importorskip("wandb", reason="the client of wandb is not part of the development environment")
    logger = WandbLogger("first", tmp_path, offline=True)
    record_a_run(logger)
    try:
        assert dict(logger.experiment.config) == {"lr": 0.5, "optimizer": {"name": "SGD"}}
        assert logger.experiment.summary["loss"] == 0.25
        assert logger.version == logger.experiment.id
    finally:
        wandb.finish()


def test_wandb_cannot_upload_while_it_is_offline(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())

    with pytest.raises(MisconfigurationException, match="offline nothing can be uploaded"):
        WandbLogger(offline=True, log_model=True)


def test_only_the_first_process_asks_the_service(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "_rank", 1)
    logger = Service(log_model="all")
    logger.after_save_checkpoint(SimpleNamespace(save_top_k=-1))
    logger.finalize("success")

    assert logger._experiment is None


# ------------------------------------------------------------------------------------------------------ with a trainer


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.save_hyperparameters({"lr": 0.5})

    def training_step(self, batch, batch_idx):
        self.log("loss", torch.tensor(float(batch_idx)))
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.tensor(0.5))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(logger, **arguments):
    trainer = Trainer(
        logger=logger,
        accelerator="cpu",
        max_epochs=2,
        log_every_n_steps=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(Model(), [torch.ones(1, 2)] * 4, [torch.ones(1, 2)])


def test_a_fit_records_every_nth_step_and_each_validation(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(logger)

    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    assert rows == [
        {"epoch": "0", "loss": "1.0", "step": "1"},
        {"epoch": "0", "loss": "3.0", "step": "3"},
        {"epoch": "0", "val_loss": "0.5", "step": "3"},
        {"epoch": "1", "loss": "1.0", "step": "5"},
        {"epoch": "1", "loss": "3.0", "step": "7"},
        {"epoch": "1", "val_loss": "0.5", "step": "7"},
    ]


def test_a_fit_records_the_hyperparameters(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(logger)

    assert Path(logger.log_dir, "hparams.yaml").read_text() == "lr: 0.5\n"


def test_a_fit_goes_on_when_its_service_fails():
    logger = Service()
    logger.fails = ConnectionError("no route to host")

    with pytest.warns(UserWarning, match=r"could not send"):
        fit(logger)


def test_a_fit_in_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OSError, match="CSVLogger cannot write to"):
        fit(CSVLogger(tmp_path / "file"))
