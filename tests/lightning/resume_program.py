"""A fit in a process of its own, which may send SIGTERM to itself: ``resume_program.py DIRECTORY [--sigterm-at=N]``."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.callbacks import ModelCheckpoint


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == sigterm_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return (self.net(batch) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


directory = Path(sys.argv[1])
sigterm_at = int(sys.argv[2].partition("=")[2]) if len(sys.argv) > 2 else -1
torch.set_num_threads(1)
pl.seed_everything(3)
model = Model()
trainer = pl.Trainer(
    max_epochs=2,
    accelerator="cpu",
    devices=1,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[ModelCheckpoint(directory, every_n_train_steps=5)],
    default_root_dir=directory,
)
data = DataLoader(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), batch_size=4, shuffle=True)
trainer.fit(model, data, ckpt_path="last" if directory.exists() else None)
print([parameter.flatten().tolist() for parameter in model.parameters()])  # noqa: T201 - what the test compares
