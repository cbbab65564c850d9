"""`examples/diffusion.py` makes digits of noise."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.examples.running import Run, digests_of_whole_and_resumed

SMALL = ("--width", "8", "--steps", "40", "--samples", "100")


@pytest.fixture
def diffusion(example: Callable[[str], Run]) -> Run:
    return example("diffusion.py")


def distances_of(out: str) -> dict[str, float]:
    rows = re.findall(r"^(\w+) +([\d.]+) from the training's pictures$", out, re.MULTILINE)
    return {name: float(distance) for name, distance in rows}


@pytest.mark.slow
def test_twenty_epochs_bring_noise_most_of_the_way_to_digits(diffusion: Run) -> None:
    ended = diffusion("--width", "16", "--steps", "50", "--samples", "300", "--max-epochs", "20", "--run-dir", "run")
    assert ended.status == 0
    distances = distances_of(ended.out)
    assert distances["new"] == pytest.approx(0.33, abs=0.1)
    assert distances["new"] < distances["made"] < 8
    assert distances["noise"] > 40
    for name in ("samples", "progression"):
        with Image.open(f"run/{name}.png") as picture:
            assert picture.width == 800


def test_a_run_that_goes_on_ends_in_the_same_bits(diffusion: Run) -> None:
    whole, resumed = digests_of_whole_and_resumed(diffusion, *SMALL)
    assert whole == resumed


def test_it_trains_on_mnist(diffusion: Run, small_mnist: Callable[[Path], None]) -> None:
    small_mnist(Path("data/MNIST/raw"))
    ended = diffusion("--dataset", "mnist", *SMALL, "--max-epochs", "1", "--run-dir", "run")
    assert ended.status == 0
    assert set(distances_of(ended.out)) == {"made", "new", "noise"}
