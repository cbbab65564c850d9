"""What ``self.log`` comes to: for loggers, callbacks and the progress bar."""

import re
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.loggers import Logger
from camshaft.contrib.lightning.results import How, Results

NUMBERS = DataLoader(torch.arange(10.0), batch_size=4)  # batches of 4, 4 and 2


class Rows(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, params, *args, **kwargs): ...

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


class Model(pl.LightningModule):
    """Logs the mean of each batch.

    Args:
        how: arguments of ``self.log`` while training.
        val_how: while validating.
    """

    def __init__(self, how: dict[str, Any] | None = None, val_how: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.how, self.val_how = how, val_how

    def training_step(self, batch, batch_idx):
        if self.how is not None:
            self.log("x", batch.mean(), **self.how)
        return self.weight.square()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if self.val_how is not None:
            self.log("v", batch.mean(), **self.val_how)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(
    model: pl.LightningModule, val: Any = None, **flags: Any
) -> tuple[pl.Trainer, list[tuple[int, dict[str, float]]]]:
    rows = Rows()
    settings = {"max_epochs": 1, "log_every_n_steps": 1, **flags}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=rows,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, NUMBERS, val)
    return trainer, rows.rows


STEPS = [(0, {"x": 1.5, "epoch": 0}), (1, {"x": 5.5, "epoch": 0}), (2, {"x": 8.5, "epoch": 0})]


def named(value):
    """A name of a parameter that is the same in every process: a function's text has its address in it."""
    return re.sub(r" at 0x\w+|object at .*>", "", str(value)).replace("<built-in method sum of type ", "torch.sum")


@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ({}, STEPS),
        ({"on_step": True, "on_epoch": False}, STEPS),
        ({"on_step": False, "on_epoch": True}, [(2, {"x": 4.5, "epoch": 0})]),
        ({"on_step": False, "on_epoch": True, "batch_size": 1}, [(2, {"x": pytest.approx(15.5 / 3), "epoch": 0})]),
        ({"on_step": False, "on_epoch": True, "reduce_fx": "max"}, [(2, {"x": 8.5, "epoch": 0})]),
        ({"on_step": False, "on_epoch": True, "reduce_fx": min}, [(2, {"x": 1.5, "epoch": 0})]),
        ({"on_step": False, "on_epoch": True, "reduce_fx": torch.sum}, [(2, {"x": 15.5, "epoch": 0})]),
        ({"logger": False}, []),
        (
            {"on_epoch": True},
            [
                *((step, {"x_step": row["x"], "epoch": 0}) for step, row in STEPS),
                (2, {"x_epoch": 4.5, "epoch": 0}),
            ],
        ),
    ],
    ids=named,
)
def test_rows_of_a_training(how, rows):
    assert fitted(Model(how))[1] == rows


@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ({}, [(2, {"v": 4.5, "epoch": 0})]),
        ({"on_step": True, "on_epoch": False}, [(0, {"v": 1.5}), (1, {"v": 5.5}), (2, {"v": 8.5})]),
        (
            {"on_step": True},
            [(0, {"v_step": 1.5}), (1, {"v_step": 5.5}), (2, {"v_step": 8.5}), (2, {"v_epoch": 4.5, "epoch": 0})],
        ),
    ],
    ids=named,
)
def test_rows_of_a_validation(how, rows):
    assert fitted(Model(val_how=how), NUMBERS)[1] == rows


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({"log_every_n_steps": 2}, [1]),
        ({"log_every_n_steps": 0}, []),
        ({"log_every_n_steps": 50}, []),
        ({"accumulate_grad_batches": 2}, [0, 1]),
    ],
    ids=named,
)
def test_rows_come_every_so_many_optimizer_steps(flags, steps):
    assert [step for step, _ in fitted(Model({}), **flags)[1]] == steps


def test_a_row_is_written_when_training_is_to_stop():
    class Stops(Model):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = True

    assert [step for step, _ in fitted(Stops({}), log_every_n_steps=50)[1]] == [0]


def test_a_value_that_is_called_step_is_the_step_of_its_row():
    class Epochs(Model):
        def on_train_epoch_end(self):
            self.log_dict({"loss": 1.0, "step": float(self.current_epoch)})

    assert fitted(Epochs(), max_epochs=2)[1] == [(0, {"loss": 1.0}), (1, {"loss": 1.0})]


def test_callbacks_find_both_names_and_the_progress_bar_those_of_the_rows():
    trainer, _ = fitted(Model({"on_epoch": True, "prog_bar": True}))
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == {
        "x": 4.5,
        "x_step": 8.5,
        "x_epoch": 4.5,
    }
    assert trainer.progress_bar_metrics == {"x_step": 8.5, "x_epoch": 4.5}
    assert set(trainer.logged_metrics) == {"x_step", "x_epoch"}


