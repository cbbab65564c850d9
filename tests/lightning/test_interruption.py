"""A signal to one of several processes ends the fit on all of them at the same batch, with a checkpoint."""

import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import camshaft.contrib.lightning as pl
from camshaft.handlers.preemption import PREEMPTED
from camshaft.scripts import weights_sha256
from tests.ranks import on_ranks, values_of_ranks

BATCHES = 40


class Interrupted(pl.LightningModule):
    """Its second process gets a signal in the middle of an epoch."""

    def __init__(self, number=None):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.number = number

    def training_step(self, batch, batch_idx):
        (x,) = batch
        if self.number is not None:
            time.sleep(0.005)
            if self.global_rank == 1 and self.global_step == 25:
                os.kill(os.getpid(), self.number)
        return self.layer(x).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(directory, number=None, ckpt_path=None):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(2 * BATCHES * 2, 4))
    module = Interrupted(number)
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        default_root_dir=directory,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=2, shuffle=True), ckpt_path=ckpt_path)
    return trainer, module


def interrupted_and_resumed(directory, number):
    """How the interrupted fit ended, its steps, and the weights at the end of it all, on each process."""
    try:
        fit(directory, number)
    except (SystemExit, KeyboardInterrupt) as error:
        ended = error.code if isinstance(error, SystemExit) else "KeyboardInterrupt"
    (saved,) = (*directory.rglob("preempted.ckpt"), *directory.rglob("interrupted.ckpt"))
    step = torch.load(saved, weights_only=True)["global_step"]
    trainer, module = fit(directory, ckpt_path=saved)
    return ended, step, trainer.global_step, weights_sha256(module)


def uninterrupted(directory):
    trainer, module = fit(directory)
    return trainer.global_step, weights_sha256(module)


@pytest.mark.distributed
@pytest.mark.parametrize(("number", "ending"), [(signal.SIGTERM, PREEMPTED), (signal.SIGINT, "KeyboardInterrupt")])
def test_all_processes_end_alike_and_go_on_to_the_same_bits(number, ending, tmp_path):
    first, second = values_of_ranks(interrupted_and_resumed, tmp_path / "interrupted", number)
    assert first == second
    ended, step, steps, weights = first
    assert ended == ending
    assert 25 < step < 4 * BATCHES
    assert [(steps, weights)] * 2 == values_of_ranks(uninterrupted, tmp_path / "whole")


def leave(directory):
    fit(directory, signal.SIGTERM)


@pytest.mark.distributed
def test_every_process_leaves_with_the_status_that_asks_for_another_start(tmp_path, capfd):
    ended = on_ranks(leave, tmp_path)
    assert [process.status for process in ended] == [PREEMPTED] * 2, [process.error for process in ended]
    assert capfd.readouterr().err.count("SIGTERM came in epoch") == 1
