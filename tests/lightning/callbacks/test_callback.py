"""The base of callbacks: which hooks there are, and that they are called with what they say."""

import inspect
import sys

import pytest
import torch

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning import callbacks
from camshaft.contrib.lightning.callbacks import Callback, LambdaCallback

HOOKS = [name for name in vars(Callback) if name in ("setup", "teardown") or name.startswith("on_")]


def recorder(calls, hooks=HOOKS):
    def record(hook):
        return lambda *args, **kwargs: calls.append((hook, args, kwargs))

    return LambdaCallback(**{hook: record(hook) for hook in hooks})


@pytest.mark.parametrize("name", sorted(callbacks.__all__))
def test_every_public_callback_can_be_imported(name):
    assert inspect.isclass(getattr(callbacks, name))


def test_a_name_that_is_no_callback_is_an_error_that_says_so():
    with pytest.raises(AttributeError, match="has no attribute 'EarlyStoping'"):
        _ = callbacks.EarlyStoping


def test_the_base_class_has_no_state_and_its_name_is_its_key():
    class Mine(Callback):
        pass

    assert Mine().state_dict() == {}
    assert Mine().state_key.endswith("Mine")
    assert Mine()._generate_state_key(mode="min").endswith("Mine{'mode': 'min'}")


def test_each_hook_is_called_with_the_arguments_that_its_signature_names(trainer_with, model_class, batches):
    calls = []
    trainer = trainer_with(recorder(calls), num_sanity_val_steps=1, max_epochs=1)
    trainer.fit(model_class(), batches, batches)
    trainer.validate(dataloaders=batches)
    trainer.test(dataloaders=batches)
    trainer.predict(dataloaders=batches)

    for hook, args, kwargs in calls:
        inspect.signature(getattr(Callback, hook)).bind(None, *args, **kwargs)  # raises if they do not fit
        assert args[0] is trainer
        assert isinstance(args[1], model_class)
    not_called = set(HOOKS) - {hook for hook, _, _ in calls}
    assert not_called == {"on_exception", "on_save_checkpoint", "on_load_checkpoint"}


def test_the_hooks_of_a_fit_come_in_lightnings_order(fit, model_class):
    calls = []
    fit(model_class(), recorder(calls), max_epochs=1, limit_train_batches=1, num_sanity_val_steps=1)

    assert [hook for hook, _, _ in calls] == [
        "setup",
        "on_fit_start",
        "on_sanity_check_start",
        *(validation := [
            "on_validation_start",
            "on_validation_epoch_start",
            "on_validation_batch_start",
            "on_validation_batch_end",
            "on_validation_epoch_end",
            "on_validation_end",
        ]),
        "on_sanity_check_end",
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_before_zero_grad",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_train_batch_end",
        *validation,
        "on_train_epoch_end",
        "on_train_end",
        "on_fit_end",
        "teardown",
    ]  # fmt: skip


def test_an_exception_is_told_and_raised_again(fit, model_class):
    class Fails(model_class):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError("in the step")

    told = []
    with pytest.raises(ZeroDivisionError, match="in the step"):
        fit(Fails(), LambdaCallback(on_exception=lambda trainer, module, error: told.append(error)))
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_what_a_callback_adds_to_a_checkpoint_comes_back_to_it(fit, trainer_with, model_class, batches, tmp_path):
    def save(trainer, module, checkpoint):
        checkpoint["mine"] = {"seen": torch.arange(3)}

    loaded = []

    def load(trainer, module, checkpoint):
        loaded.append(checkpoint["mine"]["seen"].tolist())

    fit(model_class(), LambdaCallback(on_save_checkpoint=save)).save_checkpoint(tmp_path / "last.ckpt")
    trainer = trainer_with(LambdaCallback(on_load_checkpoint=load), max_epochs=4)
    trainer.fit(model_class(), batches, ckpt_path=tmp_path / "last.ckpt")
    assert loaded == [[0, 1, 2]]


def test_the_state_of_two_callbacks_of_a_class_is_kept_under_their_keys(fit, model_class, tmp_path):
    class Counts(Callback):
        def __init__(self, what):
            self.what, self.batches = what, 0

        @property
        def state_key(self):
            return self._generate_state_key(what=self.what)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.batches += 1

        def state_dict(self):
            return {"batches": self.batches}

        def load_state_dict(self, state_dict):
            self.batches = state_dict["batches"]

    one, two = Counts("one"), Counts("two")
    two.batches = 100
    fit(model_class(), one, two).save_checkpoint(tmp_path / "last.ckpt")
    one_resumed, two_resumed = Counts("one"), Counts("two")
    fit(model_class(), two_resumed, one_resumed, max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert (one_resumed.batches, two_resumed.batches) == (12, 112)


def test_importing_the_package_loads_no_callback():
    code = "import sys, camshaft.contrib.lightning.callbacks; print([m for m in sys.modules if 'early_stopping' in m])"
    import subprocess  # noqa: PLC0415

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.strip() == "[]"


def test_a_trainer_is_a_callbacks_way_to_everything(fit, model_class):
    seen = {}

    def look(trainer, module):
        seen.update(
            epoch=trainer.current_epoch, step=trainer.global_step, loss="train_loss" in trainer.callback_metrics
        )

    fit(model_class(), LambdaCallback(on_train_epoch_end=look), max_epochs=2)
    assert seen == {"epoch": 1, "step": 6, "loss": True}
    assert pl.Callback is Callback
