"""What modules of early 2020 return, and the methods and hooks that they had by other names or with other arguments."""

import pytest
import torch
from torch import nn

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.hooks import Hooks
from camshaft.contrib.lightning.old_style import end_epoch, is_old, take_logs
from camshaft.contrib.lightning.results import How, Results

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 1,
}


class Model(pl.LightningModule):
    """One layer; four batches to train on, two to validate and test on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.calls = []

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        return {"loss": self(batch).square().mean()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return [torch.ones(4, 2) * (number + 1) for number in range(4)]

    def val_dataloader(self):
        return [torch.ones(4, 2) * (number + 1) for number in range(2)]

    def test_dataloader(self):
        return self.val_dataloader()


class Recorder(pl.loggers.Logger):
    """Keeps what it is given."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params, *more):
        pass


# Returns


def test_values_under_log_go_to_the_logger_and_to_callbacks():
    class Logs(Model):
        def training_step(self, batch, batch_idx):
            return {**super().training_step(batch, batch_idx), "log": {"number": batch_idx}}

    logger = Recorder()
    trainer = pl.Trainer(**{**QUIET, "logger": logger}, row_log_interval=1)
    trainer.fit(Logs())
    assert [metrics["number"] for _, metrics in logger.rows] == [0, 1, 2, 3]
    assert trainer.callback_metrics["number"] == 3


def test_values_under_progress_bar_go_there_and_not_to_the_logger():
    class Shows(Model):
        def training_step(self, batch, batch_idx):
            return {**super().training_step(batch, batch_idx), "progress_bar": {"number": batch_idx}}

    logger = Recorder()
    trainer = pl.Trainer(**{**QUIET, "logger": logger}, row_log_interval=1)
    trainer.fit(Shows())
    assert trainer.progress_bar_metrics == {"number": 3}
    assert not any("number" in metrics for _, metrics in logger.rows)


def test_a_value_under_both_goes_to_both():
    results = Results()
    take_logs({"loss": 1.0, "log": {"a": 2.0}, "progress_bar": {"a": 2.0}}, results)
    metrics = results.metrics()
    assert ("a" in metrics.logged, "a" in metrics.progress_bar) == (True, True)


def test_other_numbers_are_for_callbacks_alone():
    results = Results()
    take_logs({"loss": torch.tensor(1.0), "accuracy": 0.5, "kept": torch.zeros(3), "log": {}}, results)
    metrics = results.metrics()
    assert sorted(metrics.callback) == ["accuracy", "loss"]
    assert (metrics.logged, metrics.progress_bar) == ({}, {})


def test_a_step_of_todays_style_logs_nothing_by_what_it_returns():
    results = Results()
    take_logs({"loss": torch.tensor(1.0), "accuracy": 0.5}, results)
    assert results.metrics().callback == {}


def test_what_self_log_has_logged_is_left_as_it_is():
    results = Results(training=True)
    results.hook = "training_step"
    results.add("accuracy", 0.5, How(prog_bar=True))
    results.in_batches = True
    take_logs({"loss": 1.0, "accuracy": 0.7, "log": {}}, results)
    assert results.metrics().callback["accuracy"] == 0.5


def test_what_stands_under_log_must_be_a_mapping():
    with pytest.raises(TypeError, match=r"under 'log' is a mapping of names to numbers, but got 0\.5"):
        take_logs({"loss": 1.0, "log": 0.5}, Results())


def test_the_end_of_an_epoch_returns_a_mapping_or_nothing():
    end_epoch(lambda outputs: None, [], Results(), "validation")
    with pytest.raises(TypeError, match=r"validation_epoch_end\(\) returned 0\.5"):
        end_epoch(lambda outputs: 0.5, [], Results(), "validation")


def test_a_training_step_without_a_loss_is_refused():
    class Without(Model):
        def training_step(self, batch, batch_idx):
            return {"log": {"a": 1.0}, "progress_bar": {}}

    with pytest.raises((KeyError, TypeError, ValueError), match="loss"):
        pl.Trainer(**QUIET).fit(Without())


# The ends of steps and epochs


