"""Fits a small module with callbacks on several processes, which see different things, and writes what came of each."""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.callbacks import (
    BackboneFinetuning,
    BasePredictionWriter,
    EarlyStopping,
    EMAWeightAveraging,
    LambdaCallback,
    ModelCheckpoint,
    SpikeDetection,
    StochasticWeightAveraging,
    Timer,
)
from camshaft.engine.distributed import broadcast

torch.set_num_threads(1)
logging.disable(logging.INFO)
RANK = int(os.environ["RANK"])
DATA = TensorDataset(torch.randn(24, 2, generator=torch.Generator().manual_seed(0)))


class Model(pl.LightningModule):
    """Logs ``val_loss``, which each process is given on its own."""

    def __init__(self, *val_losses: list[float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.val_losses = val_losses[RANK] if val_losses else [1.0]
        self.backbone, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.backbone(x)))

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - 1).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.val_losses[min(self.current_epoch, len(self.val_losses) - 1)])

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=0.1)


def trainer_with(*callbacks: Any, **flags: Any) -> pl.Trainer:
    settings = {"max_epochs": 4, "logger": False, "num_sanity_val_steps": 0, **flags}
    return pl.Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy="ddp_find_unused_parameters_true",
        default_root_dir=tempfile.gettempdir(),
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def fit(model: Model, *callbacks: Any, **flags: Any) -> pl.Trainer:
    trainer = trainer_with(*callbacks, **flags)
    trainer.fit(model, DataLoader(DATA, batch_size=4), DataLoader(DATA, batch_size=12))
    return trainer


def weights(model: nn.Module) -> list[float]:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist()


def early_stopping() -> dict[str, Any]:
    """Only the second process sees NaN, in its second epoch."""
    stopping = EarlyStopping("val_loss")
    trainer = fit(Model([3, 2, 1, 1], [3, float("nan"), 1, 1]), stopping)
    return {"epoch": trainer.current_epoch, "stopped": stopping.stopped_epoch, "reason": stopping.stopping_reason.name}


def checkpoints() -> dict[str, Any]:
    """Each is given a directory of its own, and they disagree on which epoch is better than the first."""
    directory = tempfile.mkdtemp()
    checkpoint = ModelCheckpoint(directory, filename="{epoch}", monitor="val_loss")
    fit(Model([3, 2, 1, 4], [3, 4, 1, 4]), checkpoint)
    return {
        "own directory": sorted(path.name for path in Path(directory).iterdir()),
        "best": Path(checkpoint.best_model_path).name,
        "directory": str(checkpoint.dirpath),
        "score": float(checkpoint.best_model_score or 0),
    }


def unwritable() -> dict[str, Any]:
    """The directory of the first process is a file."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            fit(Model(), ModelCheckpoint(file.name if RANK == 0 else tempfile.mkdtemp()))
        except NotADirectoryError as error:
            return {"error": str(error)}
    return {}


def timers() -> dict[str, Any]:
    """A clock that only the second process thinks is over, and one that only the first does."""
    found = {}
    for name, whose in (("of the second", 1), ("of the first", 0)):
        timer = Timer("00:01:00:00")
        trainer = fit(
            Model(),
            LambdaCallback(on_train_start=lambda *_, timer=timer, whose=whose: over(timer) if whose == RANK else None),
            timer,
            max_epochs=1,
        )
        found[name] = trainer.global_step
    return found


def over(timer: Timer) -> None:
    timer._offset = 1e6


def spikes() -> dict[str, Any]:
    """Only the second process has one."""

    class Jumps(Model):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * 1e6 if RANK == 1 and batch_idx == 2 else loss

    try:
        fit(Jumps(), SpikeDetection(exclude_batches_path=tempfile.mkdtemp()))
    except RuntimeError as error:
        return {"error": str(error)}
    return {}


def averages() -> dict[str, Any]:
    found = {}
    for name, callback in (("ema", EMAWeightAveraging(decay=0.5)), ("swa", StochasticWeightAveraging(0.01, 2))):
        model = Model()
        fit(model, callback)
        found[name] = weights(model)
    return found


def finetuning() -> dict[str, Any]:
    model = Model()
    before = weights(model.backbone)
    fit(model, BackboneFinetuning(1))
    return {"weights": weights(model), "backbone changed": weights(model.backbone) != before}


def predictions() -> dict[str, Any]:
    written: list[Any] = []

    class Writer(BasePredictionWriter):
        def write_on_batch_end(self, trainer, pl_module, prediction, indices, batch, batch_idx, dataloader_idx):  # noqa: PLR0917
            written.append((indices, torch.equal(batch[0], DATA.tensors[0][indices])))

    trainer_with(Writer("batch")).predict(Model(), DataLoader(DATA, batch_size=5))
    return {"written": written}


def write(path: str) -> None:
    programs: list[Callable[[], dict[str, Any]]] = [
        early_stopping,
        checkpoints,
        unwritable,
        timers,
        spikes,
        averages,
        finetuning,
        predictions,
    ]
    Path(path).write_text(json.dumps({program.__name__: program() for program in programs}))
    broadcast("done")


if __name__ == "__main__":
    write(sys.argv[1])
