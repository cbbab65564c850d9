"""`examples/distillation.py` teaches small students what they have not seen."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.examples.running import Run, digests_of_whole_and_resumed

SMALL = ("--teacher-hidden", "16", "--hidden", "8", "--teacher-epochs", "1")


@pytest.fixture
def distillation(example: Callable[[str], Run]) -> Run:
    return example("distillation.py")


def shares_of(out: str) -> dict[str, tuple[float, float]]:
    """In percent, of all digits and of the 3s."""
    rows = re.findall(r"^(\w+) +([\d.]+)% of \d+ new pictures, +([\d.]+)% of the 3s$", out, re.MULTILINE)
    return {name: (float(of_all), float(of_threes)) for name, of_all, of_threes in rows}


@pytest.mark.slow
def test_a_student_that_never_saw_a_3_recognises_most_once_its_bias_is_raised(distillation: Run) -> None:
    ended = distillation("--teacher-hidden", "256", "--teacher-epochs", "15", "--max-epochs", "40", "--run-dir", "run")
    assert ended.status == 0
    shares = shares_of(ended.out)
    assert shares["teacher"][0] > 94
    assert shares["distilled"][0] > 92
    assert shares["deprived"][1] < 80
    assert shares["corrected"][1] > shares["deprived"][1] + 10
    assert shares["corrected"][0] > shares["deprived"][0]
    with Image.open("run/omitted.png") as picture:
        assert picture.size == (800, 500)


def test_a_run_that_goes_on_ends_in_the_same_bits(distillation: Run) -> None:
    whole, resumed = digests_of_whole_and_resumed(distillation, *SMALL)
    assert whole == resumed


def test_it_trains_on_mnist(distillation: Run, small_mnist: Callable[[Path], None]) -> None:
    small_mnist(Path("data/MNIST/raw"))
    ended = distillation("--dataset", "mnist", *SMALL, "--max-epochs", "2", "--run-dir", "run")
    assert ended.status == 0
    assert set(shares_of(ended.out)) == {"teacher", "alone", "distilled", "deprived", "corrected"}