def test_what_training_step_end_returns_is_minimised_and_logged():
    class Ends(Model):
        def training_step(self, batch, batch_idx):
            return {"loss": self(batch).square().mean(), "log": {"before": 1.0}}

        def training_step_end(self, output):
            return {"loss": output["loss"] * 0, "log": {"after": 2.0}}

    model = Ends()
    before = model.layer.weight.clone()
    trainer = pl.Trainer(**QUIET)
    trainer.fit(model)
    assert torch.equal(before, model.layer.weight)
    assert "after" in trainer.callback_metrics
    assert "before" not in trainer.callback_metrics


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_the_end_of_an_epoch_gets_what_the_ends_of_steps_returned(stage):
    class Ends(Model):
        pass

    def step(self, batch, batch_idx):
        return {"index": batch_idx}

    def step_end(self, output):
        return {"ended": output["index"] + 10}

    def epoch_end(self, outputs):
        self.calls.append(outputs)
        return {"log": {"last": outputs[-1]["ended"]}}

    for name, method in (("step", step), ("step_end", step_end), ("epoch_end", epoch_end)):
        setattr(Ends, f"{stage}_{name}", method)
    model, trainer = Ends(), pl.Trainer(**QUIET)
    found = trainer.validate(model) if stage == "validation" else trainer.test(model)
    assert model.calls == [[{"ended": 10}, {"ended": 11}]]
    assert found == [{"last": 11.0}]


def test_with_several_loaders_the_end_of_an_epoch_gets_a_list_for_each():
    class Several(Model):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            return {"place": (dataloader_idx, batch_idx)}

        def validation_epoch_end(self, outputs):
            self.calls.append([[output["place"] for output in of_one] for of_one in outputs])

        def val_dataloader(self):
            return [torch.utils.data.DataLoader(torch.ones(length, 2), batch_size=1) for length in (2, 1)]

    model = Several()
    pl.Trainer(num_sanity_val_steps=0, **QUIET).fit(model)
    assert model.calls == [[[(0, 0), (0, 1)], [(1, 0)]]]


def test_training_epoch_end_gets_the_losses_of_its_epoch_without_their_graphs():
    class Ends(Model):
        def training_epoch_end(self, outputs):
            self.calls.append([output["loss"].requires_grad for output in outputs])
            return {"log": {"mean_loss": torch.stack([output["loss"] for output in outputs]).mean()}}

    model, logger = Ends(), Recorder()
    trainer = pl.Trainer(**{**QUIET, "logger": logger, "max_epochs": 2})
    trainer.fit(model)
    assert model.calls == [[False] * 4] * 2
    assert ["mean_loss" in metrics for _, metrics in logger.rows] == [True, True]


def test_the_ends_of_epochs_had_another_name_still():
    class Older(Model):
        def validation_step(self, batch, batch_idx):
            return {"val_loss": self(batch).mean()}

        def validation_end(self, outputs):
            return {"val_loss": torch.stack([output["val_loss"] for output in outputs]).mean()}

        def test_step(self, batch, batch_idx):
            return {"test_loss": self(batch).mean()}

        def test_end(self, outputs):
            return {"log": {"test_loss": torch.stack([output["test_loss"] for output in outputs]).mean()}}

    trainer = pl.Trainer(**QUIET)
    trainer.fit(Older())
    assert "val_loss" in trainer.callback_metrics
    assert list(trainer.test()[0]) == ["test_loss"]


def test_loaders_may_bear_the_decorator_that_they_had():
    class Decorated(Model):
        @pl.data_loader
        def train_dataloader(self):
            return super().train_dataloader()

    trainer = pl.Trainer(**QUIET)
    trainer.fit(Decorated())
    assert trainer.global_step == 4


def test_a_module_of_today_is_not_taken_for_an_old_one():
    assert not is_old(Model())


# Hooks


