"""A fit that is cut off anywhere and gone on with by a new trainer ends in the same bits as one that was not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.callbacks import EarlyStopping, ModelCheckpoint

SAMPLES = TensorDataset(torch.randn(38, 3, generator=torch.Generator().manual_seed(1)))
PROGRAM = Path(__file__).with_name("resume_program.py")


class Killed(BaseException):
    """What cuts a fit off; nothing in the trainer may take care of it."""


class Model(pl.LightningModule):
    """Dropout, a schedule, validation that draws random numbers; its hooks note what they see.

    Args:
        kill: the hook in which to die, and at which of its calls.
    """

    def __init__(self, kill: tuple[str, int] | None = None, plateau: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.kill, self.calls, self.plateau = kill, 0, plateau

    def _reach(self, hook: str) -> None:
        if self.kill is not None and self.kill[0] == hook:
            self.calls += 1
            if self.calls == self.kill[1]:
                raise Killed

    def training_step(self, batch, batch_idx):
        self._reach("training_step")
        loss = (self.net(batch[0]) - 1).square().mean()
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self._reach("validation_step")
        self.log("val_loss", self.net(batch[0] + torch.randn(3)).square().mean())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self._reach("on_train_batch_end")

    def on_validation_end(self):
        if not self.trainer.sanity_checking:
            self._reach("on_validation_end")

    def on_train_epoch_end(self):
        self._reach("on_train_epoch_end")

    def on_train_epoch_start(self):
        self._reach("on_train_epoch_start")

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        if self.plateau:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}
        by_step = {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95), "interval": "step"}
        return [optimizer], [by_step, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Stream(IterableDataset):
    """Data without a length, the same each epoch."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(5)
        for _ in range(38):
            yield (torch.randn(3, generator=generator),)


class Rows(pl.Callback):
    """Notes what could be seen at the end of each epoch."""

    def __init__(self) -> None:
        self.rows: dict[int, Any] = {}

    def on_train_epoch_end(self, trainer, pl_module):
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows[trainer.current_epoch] = (trainer.global_step, rate, values)

    def state_dict(self) -> dict[str, Any]:
        return {}


def fit(directory: Path, model: Model, *, resume: bool = False, workers: int = 0, stream: bool = False, **flags: Any):
    """One fit: its trainer and what its epochs showed."""
    torch.manual_seed(7)
    rows = Rows()
    settings: dict[str, Any] = {"max_epochs": 3, "every_n_train_steps": 1, "stopping": False, **flags}
    every = settings.pop("every_n_train_steps")
    checkpoint = ModelCheckpoint(
        directory,
        every_n_train_steps=every or None,
        save_last=True,
        save_top_k=0 if every else 1,
        monitor=None if every else "train_loss",
        every_n_epochs=None if every else 1,
    )
    callbacks = [rows, checkpoint]
    if settings.pop("stopping"):
        callbacks.append(EarlyStopping("val_loss", patience=1))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=directory,
        **settings,
    )
    if stream:
        train = DataLoader(Stream(), batch_size=4)
    else:
        train = DataLoader(SAMPLES, batch_size=4, shuffle=True, num_workers=workers)
    trainer.fit(model, train, DataLoader(SAMPLES, batch_size=16), ckpt_path="last" if resume else None)
    return trainer, rows.rows


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


