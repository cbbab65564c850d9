"""Modules, callbacks and checkpoints of the real Lightning with ours, where that package is installed."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import camshaft.contrib.lightning as ours

real = pytest.importorskip("lightning.pytorch", reason="compares with the real Lightning, which is not required")

DATA = DataLoader(torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), batch_size=4)


def module_of(pl: Any, **methods: Any) -> Any:
    """A module that is the same for both libraries."""

    class Model(pl.LightningModule):
        def __init__(self, width: int = 4):
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

        def training_step(self, batch, batch_idx):
            loss = (self.net(batch) - 1).square().mean()
            self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log_dict({"twice": 2 * loss})
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.net(batch).square().mean())

        def predict_step(self, batch, batch_idx):
            return self.net(batch)

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    Model.__qualname__ = "Model"
    for name, method in methods.items():
        setattr(Model, name, method)
    return Model


def trainer_of(pl: Any, directory: Any, *callbacks: Any, **flags: Any) -> Any:
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": directory,
        "callbacks": list(callbacks),
        "enable_checkpointing": any(hasattr(one, "best_model_path") for one in callbacks),
        **flags,
    }
    return pl.Trainer(**settings)


def bits(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert all(torch.equal(mine, its) for mine, its in zip(bits(one), bits(other), strict=True))


def numbers(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_a_module_of_the_real_lightning_is_fitted_as_there(tmp_path):
    theirs, mine = module_of(real)(), module_of(real)()
    their_trainer, trainer = trainer_of(real, tmp_path), trainer_of(ours, tmp_path)
    their_trainer.fit(theirs, DATA, DATA)
    trainer.fit(mine, DATA, DATA)
    assert_same(mine, theirs)
    assert numbers(trainer) == pytest.approx(numbers(their_trainer))


def test_it_is_validated_and_predicts(tmp_path):
    module = module_of(real)()
    trainer = trainer_of(ours, tmp_path)
    assert set(trainer.validate(module, DATA, verbose=False)[0]) == {"val_loss"}
    assert len(trainer.predict(module, DATA)) == len(DATA)


def test_its_own_trainer_can_have_it_again(tmp_path):
    module = module_of(real)()
    trainer_of(ours, tmp_path).fit(module, DATA, DATA)
    trainer = trainer_of(real, tmp_path)
    trainer.fit(module, DATA, DATA)
    assert "val_loss" in trainer.callback_metrics


def by_hand(self, batch, batch_idx):
    optimizer = self.optimizers()
    with self.toggled_optimizer(optimizer):
        self.manual_backward(self.net(batch).square().mean())
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
    optimizer.step()
    optimizer.zero_grad()
    self.lr_schedulers().step()


def test_it_may_step_by_hand(tmp_path):
    theirs, mine = (module_of(real, training_step=by_hand)() for _ in range(2))
    for module in (theirs, mine):
        module.automatic_optimization = False
    trainer_of(real, tmp_path).fit(theirs, DATA)
    trainer_of(ours, tmp_path).fit(mine, DATA)
    assert_same(mine, theirs)


def warm_up(self, epoch, batch_idx, optimizer, optimizer_closure):
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * (batch_idx + 1)
    optimizer.step(closure=optimizer_closure)


def test_it_may_override_the_step_of_its_optimizer(tmp_path):
    theirs, mine = (module_of(real, optimizer_step=warm_up)() for _ in range(2))
    trainer_of(real, tmp_path, gradient_clip_val=0.5).fit(theirs, DATA)
    trainer_of(ours, tmp_path, gradient_clip_val=0.5).fit(mine, DATA)
    assert_same(mine, theirs)


def test_callbacks_of_the_real_lightning_work(tmp_path):
    stopping = real.callbacks.EarlyStopping("val_loss", patience=1, mode="max")
    monitor = real.callbacks.LambdaCallback(
        on_train_epoch_end=lambda trainer, module: seen.append(trainer.current_epoch)
    )
    seen: list[int] = []
    trainer = trainer_of(ours, tmp_path, stopping, monitor, max_epochs=9)
    trainer.fit(module_of(ours)(), DATA, DATA)
    assert trainer.current_epoch == len(seen) == stopping.stopped_epoch + 1 < 9


def test_its_model_checkpoint_writes_what_ours_reads(tmp_path):
    checkpoint = real.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", filename="{epoch}")
    model = module_of(ours)()
    trainer_of(ours, tmp_path, checkpoint).fit(model, DATA, DATA)
    assert_same(module_of(ours).load_from_checkpoint(checkpoint.best_model_path).train(), model)


@pytest.mark.parametrize(("writer", "reader"), [(ours, real), (real, ours)], ids=["ours_there", "theirs_here"])
def test_either_loads_the_other_s_modules(tmp_path, writer, reader):
    model = module_of(writer)(width=6)
    trainer = trainer_of(writer, tmp_path)
    trainer.fit(model, DATA, DATA)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = module_of(reader).load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.hparams.width == 6
    assert_same(loaded, model)


@pytest.mark.parametrize(("writer", "reader"), [(ours, real), (real, ours)], ids=["ours_there", "theirs_here"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_either_goes_on_with_the_other_s_checkpoint(tmp_path, writer, reader, epochs):
    whole = module_of(reader)()
    trainer_of(reader, tmp_path, max_epochs=4).fit(whole, DATA, DATA)
    checkpoint = writer.callbacks.ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1)
    trainer_of(writer, tmp_path, checkpoint, max_epochs=epochs).fit(module_of(writer)(), DATA, DATA)
    model = module_of(reader)()
    trainer = trainer_of(reader, tmp_path, max_epochs=4)
    trainer.fit(model, DATA, DATA, ckpt_path=tmp_path / "last.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (4, 20)
    assert_same(model, whole)


@pytest.mark.parametrize("reader", [ours, real], ids=["ours", "theirs"])
def test_ours_saved_after_the_fit_is_gone_on_with(tmp_path, reader):
    whole = module_of(reader)()
    trainer_of(reader, tmp_path, max_epochs=4).fit(whole, DATA, DATA)
    trainer = trainer_of(ours, tmp_path)
    trainer.fit(module_of(ours)(), DATA, DATA)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    model = module_of(reader)()
    trainer_of(reader, tmp_path, max_epochs=4).fit(model, DATA, DATA, ckpt_path=tmp_path / "after.ckpt")
    assert_same(model, whole)


def test_an_adopted_module_can_be_copied(tmp_path):
    class Copies(ours.Callback):
        def on_train_end(self, trainer, pl_module):
            self.copy = copy.deepcopy(pl_module)

    callback = Copies()
    module = module_of(real)()
    trainer_of(ours, tmp_path, callback).fit(module, DATA)
    assert_same(callback.copy, module)
