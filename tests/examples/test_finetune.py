"""`examples/finetune.py`: what a network has learned from some classes helps with others."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.examples.running import Run, digest_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"


@pytest.fixture
def finetune(example: Callable[[str], Run]) -> Run:
    return example("finetune.py")


def accuracies_of(out: str) -> dict[str, float]:
    return {name: float(share) for name, share in re.findall(r"^(\w+) +([\d.]+)%$", out, re.MULTILINE)}


@pytest.mark.slow
def test_pretrained_networks_learn_new_digits_better_than_those_begun_anew(finetune: Run) -> None:
    ended = finetune("--pretraining-epochs", "4", "--max-epochs", "3", "--run-dir", "run")
    assert ended.status == 0, ended.err
    assert "on 106 new pictures, after training on 20" in ended.out
    accuracy = accuracies_of(ended.out)
    assert set(accuracy) == {
        "gradual",
        "scratch_0",
        *(f"{kind}_{n}" for kind in ("frozen", "tuned") for n in range(1, 6)),
    }
    assert max(accuracy["tuned_4"], accuracy["tuned_5"]) > accuracy["scratch_0"] + 15
    with Image.open("run/transfer.png") as picture:
        assert picture.size == (800, 500)


def write_pictures(folder: Path) -> None:
    """Two classes of small pictures, red and green ones."""
    generator = torch.Generator().manual_seed(0)
    for name, channel in (("green", 1), ("red", 0)):
        (folder / name).mkdir(parents=True)
        for number in range(15):
            pixels = torch.rand(40, 50, 3, generator=generator) * 0.5
            pixels[..., channel] += 0.5
            Image.fromarray((pixels * 255).byte().numpy()).save(folder / name / f"{number}.png")


def test_it_learns_a_folder_of_pictures_and_goes_on_to_the_same_bits(finetune: Run) -> None:
    write_pictures(Path("pictures"))
    command = ("--data-dir", "pictures", "--batch-size", "8", "--run-dir")
    whole = finetune(*command, "whole", "--max-epochs", "2")
    assert whole.status == 0, whole.err
    assert "accuracy on 6 new pictures, after training on 24" in whole.out
    assert list(accuracies_of(whole.out)) == ["gradual"]
    for epochs in ("1", "2"):
        resumed = finetune(*command, "resumed", "--max-epochs", epochs)
    assert digest_of(resumed.out) == digest_of(whole.out)


def test_blocks_are_frozen_until_their_epoch_and_learn_slower_further_down(finetune: Run) -> None:
    write_pictures(Path("pictures"))
    finetune("--data-dir", "pictures", "--batch-size", "8", "--run-dir", "run", "--max-epochs", "3")
    before, after = (torch.load(path / "state.pt") for path in sorted(Path("run/checkpoints").glob("*epoch=*")))
    pairs = zip(after["gradual"].items(), before["gradual"].values(), strict=True)
    assert {name.split(".")[0] for (name, now), then in pairs if not now.equal(then)} == {"stage4", "conv5", "fc"}
    rates = [group["lr"] for group in after["optimizer"]["param_groups"]]
    assert rates == pytest.approx([5e-3 / 2.6**below for below in range(6)])


@pytest.mark.parametrize(
    ("model", "blocks"), [("resnet18", 7), ("mobilenet_v3_small", 14)], ids=["resnet", "mobilenet"]
)
def test_models_of_torchvision_come_apart_into_blocks_with_a_new_head(model: str, blocks: int) -> None:
    parts = runpy.run_path(str(EXAMPLE))
    options = parts["option_parser"]().parse_args(["--model", model])
    network = parts["model_for"](options, 3)
    assert len(parts["blocks_of"](network)) == blocks
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_weights_that_torchvision_does_not_have_give_one_line_and_status_2(finetune: Run) -> None:
    write_pictures(Path("pictures"))
    ended = finetune("--data-dir", "pictures", "--weights", "MINE", "--run-dir", "run")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("finetune.py: torchvision has no shufflenet_v2_x0_5 with weights MINE")
