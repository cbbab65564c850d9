"""`examples/characters.py` learns real text, with batches that count by their characters."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from camshaft import Engine, GradientAccumulation, OptimizerStep, StepEvents
from tests.examples.running import Run, digest_of

ROOT = Path(__file__).parents[2]
LICENSE = ("--text", ROOT / "LICENSE", "--lr", "1e-2")  # which stays as it is


@pytest.fixture
def characters(example: Callable[[str], Run]) -> Run:
    return example("characters.py")


def bits_of(out: str) -> float:
    return float(re.search(r"^bits per character +([\d.]+) of \d+ unseen paragraphs$", out, re.MULTILINE)[1])


def test_it_learns_the_license_and_writes(characters: Run) -> None:
    ended = characters(*LICENSE, "--max-epochs", "6", "--run-dir", "run")
    assert ended.status == 0
    assert bits_of(ended.out) == pytest.approx(3.36, abs=0.05)
    assert len(Path("run/written.txt").read_text()) == 300
    with Image.open("run/curves.png") as picture:
        assert picture.width == 800


def test_by_default_it_reads_pythons_help(characters: Run) -> None:
    ended = characters("--characters", "15000", "--max-epochs", "2", "--run-dir", "run")
    assert ended.status == 0
    assert bits_of(ended.out) < 5


def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(characters: Run) -> None:
    command = (*LICENSE, "--characters", "4000", "--max-epochs", "2", "--run-dir")
    whole = characters(*command, "whole")
    (checkpoint,) = Path("whole/checkpoints").glob("*epoch=1")
    assert digest_of(characters(*command, "other", "--resume", checkpoint).out) == digest_of(whole.out)


def test_the_gradient_of_two_batches_is_that_of_both_as_one() -> None:
    parts = runpy.run_path(str(ROOT / "examples" / "characters.py"))
    text = "In one batch\n\nare paragraphs that are long, or longer,\n\nin\n\nanother\n\nnone."
    sequences = parts["paragraphs"](text, sorted(set(text)), 64)
    model = parts["Transformer"](1 + len(set(text)), 32, 1, 64)
    gradients = {}

    def step(engine: Engine, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        logits, targets = model(batch[:, :-1]), batch[:, 1:]
        return {"loss": parts["cross_entropy"](logits, targets), "characters": (targets != parts["PADDING"]).sum()}

    def gradient(batches: list[torch.Tensor], accumulation: GradientAccumulation) -> torch.Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = Engine(step).attach(OptimizerStep(optimizer), accumulation)
        engine.add_event_handler(
            StepEvents.OPTIMIZER_STEP_STARTED,
            lambda: gradients.update(now=torch.cat([one.grad.flatten() for one in model.parameters()])),
        )
        engine.run(batches)
        return gradients.pop("now")

    batches = [parts["padded"](sequences[:2]), parts["padded"](sequences[2:])]
    at_once = gradient([parts["padded"](sequences)], GradientAccumulation(1))
    weighted = gradient(batches, GradientAccumulation(2, weight="characters"))
    torch.testing.assert_close(weighted, at_once, rtol=0, atol=1e-6)
    mean_of_means = gradient(batches, GradientAccumulation(2))
    assert (mean_of_means - at_once).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "No such file or directory: 'text.txt'"), ("short\n\ntext", "text.txt has 2 paragraphs, too few")],
    ids=["no file", "too short"],
)
def test_a_text_that_cannot_be_gives_one_line_and_status_2(
    content: str | None, complaint: str, characters: Run
) -> None:
    if content is not None:
        Path("text.txt").write_text(content)
    ended = characters("--text", "text.txt", "--run-dir", "run")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("characters.py: ")
    assert complaint in line