def test_hooks_of_a_module_are_called_by_their_names_of_then():
    class Hooked(Model):
        def on_epoch_start(self):
            self.calls.append("on_epoch_start")

        def on_batch_start(self, batch):
            self.calls.append(int(batch[0, 0]))

        def on_batch_end(self):
            self.calls.append("on_batch_end")

        def on_epoch_end(self):
            self.calls.append("on_epoch_end")

        def validation_step(self, batch, batch_idx):
            self.calls.append("validation_step")

        def on_pre_performance_check(self):
            self.calls.append("on_pre_performance_check")

        def on_post_performance_check(self):
            self.calls.append("on_post_performance_check")

    model = Hooked()
    pl.Trainer(num_sanity_val_steps=0, limit_train_batches=2, limit_val_batches=1, **QUIET).fit(model)
    assert model.calls == [
        "on_epoch_start",
        1,
        "on_batch_end",
        2,
        "on_batch_end",
        "on_pre_performance_check",
        "validation_step",
        "on_post_performance_check",
        "on_epoch_end",
    ]


def test_minus_one_from_on_batch_start_skips_the_rest_of_the_epoch():
    class Skips(Model):
        def on_batch_start(self, batch):
            return -1 if batch[0, 0] == 3 else None

    trainer = pl.Trainer(**QUIET)
    trainer.fit(Skips())
    assert trainer.global_step == 2


def test_todays_name_comes_before_that_of_then():
    class Both(Model):
        def on_train_epoch_start(self):
            self.calls.append("today")

        def on_epoch_start(self):
            self.calls.append("then")

    model = Both()
    Hooks(pl.Trainer(**QUIET), model).call("on_train_epoch_start")
    assert model.calls == ["today"]


# Steps of optimizers


class Warm(Model):
    """Its rate rises with the steps, set where there are gradients already."""

    def optimizer_step(self, current_epoch, batch_idx, optimizer, optimizer_i, second_order_closure=None):
        self.calls.append((current_epoch, batch_idx, optimizer_i, self.layer.weight.grad is not None))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (self.trainer.global_step + 1)
        optimizer.step()
        optimizer.zero_grad()


def test_optimizer_step_of_then_is_called_after_backward_with_the_optimizers_index():
    model = Warm()
    pl.Trainer(**QUIET).fit(model)
    assert model.calls == [(0, batch, 0, True) for batch in range(4)]


def test_optimizer_step_of_then_makes_the_steps_of_the_same_loop_by_hand():
    model, by_hand = Warm(), Model()
    by_hand.load_state_dict(model.state_dict())
    pl.Trainer(**QUIET).fit(model)
    optimizer = by_hand.configure_optimizers()
    for step, batch in enumerate(by_hand.train_dataloader()):
        optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
        optimizer.zero_grad()
        by_hand.training_step(batch, step)["loss"].backward()
        optimizer.step()
    assert torch.equal(model.layer.weight, by_hand.layer.weight)


@pytest.mark.parametrize("passes_on", ["closure", "super"])
def test_optimizer_step_of_the_releases_between_evaluates_once(passes_on):
    class Between(Model):
        def training_step(self, batch, batch_idx):
            self.calls.append(batch_idx)
            return super().training_step(batch, batch_idx)

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure, *of_1_x):
            assert of_1_x == (False, False, False)  # on_tpu, using_native_amp, using_lbfgs
            if passes_on == "super":
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure)
            else:
                optimizer.step(closure=optimizer_closure)

    model, plain = Between(), Model()
    plain.load_state_dict(model.state_dict())
    pl.Trainer(**QUIET).fit(model)
    pl.Trainer(**QUIET).fit(plain)
    assert model.calls == [0, 1, 2, 3]
    assert torch.equal(model.layer.weight, plain.layer.weight)


def test_optimizer_step_of_then_is_asked_for_each_of_several_optimizers():
    class Adversaries(Model):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(1, 1)

        def forward(self, x):
            return self.other(self.layer(x))

        def training_step(self, batch, batch_idx, optimizer_idx):
            return super().training_step(batch, batch_idx)

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_idx, second_order_closure=None):
            if optimizer_idx == 0 or batch_idx % 2 == 0:  # the second one only every other batch
                self.calls.append((batch_idx, optimizer_idx))
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self):
            return [torch.optim.SGD(net.parameters(), lr=0.01) for net in (self.layer, self.other)]

    model = Adversaries()
    pl.Trainer(**QUIET).fit(model)
    assert model.calls == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)]


