"""A fit on two processes that the Trainer starts itself; each writes what it saw to ``DIRECTORY/RANK.json``."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.callbacks import EarlyStopping, ModelCheckpoint
from camshaft.contrib.lightning.utilities import CombinedLoader

SAMPLES = torch.arange(22.0).view(22, 1) / 10


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.trained: list[float] = []
        self.tested: list[float] = []

    def prepare_data(self) -> None:
        self.prepared = True

    def training_step(self, batch, batch_idx):
        parts = batch if isinstance(batch, list) else [batch]
        self.trained += parts[0].flatten().tolist()
        loss = self.layer(torch.cat(parts)).square().mean()
        self.log("train_loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).square().mean() + self.current_epoch, sync_dist=True)
        self.log("of_rank", float(self.global_rank), sync_dist=True, reduce_fx="max")

    def test_step(self, batch, batch_idx):
        self.tested += batch.flatten().tolist()
        self.log("mean", batch.mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def numbers(values: Any) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def main(directory: Path, mode: str) -> None:
    torch.set_num_threads(1)
    stopping = EarlyStopping("val_loss", patience=1)
    checkpoint = ModelCheckpoint(directory, monitor="val_loss", filename="best")
    flags: dict[str, Any] = {"accelerator": "cpu", "devices": 2, "logger": False, "default_root_dir": directory}
    flags |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(max_epochs=6, callbacks=[stopping, checkpoint], **flags)
    model = Model()
    loader = DataLoader(SAMPLES, batch_size=4)
    if mode == "fails":
        model.on_train_epoch_start = lambda: 1 / trainer.global_rank  # type: ignore[method-assign]
        trainer.fit(model, loader)
    trainer.fit(model, loader, loader)
    seen: dict[str, Any] = {
        "world": trainer.world_size,
        "batches": [trainer.num_training_batches, *trainer.num_val_batches],
        "counts": [trainer.current_epoch, trainer.global_step],
        "metrics": numbers(trainer.callback_metrics),
        "best": [Path(checkpoint.best_model_path).name, float(checkpoint.best_model_score or 0)],
        "weights": [parameter.tolist() for parameter in model.parameters()],
        "prepared": model.prepared,
        "first_epoch": model.trained[: len(model.trained) // trainer.current_epoch],
        "test": trainer.test(model, loader, verbose=False),
    }
    seen["tested"] = model.tested
    several, one_more = Model(), pl.Trainer(max_epochs=1, enable_checkpointing=False, **flags)
    one_more.fit(several, CombinedLoader([loader, DataLoader(SAMPLES[:8], batch_size=2)], "min_size"))
    seen["of_several"] = several.trained
    (directory / f"{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
