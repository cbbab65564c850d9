"""Where the Trainer differs from Lightning on purpose, as docs/from-lightning.md lists it."""

import os
import resource
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import camshaft.contrib.lightning as pl
from camshaft.handlers.preemption import PREEMPTED

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
SILENT = {**QUIET, "enable_checkpointing": False}


class Model(pl.LightningModule):
    """Draws random numbers in its data and in its dropout."""

    def __init__(self, interrupted_at=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.interrupted_at = interrupted_at

    def training_step(self, batch, batch_idx):
        if self.interrupted_at is not None and self.global_step == self.interrupted_at[0]:
            signal.raise_signal(self.interrupted_at[1])
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self):
        data = TensorDataset(torch.randn(24, 4, generator=torch.Generator().manual_seed(0)))
        return DataLoader(data, batch_size=4, shuffle=True)


def same_weights(one, other):
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


# Accumulation


class Sum(pl.LightningModule):
    """One weight, whose gradient is the mean of the batches of its group; SGD of rate 1 shows it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize(
    ("lightning_way", "moved"),
    [(False, -(1 + 2 + 3) / 3 - 4), (True, -(1 + 2 + 3) / 3 - 4 / 3)],
    ids=["ours", "theirs"],
)
def test_an_incomplete_last_group_is_divided_by_its_own_size(lightning_way, moved):
    model = Sum()
    trainer = pl.Trainer(max_epochs=1, accumulate_grad_batches=3, lightning_way=lightning_way, **SILENT)
    trainer.fit(model, [torch.tensor(float(number)) for number in (1, 2, 3, 4)])
    assert trainer.global_step == 2
    assert model.weight.item() == pytest.approx(moved)


@pytest.mark.parametrize(("lightning_way", "steps"), [(False, 3), (True, 6)], ids=["ours", "theirs"])
def test_global_step_counts_the_steps_of_one_optimizer(lightning_way, steps):
    class Two(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.one, self.other = nn.Linear(1, 1), nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            for optimizer, layer in zip(self.optimizers(), (self.one, self.other), strict=True):
                optimizer.zero_grad()
                self.manual_backward(layer(batch).mean())
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.one, self.other)]

    trainer = pl.Trainer(max_epochs=1, lightning_way=lightning_way, **SILENT)
    trainer.fit(Two(), [torch.ones(2, 1)] * 3)
    assert trainer.global_step == steps


# Ends


def test_sigterm_leaves_a_checkpoint_and_a_status_that_tells_it(tmp_path, capsys):
    trainer = pl.Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(SystemExit) as ended:
        trainer.fit(Model(interrupted_at=(8, signal.SIGTERM)))
    assert ended.value.code == PREEMPTED == 75
    assert len(list(tmp_path.rglob("preempted.ckpt"))) == 1
    assert "SIGTERM came in epoch 1, step 9" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("step", [0, 6, 8, 11], ids="step{}".format)
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["sigterm", "ctrl-c"]
)
def test_what_was_cut_off_goes_on_to_the_same_bits(number, error, step, tmp_path):
    torch.manual_seed(1)
    whole = Model()
    pl.Trainer(max_epochs=3, **SILENT).fit(whole)

    torch.manual_seed(1)
    with pytest.raises(error):
        pl.Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET).fit(Model(interrupted_at=(step, number)))
    torch.manual_seed(2)
    resumed = Model()
    trainer = pl.Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET)
    (saved,) = (*tmp_path.rglob("preempted.ckpt"), *tmp_path.rglob("interrupted.ckpt"))
    trainer.fit(resumed, ckpt_path=saved)
    assert trainer.global_step == 18
    assert same_weights(whole, resumed)


def test_last_is_the_newest_checkpoint_that_there_is(tmp_path):
    with pytest.raises(SystemExit):
        pl.Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET).fit(Model(interrupted_at=(8, signal.SIGTERM)))
    trainer = pl.Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET)
    trainer.fit(Model(), ckpt_path="last")
    assert os.path.basename(trainer.ckpt_path or "") in ("", "preempted.ckpt")  # noqa: PTH119
    assert trainer.global_step == 18


@pytest.mark.parametrize("step", [1, 6, 8, 11], ids="step{}".format)
def test_a_batch_in_which_an_error_was_raised_comes_once_more(step, tmp_path):
    class Fails(Model):
        def training_step(self, batch, batch_idx):
            if self.global_step == self.interrupted_at:
                raise ArithmeticError
            self.seen.append((self.current_epoch, batch_idx))
            return self.layers(batch[0]).square().mean()

    def failing(at):
        model = Fails(interrupted_at=at)
        model.seen = []
        return model

    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=0, save_on_exception=True)
    first, second = failing(step), failing(None)
    with pytest.raises(ArithmeticError):
        pl.Trainer(max_epochs=3, callbacks=[checkpoint], **QUIET).fit(first)
    (saved,) = tmp_path.iterdir()
    pl.Trainer(max_epochs=3, **SILENT).fit(second, ckpt_path=saved)
    assert first.seen + second.seen == [(epoch, batch) for epoch in range(3) for batch in range(6)]


# Checkpoints


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    model = Model()
    trainer = pl.Trainer(max_epochs=1, **SILENT)
    trainer.fit(model)
    path = tmp_path / "kept.ckpt"
    trainer.save_checkpoint(path)
    before = path.read_bytes()
    model.more = nn.Parameter(torch.zeros(1_000_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # what a full disk is to this file
    try:
        with pytest.raises((OSError, RuntimeError)):
            trainer.save_checkpoint(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["kept.ckpt"]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Evil(tmp_path / "was-run")}, path)
    with pytest.raises(ValueError, match=r"evil\.ckpt"):
        pl.Trainer(max_epochs=1, **SILENT).fit(Model(), ckpt_path=path)
    assert not (tmp_path / "was-run").exists()


def test_a_directory_that_cannot_be_written_to_is_an_error_when_fit_begins(tmp_path):
    (tmp_path / "file").touch()
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path / "file" / "kept")
    model = Model()
    with pytest.raises(OSError, match="file"):
        pl.Trainer(max_epochs=1, callbacks=[checkpoint], **QUIET).fit(model)
    assert model.global_step == 0
