"""What tests of callbacks share: a tiny module whose validation gives prescribed values, and a silent trainer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.callbacks import Checkpoint

BATCHES = [torch.linspace(-1, 1, 8).view(4, 2) * scale for scale in (1.0, 2.0, 3.0)]


class Model(pl.LightningModule):
    """Trained on three batches an epoch; validation logs ``val_loss``, one of ``val_losses`` each epoch.

    Args:
        val_losses: of the epochs; the last holds for all that follow.
        batch_norm: with statistics of the batches.
        schedule: with a learning rate that is multiplied by 0.9 after each epoch.
    """

    def __init__(self, val_losses: Sequence[float] = (), *, batch_norm: bool = False, schedule: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.val_losses = val_losses
        self.schedule = schedule
        self.backbone = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3) if batch_norm else nn.Identity()
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.backbone(x))))

    def training_step(self, batch, batch_idx):
        loss = (self(batch) - 1).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_out", self(batch).mean())
        if self.val_losses:
            self.log("val_loss", float(self.val_losses[min(self.current_epoch, len(self.val_losses) - 1)]))

    def test_step(self, batch, batch_idx):
        self.log("test_out", self(batch).mean())

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self(batch).flatten()

    def configure_optimizers(self):
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
        if not self.schedule:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]


@pytest.fixture
def trainer_with(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Makes a trainer with callbacks, which shows nothing and writes below ``tmp_path``."""

    def make(*callbacks: Any, **flags: Any) -> pl.Trainer:
        saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
        settings = {"max_epochs": 3, "logger": False, "num_sanity_val_steps": 0, **flags}
        return pl.Trainer(
            callbacks=list(callbacks),
            accelerator="cpu",
            devices=1,
            default_root_dir=tmp_path,
            enable_checkpointing=saves,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    return make


@pytest.fixture
def fit(trainer_with: Callable[..., pl.Trainer]) -> Callable[..., pl.Trainer]:
    """Fits a model on :data:`BATCHES` with callbacks and flags, and gives the trainer."""

    def run(model: pl.LightningModule, *callbacks: Any, ckpt_path: Any = None, **flags: Any) -> pl.Trainer:
        trainer = trainer_with(*callbacks, **flags)
        trainer.fit(model, BATCHES, BATCHES[:1], ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def model_class() -> type[Model]:
    """The class of the tiny module."""
    return Model


@pytest.fixture
def batches() -> list[torch.Tensor]:
    """The three batches of an epoch."""
    return BATCHES