WHERE = {
    "first batch": ("training_step", 2),
    "mid-epoch": ("training_step", 5),
    "second epoch": ("training_step", 14),
    "last batch": ("training_step", 10),
    "end of a batch": ("on_train_batch_end", 4),
    "end of the last batch": ("on_train_batch_end", 10),
    "during validation": ("validation_step", 6),
    "end of validation": ("on_validation_end", 1),
    "end of the epoch": ("on_train_epoch_end", 1),
    "beginning of an epoch": ("on_train_epoch_start", 2),
    "last epoch's end": ("on_train_epoch_end", 3),
}
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 3},
    "two validations an epoch": {"val_check_interval": 0.5},
    "early stopping": {"stopping": True, "max_epochs": 6},
    "limited": {"limit_train_batches": 7},
    "clipping": {"gradient_clip_val": 0.1},
}
CASES = [
    (where, how)
    for where in WHERE
    for how in HOW
    if how == "plain" or where in ("mid-epoch", "end of the epoch", "second epoch")
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What fits that nobody interrupts come to, by how they go; each is made once."""
    known: dict[str, Any] = {}

    def get(how: str, **model: Any):
        if how not in known:
            module = Model(**model)
            flags = HOW.get(how, {})
            _, rows = fit(tmp_path_factory.mktemp("whole"), module, **({"stream": True} if how == "stream" else flags))
            known[how] = bits(module), rows
        return known[how]

    return get


def assert_equal(model: nn.Module, rows: dict[int, Any], expected: tuple[list[torch.Tensor], dict[int, Any]]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(bits(model), expected[0], strict=True))
    assert rows == {epoch: row for epoch, row in expected[1].items() if epoch in rows}
    assert max(rows) == max(expected[1])


@pytest.mark.parametrize(("where", "how"), CASES, ids=lambda name: name.replace(" ", "_"))
def test_a_fit_that_is_killed_ends_in_the_same_bits(tmp_path, uninterrupted, where, how):
    with pytest.raises(Killed):
        fit(tmp_path, Model(WHERE[where]), **HOW[how])
    model = Model()
    _, rows = fit(tmp_path, model, resume=True, **HOW[how])
    assert_equal(model, rows, uninterrupted(how))


@pytest.mark.parametrize("where", ["mid-epoch", "second epoch", "end of validation"])
def test_data_without_length_goes_on_where_it_was(tmp_path, uninterrupted, where):
    with pytest.raises(Killed):
        fit(tmp_path, Model(WHERE[where]), stream=True)
    model = Model()
    with pytest.warns(UserWarning, match="loaded again and passed over"):
        _, rows = fit(tmp_path, model, resume=True, stream=True)
    assert_equal(model, rows, uninterrupted("stream"))


def test_a_plateau_s_schedule_goes_on(tmp_path):
    whole = Model(plateau=True)
    _, expected = fit(tmp_path / "whole", whole, max_epochs=4)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", Model(("training_step", 24), plateau=True), max_epochs=4)
    model = Model(plateau=True)
    _, rows = fit(tmp_path / "cut", model, resume=True, max_epochs=4)
    assert_equal(model, rows, (bits(whole), expected))


def test_checkpoints_of_epochs_go_on_as_well(tmp_path):
    whole = Model()
    _, expected = fit(tmp_path / "whole", whole, every_n_train_steps=0)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", Model(WHERE["second epoch"]), every_n_train_steps=0)
    model = Model()
    _, rows = fit(tmp_path / "cut", model, resume=True, every_n_train_steps=0)
    assert_equal(model, rows, (bits(whole), expected))


def test_workers_give_the_same_batches_again(tmp_path):
    whole = Model()
    _, expected = fit(tmp_path / "whole", whole, workers=2, max_epochs=2)
    with pytest.raises(Killed):
        fit(tmp_path / "cut", Model(WHERE["mid-epoch"]), workers=2, max_epochs=2)
    model = Model()
    _, rows = fit(tmp_path / "cut", model, resume=True, workers=2, max_epochs=2)
    assert_equal(model, rows, (bits(whole), expected))


def test_a_finished_fit_goes_on_with_more_epochs(tmp_path, uninterrupted):
    fit(tmp_path, Model(), max_epochs=2)
    model = Model()
    _, rows = fit(tmp_path, model, resume=True)
    assert_equal(model, rows, uninterrupted("plain"))


@pytest.fixture(scope="module")
def preempted(tmp_path_factory):
    """A process that gets SIGTERM in the midst of its fit, the process that goes on, and one that nobody disturbed."""
    directory = tmp_path_factory.mktemp("preempted")

    def run(name: str, *arguments: str):
        command = [sys.executable, str(PROGRAM), str(directory / name), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    whole = run("whole")
    cut = run("cut", "--sigterm-at=7")
    kept = sorted(path.name for path in (directory / "cut").rglob("*.ckpt"))
    on = run("cut")
    return whole, cut, kept, on


def test_sigterm_ends_with_the_status_that_asks_to_be_started_again(preempted):
    _, cut, _, _ = preempted
    assert cut.returncode == 75, cut.stderr
    assert "SIGTERM came in epoch 0" in cut.stderr


def test_sigterm_saves(preempted):
    assert "preempted.ckpt" in preempted[2]


def test_a_preempted_process_started_again_ends_in_the_same_bits(preempted):
    whole, _, _, on = preempted
    assert whole.returncode == on.returncode == 0, whole.stderr + on.stderr
    assert on.stdout == whole.stdout


def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(tmp_path, monkeypatch):
    fit(tmp_path, Model(), max_epochs=1)
    before = (tmp_path / "last.ckpt").read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path, Model(), max_epochs=1)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.glob("*.writing"))


def test_a_damaged_checkpoint_is_told(tmp_path):
    fit(tmp_path, Model(), max_epochs=1)
    path = tmp_path / "last.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="checkpoint"):
        fit(tmp_path, Model(), resume=True)
