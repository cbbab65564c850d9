"""Between what a user calls and what a user wrote stand few frames of ours."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import camshaft.contrib.lightning as pl

BATCHES = [torch.ones(4, 2)] * 3
HERE = Path(__file__).name


class Model(pl.LightningModule):
    """Notes the functions on the stack in each of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.stacks: dict[str, list[str]] = {}

    def _note(self, step: str) -> None:
        stack = traceback.extract_stack()
        begin = max(index for index, frame in enumerate(stack) if frame.name == "run_it" and HERE in frame.filename)
        self.stacks[step] = [frame.name for frame in stack[begin + 1 : -2]]  # without those of this file

    def training_step(self, batch, batch_idx):
        self._note("training_step")
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self._note("validation_step")
        self.log("val_loss", self.layer(batch).mean())

    def predict_step(self, batch, batch_idx):
        self._note("predict_step")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run_it(function: str, model: Model, directory: Path, **flags: Any) -> None:
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=directory, **flags)
    getattr(trainer, function)(model, BATCHES)


@pytest.mark.parametrize(
    "flags",
    [{}, {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}],
    ids=["defaults", "clipping_and_accumulation", "bf16"],
)
def test_at_most_eight_frames_are_between_fit_and_training_step(tmp_path, flags):
    model = Model()
    run_it("fit", model, tmp_path, **flags)
    stack = model.stacks["training_step"]
    assert stack[0] == "fit"
    assert len(stack) - 1 <= 8, stack


@pytest.mark.parametrize(("function", "step"), [("validate", "validation_step"), ("predict", "predict_step")])
def test_at_most_ten_frames_are_before_a_step_of_an_evaluation(tmp_path, function, step):
    model = Model()
    run_it(function, model, tmp_path)
    assert len(model.stacks[step]) - 1 <= 10, model.stacks[step]
