"""How long a fit goes on, in which order, and what its hooks find."""

import time
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.callbacks import Callback

SAMPLES = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(batch).square().mean())

    def on_validation_start(self):
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.fit_loop.total_batch_idx + 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(samples: int = 20) -> DataLoader[Any]:
    return DataLoader(SAMPLES[:samples], batch_size=4)


def trainer_of(*callbacks: Any, **flags: Any) -> pl.Trainer:
    settings: dict[str, Any] = {"max_epochs": 2, **flags}
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )


def fitted(model: Model | None = None, *callbacks: Any, data: Any = None, **flags: Any) -> tuple[pl.Trainer, Model]:
    model, trainer = model or Model(), trainer_of(*callbacks, **flags)
    trainer.fit(model, loader() if data is None else data, loader(8))
    return trainer, model


# ------------------------------------------------------------------------------------------------ how long


@pytest.mark.parametrize(
    ("flags", "epochs", "steps"),
    [
        ({"max_epochs": 2}, 2, 10),
        ({"max_steps": 7, "max_epochs": -1}, 2, 7),
        ({"max_steps": 7, "max_epochs": 1}, 1, 5),
        ({"max_epochs": 0}, 0, 0),
        ({"max_steps": 0}, 0, 0),
        ({"limit_train_batches": 0}, 0, 0),
        ({"limit_train_batches": 3}, 2, 6),
        ({"limit_train_batches": 0.5}, 2, 4),
        ({"overfit_batches": 2}, 2, 4),
        ({"fast_dev_run": 3}, 1, 3),
        ({"accumulate_grad_batches": 2}, 2, 6),
    ],
    ids=str,
)
def test_a_fit_takes_as_many_epochs_and_steps_as_its_flags_say(flags, epochs, steps):
    trainer, _ = fitted(**flags)
    assert (trainer.current_epoch, trainer.global_step) == (epochs, steps)


def test_a_fit_that_has_nothing_to_train_tells_nobody_that_it_trained():
    class Told(Callback):
        names: list[str] = []  # noqa: RUF012

        def on_fit_start(self, trainer, pl_module):
            self.names.append("fit")

        def on_train_start(self, trainer, pl_module):
            self.names.append("train")

        def on_train_end(self, trainer, pl_module):
            self.names.append("train")

    fitted(None, Told(), max_epochs=0)
    assert Told.names == ["fit"]


def test_max_time_ends_it():
    class Slow(Model):
        def training_step(self, batch, batch_idx):
            time.sleep(0.05)
            return super().training_step(batch, batch_idx)

    trainer, _ = fitted(Slow(), max_time={"seconds": 0.1}, max_epochs=50)
    assert 0 < trainer.global_step < 100


STOPS = ["on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_validation_end", "on_train_epoch_end"]


@pytest.mark.parametrize(
    ("hook", "epochs", "steps"), list(zip(STOPS, [0, 1, 1, 1, 1], [0, 0, 1, 5, 5], strict=True)), ids=str
)
def test_should_stop_may_be_set_anywhere(hook, epochs, steps):
    def stop(self, *args):
        if not self.trainer.sanity_checking:
            self.trainer.should_stop = True

    trainer, _ = fitted(type("Stops", (Model,), {hook: stop})())
    assert (trainer.current_epoch, trainer.global_step) == (epochs, steps)


@pytest.mark.parametrize(("least", "steps"), [({"min_steps": 8}, 8), ({"min_epochs": 2}, 10)], ids=str)
def test_nothing_stops_it_before_its_least(least, steps):
    class Stops(Model):
        def training_step(self, batch, batch_idx):
            self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    trainer, _ = fitted(Stops(), max_epochs=4, **least)
    assert trainer.global_step == steps


def test_minus_one_before_a_batch_skips_the_rest_of_the_epoch():
    class Skips(Model):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 and self.current_epoch == 0 else None

    trainer, model = fitted(Skips())
    assert trainer.global_step == 2 + 5
    assert model.validated == [8]  # not after the epoch that was skipped


def test_a_batch_for_which_training_step_returns_none_makes_no_step():
    class Skips(Model):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.outputs = {**getattr(self, "outputs", {}), batch_idx: outputs}

    trainer, model = fitted(Skips())
    assert trainer.global_step == 8
    assert model.outputs[1] == {}
    assert set(model.outputs[2]) == {"loss"}


def test_a_second_fit_goes_on_counting():
    model, trainer = Model(), trainer_of()
    trainer.fit(model, loader())
    trainer.fit(model, loader())  # its epochs are done
    assert (trainer.current_epoch, trainer.global_step) == (2, 10)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, loader())
    assert (trainer.current_epoch, trainer.global_step) == (3, 15)


# ------------------------------------------------------------------------------------------------ validation


