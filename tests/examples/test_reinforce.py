"""`examples/reinforce.py` learns to balance a pole, faster with a baseline than without."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.examples.running import Run, digest_of

SHORT = ("--agents", "1", "--run-dir")


@pytest.fixture
def reinforce(example: Callable[[str], Run]) -> Run:
    return example("reinforce.py")


def returns_of(out: str) -> dict[str, tuple[float, float]]:
    """Of all episodes and of the last ones, by kind."""
    pattern = r"^(with a baseline|without) +([\d.]+) mean return, +([\d.]+) in the last 50 episodes$"
    return {kind: (float(mean), float(last)) for kind, mean, last in re.findall(pattern, out, re.MULTILINE)}


@pytest.mark.slow
def test_policies_learn_faster_with_a_baseline(reinforce: Run) -> None:
    ended = reinforce("--agents", "3", "--max-epochs", "3", "--run-dir", "run")
    assert ended.status == 0
    (with_baseline, its_last), (without, _) = returns_of(ended.out).values()
    assert its_last > 150
    assert with_baseline > 1.2 * without
    with Image.open("run/learning.png") as picture:
        assert picture.size == (800, 500)


def test_a_run_that_goes_on_has_the_same_episodes_and_ends_in_the_same_bits(reinforce: Run) -> None:
    whole = reinforce("--max-epochs", "2", *SHORT, "whole")
    for epochs in ("1", "2"):
        resumed = reinforce("--max-epochs", epochs, *SHORT, "resumed")
    assert digest_of(resumed.out) == digest_of(whole.out)
    assert Path("resumed/metrics.csv").read_text() == Path("whole/metrics.csv").read_text()


def test_another_seed_has_other_episodes(reinforce: Run) -> None:
    first, other = (reinforce("--max-epochs", "1", "--seed", seed, *SHORT, seed) for seed in "01")
    assert returns_of(first.out) != returns_of(other.out)


def test_another_environment_can_be_chosen(reinforce: Run) -> None:
    ended = reinforce("--env", "MountainCar-v0", "--max-epochs", "1", *SHORT, "run")
    assert ended.status == 0
    assert "REINFORCE" not in ended.err


@pytest.mark.parametrize("name", ["Pendulum-v1", "Nowhere-v0"])
def test_an_environment_that_cannot_be_gives_one_line_and_status_2(name: str, reinforce: Run) -> None:
    ended = reinforce("--env", name, *SHORT, "run")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("reinforce.py: ")
    assert name[:-3] in line
