"""`Trainer(strategy="fsdp")` on two processes: checkpoints hold whole tensors, and a fit goes on from them."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import camshaft.contrib.lightning as pl
from camshaft.scripts import weights_sha256
from tests.ranks import values_of_ranks


class Sharded(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        return self.layers(batch[0]).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(directory, epochs, ckpt_path=None):
    """The weights in the checkpoint at the end, which every process reads."""
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=4, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        strategy="fsdp",
        devices=2,
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Sharded(), loader, ckpt_path=ckpt_path)
    trainer.save_checkpoint(directory / f"{epochs}.ckpt")
    return torch.load(directory / f"{epochs}.ckpt", weights_only=True)["state_dict"]


def whole_and_resumed(directory):
    whole = fit(directory / "whole", 2)
    fit(directory / "resumed", 1)
    resumed = fit(directory / "resumed", 2, directory / "resumed" / "1.ckpt")
    return {name: tuple(weight.shape) for name, weight in whole.items()}, weights_sha256(whole), weights_sha256(resumed)


@pytest.mark.distributed
def test_a_sharded_fit_that_goes_on_ends_in_the_same_bits_and_its_checkpoints_are_whole(tmp_path):
    first, second = values_of_ranks(whole_and_resumed, tmp_path)
    assert first == second
    shapes, whole, resumed = first
    assert whole == resumed
    assert shapes == {name: tuple(weight.shape) for name, weight in Sharded().state_dict().items()}
