"""Which learning rates are logged, when, and under which names."""

import csv

import pytest
import torch

from camshaft.contrib.lightning.callbacks import LearningRateMonitor
from camshaft.contrib.lightning.loggers import CSVLogger
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


@pytest.fixture
def logged(fit, tmp_path):
    """Fits for two epochs with a monitor, and gives the rows that hold learning rates."""

    def run(model, *, flags=None, **options):
        logger = CSVLogger(tmp_path)
        run.monitor = LearningRateMonitor(**options)
        flags = {"max_epochs": 2, "log_every_n_steps": 1, "limit_val_batches": 0, **(flags or {})}
        run.trainer = fit(model, run.monitor, logger=logger, **flags)
        with open(f"{logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        return [
            {"step": row["step"], **{name: value for name, value in row.items() if name.startswith("lr-")}}
            for row in rows
            if any(name.startswith("lr-") for name in row)
        ]

    return run


def rows(*pairs):
    return [{"step": step, "lr-SGD": pytest.approx(rate)} for step, rate in pairs]


def test_by_default_it_logs_when_the_schedule_changes_it(logged, model_class):
    assert logged(model_class(schedule=True)) == rows((0, 0.1), (3, 0.09))
    assert logged.monitor.lrs == {"lr-SGD": [0.1, pytest.approx(0.09)]}


def test_each_step_when_asked_for(logged, model_class):
    assert logged(model_class(schedule=True), logging_interval="step") == rows(
        (0, 0.1), (1, 0.1), (2, 0.1), (3, 0.09), (4, 0.09), (5, 0.09)
    )


def test_steps_are_those_at_which_the_trainer_logs(logged, model_class):
    flags = {"log_every_n_steps": 2}
    assert logged(model_class(schedule=True), logging_interval="step", flags=flags) == rows(
        (1, 0.1), (3, 0.09), (5, 0.09)
    )


def test_each_epoch_when_asked_for(logged, model_class):
    assert logged(model_class(), logging_interval="epoch") == rows((0, 0.1), (3, 0.1))


def test_callbacks_find_the_rate_among_the_metrics(logged, model_class):
    logged(model_class(schedule=True))
    assert logged.trainer.callback_metrics["lr-SGD"] == pytest.approx(0.09)


def test_each_parameter_group_has_a_name(logged, model_class):
    class Groups(model_class):
        def configure_optimizers(self):
            head = {"params": list(self.head.parameters()), "lr": 0.01, "name": "head"}
            return torch.optim.AdamW([{"params": list(self.backbone.parameters())}, head], lr=0.1, weight_decay=0.5)

    (row,) = logged(
        Groups(), logging_interval="epoch", log_momentum=True, log_weight_decay=True, flags={"max_epochs": 1}
    )
    assert row == {
        "step": 0,
        "lr-AdamW/pg1": 0.1,
        "lr-AdamW/pg1-momentum": 0.9,
        "lr-AdamW/pg1-weight_decay": 0.5,
        "lr-AdamW/head": 0.01,
        "lr-AdamW/head-momentum": 0.9,
        "lr-AdamW/head-weight_decay": 0.5,
    }
    assert logged.monitor.last_momentum_values["lr-AdamW/head-momentum"] == 0.9
    assert logged.monitor.last_weight_decay_values["lr-AdamW/pg1-weight_decay"] == 0.5


def test_optimizers_of_a_kind_are_numbered_and_a_schedule_may_have_a_name(logged, model_class):
    class Several(model_class):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self(batch).square().mean())
                optimizer.step()

        def configure_optimizers(self):
            parts = (self.backbone, self.head, self.head)
            one, two, three = (torch.optim.SGD(part.parameters(), lr=0.1) for part in parts)
            schedule = torch.optim.lr_scheduler.StepLR(three, 1)
            return [one, two, three], [{"scheduler": schedule, "name": "mine"}]

    (row,) = logged(Several(), logging_interval="epoch", flags={"max_epochs": 1})
    assert set(row) == {"step", "lr-SGD", "lr-SGD-1"}
    assert set(logged.monitor.lrs) == {"mine", "lr-SGD", "lr-SGD-1"}


def test_a_group_that_is_added_later_renames_the_first(logged, model_class):
    class Grows(model_class):
        def on_train_epoch_end(self):
            if self.current_epoch == 0:
                extra = torch.nn.Parameter(torch.zeros(1))
                self.trainer.optimizers[0].add_param_group({"params": [extra], "lr": 0.5})

    logged(Grows(), logging_interval="epoch")
    assert logged.monitor.lrs == {"lr-SGD/pg1": [0.1, 0.1], "lr-SGD/pg2": [0.5]}


def test_groups_of_one_name_are_refused(logged, model_class):
    class Twice(model_class):
        def configure_optimizers(self):
            parts = (self.backbone, self.head)
            return torch.optim.SGD([{"params": part.parameters(), "name": "part"} for part in parts], lr=0.1)

    with pytest.raises(MisconfigurationException, match="are called 'part'"):
        logged(Twice())


def test_without_a_logger_it_is_refused(fit, model_class):
    with pytest.raises(MisconfigurationException, match="LearningRateMonitor needs a logger"):
        fit(model_class(), LearningRateMonitor())


def test_an_unknown_interval_is_refused():
    with pytest.raises(MisconfigurationException, match="'step', 'epoch' or None, not 'batch'"):
        LearningRateMonitor(logging_interval="batch")


def test_the_momentum_of_an_optimizer_without_is_zero_with_a_warning(logged, model_class):
    class Plain(model_class):
        def configure_optimizers(self):
            return torch.optim.Adagrad(self.parameters(), lr=0.1)

    with pytest.warns(RuntimeWarning, match="Adagrad has no momentum"):
        (row,) = logged(Plain(), logging_interval="epoch", log_momentum=True, flags={"max_epochs": 1})
    assert row["lr-Adagrad-momentum"] == 0