def test_metrics_are_complete_at_the_end_of_each_batch():
    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert torch.equal(trainer.callback_metrics["x"], batch.mean())
            assert torch.equal(trainer.logged_metrics["x"], batch.mean())

    fitted(Model({}), callbacks=[Looks()])


def test_several_loaders_have_names_of_their_own():
    trainer, rows = fitted(Model(val_how={}), [NUMBERS, DataLoader(torch.ones(2))])
    assert rows == [(2, {"v/dataloader_idx_0": 4.5, "v/dataloader_idx_1": 1.0, "epoch": 0})]
    returned = trainer.validate(dataloaders=[NUMBERS, DataLoader(torch.ones(2))], verbose=False)
    assert returned == [{"v/dataloader_idx_0": 4.5}, {"v/dataloader_idx_1": 1.0}]


def test_one_name_for_several_loaders_is_refused():
    with pytest.raises(ValueError, match="for several loaders, of which the last would win"):
        fitted(Model(val_how={"add_dataloader_idx": False}), [NUMBERS, NUMBERS], num_sanity_val_steps=0)


class Measured(Model):
    """Logs objects of torchmetrics."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torchmetrics.MeanMetric()
        self.several = torchmetrics.MetricCollection(
            {"low": torchmetrics.MinMetric(), "high": torchmetrics.MaxMetric()}
        )

    def training_step(self, batch, batch_idx):
        self.mean(batch)
        self.log("mean", self.mean, on_step=True, on_epoch=True)
        self.several.update(batch)
        self.log_dict(self.several, on_step=False, on_epoch=True)
        return self.weight.square()


def test_metrics_of_torchmetrics_are_computed_over_the_epoch_and_begin_anew():
    _, rows = fitted(Measured(), max_epochs=2)
    epoch = {"mean_epoch": 4.5, "low": 0.0, "high": 9.0}
    steps = [1.5, 5.5, 8.5]
    assert rows == [
        *((step, {"mean_step": value, "epoch": 0}) for step, value in enumerate(steps)),
        (2, {**epoch, "epoch": 0}),
        *((step + 3, {"mean_step": value, "epoch": 1}) for step, value in enumerate(steps)),
        (5, {**epoch, "epoch": 1}),
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "only numbers"),
        (torch.ones(2), "takes one number"),
        ({"a": 1}, "only numbers"),
        (None, "only numbers"),
    ],
    ids=["text", "vector", "mapping", "nothing"],
)
def test_what_is_no_number_is_refused(value, message):
    class Logs(Model):
        def training_step(self, batch, batch_idx):
            self.log("x", value)

    with pytest.raises(ValueError, match=message):
        fitted(Logs())


@pytest.mark.parametrize("hook", ["on_fit_end", "on_train_end", "on_validation_end", "configure_optimizers"])
def test_where_there_is_nothing_to_log_to_is_told(hook):
    def logs(self, *args):
        self.trainer.results.hook = hook
        self.log("x", 1.0)

    with pytest.raises(ValueError, match=f"{hook}\\(\\), where there is nothing to log to"):
        fitted(type("Logs", (Model,), {"on_train_end": logs})())


def test_the_same_name_with_other_arguments_is_refused():
    class Logs(Model):
        def training_step(self, batch, batch_idx):
            self.log("x", 1.0)
            self.log("x", 2.0, prog_bar=True)

    with pytest.raises(ValueError, match=r"twice in training_step.. with different arguments"):
        fitted(Logs())


def test_half_precision_is_averaged_in_single_precision():
    results = Results()
    results.hook = "validation_step"
    for _ in range(300):
        results.add("x", torch.tensor(1.0078125, dtype=torch.bfloat16), How())
    value = results.metrics().callback["x"]
    assert (value.dtype, float(value)) == (torch.float32, pytest.approx(1.0078125, abs=1e-6))


def test_what_was_collected_can_be_kept_and_taken_back():
    def collected(number: int) -> Results:
        results = Results(training=True)
        results.hook = "training_step"
        for index in range(number):
            results.add("x", torch.tensor(0.1 * index), How(on_epoch=True), batch_size=index + 1)
        return results

    whole, half = collected(9), Results(training=True)
    half.load_state_dict(collected(4).state_dict())
    half.hook = "training_step"
    for index in range(4, 9):
        half.add("x", torch.tensor(0.1 * index), How(on_epoch=True), batch_size=index + 1)
    assert torch.equal(half.metrics().callback["x"], whole.metrics().callback["x"])
