"""`examples/gan.py` trains a generator and its critic."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.examples.running import Run, digests_of_whole_and_resumed


@pytest.fixture
def gan(example: Callable[[str], Run]) -> Run:
    return example("gan.py")


def found(pattern: str, out: str) -> float:
    return float(re.search(pattern, out, re.MULTILINE)[1])


@pytest.mark.slow
def test_eight_epochs_cover_all_places_and_nearly_half_of_the_samples_are_good(gan: Run) -> None:
    ended = gan("--max-epochs", "8", "--run-dir", "run")
    assert ended.status == 0
    assert found(r"^covered +(\d) of 8 places$", ended.out) == 8
    assert found(r"^good +([\d.]+)% of 10,000 samples$", ended.out) > 30
    with Image.open("run/critic.png") as picture:
        assert picture.width == 800


@pytest.mark.slow
def test_a_critic_with_a_penalty_tells_the_places_from_the_gaps_and_one_with_clipped_weights_does_not(gan: Run) -> None:
    """Figure 1(a) of the paper."""
    penalty, clipping = (
        found(
            r"^contrast +(-?[\d.]+) standard deviations",
            gan("--generator", "fixed", "--constraint", name, "--max-epochs", "4", "--run-dir", name).out,
        )
        for name in ("penalty", "clipping")
    )
    assert penalty > 0.5
    assert abs(clipping) < 0.2


def test_a_run_that_goes_on_ends_in_the_same_bits(gan: Run) -> None:
    whole, resumed = digests_of_whole_and_resumed(gan, "--hidden", "16")
    assert whole == resumed


def test_it_trains_on_pictures_of_mnist(gan: Run, small_mnist: Callable[[Path], None]) -> None:
    small_mnist(Path("data/MNIST/raw"))
    mnist = ("--dataset", "mnist", "--batch-size", "64", "--hidden", "16", "--max-epochs", "2", "--run-dir", "run")
    ended = gan(*mnist)
    assert ended.status == 0
    with Image.open("run/samples.png") as picture:
        assert picture.size == (800, 800)
