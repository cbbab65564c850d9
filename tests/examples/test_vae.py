"""`examples/vae.py` lays digits out on a plane."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.examples.running import Run, digests_of_whole_and_resumed


@pytest.fixture
def vae(example: Callable[[str], Run]) -> Run:
    return example("vae.py")


def bound_of(out: str, pictures: int = 257) -> float:
    return float(re.search(rf"^bound on new pictures (-[\d.]+) nats each, of {pictures}$", out, re.MULTILINE)[1])


def test_ten_epochs_reach_a_bound_of_181_nats_and_draw_the_plane(vae: Run) -> None:
    ended = vae("--max-epochs", "10", "--run-dir", "run")
    assert ended.status == 0
    assert bound_of(ended.out) == pytest.approx(-181.4, abs=4)
    for name, size in (("manifold", (800, 800)), ("reconstructions", (800, 150))):
        assert f"run/{name}.png" in ended.out
        with Image.open(f"run/{name}.png") as picture:
            assert picture.size == pytest.approx(size, abs=20)


def test_more_dimensions_than_two_give_a_better_bound_and_samples_in_the_place_of_the_plane(vae: Run) -> None:
    ended = vae("--max-epochs", "10", "--latent", "10", "--run-dir", "run")
    assert bound_of(ended.out) > -150
    assert Path("run/samples.png").exists()
    assert not Path("run/manifold.png").exists()


def test_a_run_that_goes_on_ends_in_the_same_bits(vae: Run) -> None:
    whole, resumed = digests_of_whole_and_resumed(vae)
    assert whole == resumed


def test_it_trains_on_mnist(vae: Run, small_mnist: Callable[[Path], None]) -> None:
    small_mnist(Path("data/MNIST/raw"))
    ended = vae("--dataset", "mnist", "--max-epochs", "2", "--hidden", "32", "--run-dir", "run")
    assert ended.status == 0
    assert bound_of(ended.out, pictures=60) > -784  # what a coin for each pixel costs is 543