def test_optimizer_step_of_today_that_never_evaluates_is_refused():
    class Forgets(Model):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer.step()

    with pytest.raises(RuntimeError, match=r"Forgets\.optimizer_step\(\) has not computed the loss"):
        pl.Trainer(**QUIET).fit(Forgets())


def _with_trainer(self, trainer, loss, optimizer, optimizer_idx):
    self.calls.append((trainer is self.trainer, optimizer_idx))
    loss.backward()


def _with_amp(self, use_amp, loss, optimizer):
    self.calls.append((not use_amp, 0))
    loss.backward()


def _between(self, loss, optimizer, optimizer_idx):
    self.calls.append((optimizer is self.trainer.optimizers[0], optimizer_idx))
    loss.backward()


@pytest.mark.parametrize("backward", [_with_trainer, _with_amp, _between], ids=["0.7", "0.6", "1.x"])
def test_backward_gets_the_arguments_that_it_took_then(backward):
    model = type("Backward", (Model,), {"backward": backward})()
    pl.Trainer(**QUIET).fit(model)
    assert model.calls == [(True, 0)] * 4


def test_a_schedule_on_a_plateau_watches_val_loss_unless_told_otherwise():
    class Plateau(Model):
        def validation_step(self, batch, batch_idx):
            return {"val_loss": torch.tensor(1.0)}

        def validation_epoch_end(self, outputs):
            return {"val_loss": torch.stack([output["val_loss"] for output in outputs]).mean()}

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)]

    model = Plateau()
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 3})
    trainer.fit(model)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)


def test_a_trainer_is_asked_by_the_names_of_then():
    model, stopping = Model(), pl.callbacks.EarlyStopping("loss", strict=False)
    trainer = pl.Trainer(**QUIET, gpus=0, row_log_interval=5, default_save_path="runs", callbacks=[stopping])
    trainer.fit(model)
    assert trainer.get_model() is model
    assert (trainer.on_gpu, trainer.on_tpu, trainer.num_gpus, trainer.root_gpu) == (False, False, 0, None)
    assert (trainer.proc_rank, trainer.use_ddp, trainer.use_amp, trainer.row_log_interval) == (0, False, False, 5)
    assert trainer.early_stop_callback is stopping
    assert str(trainer.default_save_path) == "runs"
    assert trainer.progress_bar_dict == {}


def test_callbacks_are_told_that_a_trainer_was_made():
    calls = []

    class Told(pl.Callback):
        def on_init_start(self, trainer):
            calls.append("on_init_start")

        def on_init_end(self, trainer):
            calls.append(trainer)

    trainer = pl.Trainer(callbacks=[Told()], **QUIET)
    assert calls == ["on_init_start", trainer]


def test_what_is_not_called_any_more_is_told_with_what_does_its_work():
    class Leftover(Model):
        def get_progress_bar_dict(self):
            return {}

    with pytest.warns(UserWarning, match=r"Leftover\.get_progress_bar_dict\(\) is not called any more: override get_m"):
        pl.Trainer(**QUIET).fit(Leftover())


@pytest.mark.parametrize("of_then", [True, False], ids=["then", "today"])
def test_a_batch_without_a_loss_is_not_stepped_with_the_gradients_of_the_one_before(of_then):
    class Skips(Model):
        def training_step(self, batch, batch_idx):
            self.calls.append(self.layer.weight.detach().clone())
            return super().training_step(batch, batch_idx) if batch_idx % 2 == 0 else None

    def step_of_then(self, epoch, batch_idx, optimizer, optimizer_idx, closure=None):  # noqa: PLR0917 - as it was
        optimizer.step()

    def step_of_today(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.step(closure=optimizer_closure)

    Skips.optimizer_step = step_of_then if of_then else step_of_today
    model = Skips()
    pl.Trainer(**QUIET).fit(model)
    first, second, third, fourth = model.calls
    assert not torch.equal(first, second)
    assert torch.equal(second, third)
    assert not torch.equal(third, fourth)
    assert torch.equal(fourth, model.layer.weight)
