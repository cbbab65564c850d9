"""`examples/simclr.py` learns from pictures alone what makes a few labels go far."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.examples.conftest import EXAMPLES
from tests.examples.running import Run, digests_of_whole_and_resumed

SMALL = ("--width", "8", "--batch-size", "128")


@pytest.fixture
def simclr(example: Callable[[str], Run]) -> Run:
    return example("simclr.py")


def shares_of(out: str) -> dict[str, list[float]]:
    """In percent, with 1, 2, 5, 10, 20 and 50 labels of each class."""
    rows = re.findall(r"^([a-z ]+?)((?: +[\d.]+%){6})$", out, re.MULTILINE)
    return {name: [float(share) for share in re.findall(r"[\d.]+", shares)] for name, shares in rows}


@pytest.mark.slow
def test_one_label_of_each_class_is_worth_more_than_two_by_pixels_and_more_than_one_behind_the_head(
    simclr: Run,
) -> None:
    ended = simclr("--run-dir", "run")
    assert ended.status == 0
    shares = shares_of(ended.out)
    assert shares["pixels"][0] == pytest.approx(62.1, abs=1)
    assert shares["encoder"][0] == pytest.approx(79, abs=4)
    assert shares["encoder"][0] > shares["pixels"][1] + 2
    assert shares["encoder"][0] > shares["untrained encoder"][1] + 2
    assert shares["encoder"][0] > shares["behind the head"][0] + 5  # figure 8 of the paper
    with Image.open("run/probes.png") as picture:
        assert picture.size == (800, 500)


def test_a_run_that_goes_on_ends_in_the_same_bits(simclr: Run) -> None:
    whole, resumed = digests_of_whole_and_resumed(simclr, *SMALL)
    assert whole == resumed


def test_it_trains_on_mnist(simclr: Run, small_mnist: Callable[[Path], None]) -> None:
    small_mnist(Path("data/MNIST/raw"))
    ended = simclr("--dataset", "mnist", "--width", "2", "--batch-size", "64", "--max-epochs", "1", "--run-dir", "run")
    assert ended.status == 0
    assert len(shares_of(ended.out)) == 4


def test_the_contrastive_loss_is_that_of_the_paper() -> None:
    """Equation 1, pair by pair."""
    loss = runpy.run_path(str(EXAMPLES / "simclr.py"))["contrastive_loss"]
    projections = torch.randn(6, 4)
    pairs = [(0, 3), (1, 4), (2, 5), (3, 0), (4, 1), (5, 2)]
    similarity = lambda i, k: F.cosine_similarity(projections[i], projections[k], dim=0) / 0.5  # noqa: E731
    expected = [
        -torch.log(similarity(i, j).exp() / sum(similarity(i, k).exp() for k in range(6) if k != i)) for i, j in pairs
    ]
    assert loss(projections, 0.5) == pytest.approx(float(torch.stack(expected).mean()))


def test_pictures_in_colour_are_tinted_and_encoded() -> None:
    functions = runpy.run_path(str(EXAMPLES / "simclr.py"))
    views = functions["augmented"](torch.full((4, 3, 32, 32), 0.5))
    red, green, _ = views[:, :, 16, 16].T
    assert not torch.allclose(red, green, atol=0.01)
    assert functions["convolutional_encoder"](3, 4)(views).shape == (4, 64)
