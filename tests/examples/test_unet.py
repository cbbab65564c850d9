"""`examples/unet.py` finds digits among clutter, pixel by pixel."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.examples.running import Run, digest_of

SHORT = ("--scenes", "64", "--width", "4", "--max-epochs", "2", "--run-dir")


@pytest.fixture
def unet(example: Callable[[str], Run]) -> Run:
    return example("unet.py")


def iou_of(out: str, classes: int, pictures: int) -> float:
    pattern = rf"^mean IoU  ([\d.]+) of {classes} classes in {pictures} unseen pictures$"
    return float(re.search(pattern, out, re.MULTILINE)[1])


@pytest.mark.slow
def test_it_tells_digits_from_scraps_and_from_each_other(unet: Run) -> None:
    ended = unet("--scenes", "400", "--max-epochs", "5", "--run-dir", "run")
    assert ended.status == 0
    assert iou_of(ended.out, classes=11, pictures=100) == pytest.approx(0.68, abs=0.05)
    with Image.open("run/segments.png") as picture:
        assert picture.width == 800


def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(unet: Run) -> None:
    whole = unet(*SHORT, "whole")
    (checkpoint,) = Path("whole/checkpoints").glob("*epoch=1")
    assert digest_of(unet(*SHORT, "other", "--resume", checkpoint).out) == digest_of(whole.out)


def write_pets(folder: Path) -> None:
    """Twelve photographs in the files of the Oxford-IIIT Pet data: a bright square, its outline, what lies around."""
    for name in ("images", "annotations/trimaps"):
        (folder / name).mkdir(parents=True)
    for number in range(24):
        segments = torch.full((40, 50), 2, dtype=torch.uint8)
        top, left = number % 5, number % 7
        segments[top : top + 24, left : left + 24] = 3
        segments[top + 3 : top + 21, left + 3 : left + 21] = 1
        photograph = (255 * (segments == 1)).to(torch.uint8).numpy()
        Image.fromarray(photograph).convert("RGB").save(folder / "images" / f"Pug_{number}.jpg")
        Image.fromarray(segments.numpy()).save(folder / "annotations" / "trimaps" / f"Pug_{number}.png")
    for split, numbers in (("trainval", range(16)), ("test", range(16, 24))):
        lines = "".join(f"Pug_{number} 1 2 1\n" for number in numbers)
        (folder / "annotations" / f"{split}.txt").write_text(lines)


def test_it_trains_on_the_files_of_the_pets(unet: Run) -> None:
    write_pets(Path("data/oxford-iiit-pet"))
    pets = ("--dataset", "pets", "--size", "32", "--batch-size", "4", "--max-epochs", "15", "--run-dir", "run")
    ended = unet(*pets)
    assert ended.status == 0, ended.err
    assert iou_of(ended.out, classes=3, pictures=8) > 0.6
    assert Path("run/segments.png").exists()


def test_pets_that_cannot_be_downloaded_give_one_line_and_status_2(unet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    ended = unet("--dataset", "pets", "--run-dir", "run")
    assert ended.status == 2
    (line,) = (line for line in ended.err.splitlines() if line.startswith("unet.py: "))
    assert "The pets could neither be loaded from data nor downloaded" in line