@pytest.mark.parametrize(
    ("flags", "after"),
    [
        ({}, [5, 10]),
        ({"val_check_interval": 2}, [2, 4, 7, 9]),
        ({"val_check_interval": 0.4}, [2, 4, 7, 9]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6, 9]),
        ({"val_check_interval": 7, "check_val_every_n_epoch": None}, [7]),
        ({"check_val_every_n_epoch": 2}, [10]),
        ({"limit_val_batches": 0}, []),
        ({"max_steps": 7, "max_epochs": -1}, [5]),
    ],
    ids=str,
)
def test_validations_come_after_so_many_batches(flags, after):
    _, model = fitted(**flags)
    assert model.validated == after


@pytest.mark.parametrize(("steps", "batches"), [(None, 2), (0, 0), (1, 1), (-1, 2)], ids=str)
def test_so_many_batches_are_validated_before_training(steps, batches):
    class Counts(Model):
        seen = 0

        def validation_step(self, batch, batch_idx):
            self.seen += self.trainer.sanity_checking

    _, model = fitted(Counts(), num_sanity_val_steps=steps)
    assert model.seen == batches


def test_within_a_fit_validation_makes_ordinary_tensors():
    class Caches(Model):
        def validation_step(self, batch, batch_idx):
            assert not torch.is_grad_enabled()
            self.cached = self.net.weight * 2
            assert not self.training

        def training_step(self, batch, batch_idx):
            assert self.training
            return (self.net(batch) * self.cached.sum()).square().mean()  # an inference tensor could not be used here

    fitted(Caches())


def test_each_part_keeps_the_mode_that_it_was_given():
    class Frozen(Model):
        def on_train_epoch_start(self):
            self.net.eval()

        def training_step(self, batch, batch_idx):
            assert (self.training, self.net.training) == (True, False)
            return super().training_step(batch, batch_idx)

    fitted(Frozen())


def test_a_fit_warns_of_parts_in_evaluation_mode():
    model = Model()
    model.net.eval()
    with pytest.warns(UserWarning, match=r"1 part\(s\) of the module are trained in evaluation mode \(net"):
        fitted(model)
    assert not model.net.training


# ------------------------------------------------------------------------------------------------ what hooks find


def test_numbers_of_batch_step_and_epoch_at_each_hook():
    seen: list[tuple[Any, ...]] = []

    class Looks(Callback):
        def _look(self, name, trainer):
            loop = trainer.fit_loop
            seen.append((name, trainer.current_epoch, trainer.global_step, loop.batch_idx, loop.total_batch_idx))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self._look("start", trainer)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self._look("end", trainer)

        def on_validation_start(self, trainer, pl_module):
            self._look("validation", trainer)

        def on_train_epoch_end(self, trainer, pl_module):
            self._look("epoch", trainer)

    fitted(None, Looks(), limit_train_batches=2, num_sanity_val_steps=0)
    assert seen == [
        ("start", 0, 0, 0, 0),
        ("end", 0, 1, 0, 0),
        ("start", 0, 1, 1, 1),
        ("end", 0, 2, 1, 1),
        ("validation", 0, 2, 1, 1),
        ("epoch", 0, 2, 1, 1),
        ("start", 1, 2, 0, 2),
        ("end", 1, 3, 0, 2),
        ("start", 1, 3, 1, 3),
        ("end", 1, 4, 1, 3),
        ("validation", 1, 4, 1, 3),
        ("epoch", 1, 4, 1, 3),
    ]


def test_on_train_batch_end_gets_what_the_step_returned():
    class Returns(Model):
        outputs: Any = None

        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "more": batch_idx}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.outputs = outputs

    _, model = fitted(Returns())
    assert model.outputs["more"] == 4
    assert not model.outputs["loss"].requires_grad


def test_the_loss_that_it_gets_is_divided_by_the_size_of_its_group():
    class Compares(Model):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            assert torch.equal(outputs["loss"] * 2, self.trainer.callback_metrics["train_loss"])

    fitted(Compares(), accumulate_grad_batches=2)


def test_is_last_batch_is_known_for_data_without_length():
    seen = []

    class Looks(Model):
        def training_step(self, batch, batch_idx):
            seen.append(self.trainer.is_last_batch)
            return super().training_step(batch, batch_idx)

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):
            return iter(SAMPLES[: 4 * (1 + epochs.pop())])

    epochs = [2, 3]  # of as many batches, and one more
    fitted(Looks(), data=DataLoader(Stream(), batch_size=4))
    assert seen == [False] * 3 + [True] + [False] * 2 + [True]


def test_callbacks_may_log_as_the_module_does():
    class Logs(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.log("from_callback", 3.0)
            self.log_dict({"and_another": 4.0})

    trainer, _ = fitted(None, Logs())
    assert {"from_callback", "and_another"} <= set(trainer.callback_metrics)


def test_no_module_is_needed_to_ask_a_trainer_how_it_is():
    trainer = trainer_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (trainer.current_epoch, trainer.global_step, trainer.is_last_batch) == (0, 0, False)
        assert (trainer.enable_validation, trainer.limit_train_batches, trainer.num_val_batches) == (False, 1.0, [])
