"""Trains a U-Net to tell of each pixel of a picture what it belongs to.

    python examples/unet.py                 # scenes of scikit-learn's digits among scraps of others
    python examples/unet.py --dataset pets  # downloads 7,349 photographs of cats and dogs with their outlines

Ronneberger, Fischer and Brox, "U-Net: Convolutional networks for biomedical image segmentation", MICCAI 2015: it looks
at the picture at ever coarser scales, then brings what it found back to the pixels, at each scale beside what was seen
there. `segments.png` shows pictures never seen in training, the truth, and what the network says.

Expect a mean intersection over union of about 0.85 over the background and the ten digits.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.metrics import Accuracy, ConfusionMatrix, mIoU
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from camshaft import Device, Engine, Evaluate, Events, LRScheduler, Metrics, OptimizerStep
from camshaft.contrib.datasets import images
from camshaft.contrib.pictures import picture_grid
from camshaft.engine.distributed import rank, world_size
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256

Pair = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    options = start(option_parser())
    data = DATASETS[options.dataset](options)

    # ------------------------------------------------------------------------------------------------ the research

    model = UNet(data.channels, options.width, options.depth, data.classes)

    def training_step(engine: Engine, batch: Pair) -> torch.Tensor:
        pictures, segments = batch  # (batch, channels, height, width), (batch, height, width)
        return F.cross_entropy(model(pictures), segments, data.weights.to(pictures.device))

    def evaluation_step(engine: Engine, batch: Pair) -> Pair:
        pictures, segments = batch
        return model(pictures).float(), segments

    # ------------------------------------------------------------------------------------------------ the engineering

    train_loader = DataLoader(data.train, options.batch_size, shuffle=True, drop_last=True)
    val_loader, test_loader = (DataLoader(part, batch_size=64) for part in (data.validation, data.test))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    steps = options.max_epochs * (len(data.train) // (options.batch_size * world_size()))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps + 1, pct_start=0.15)

    evaluator = Engine(evaluation_step).attach(
        Metrics(accuracy=Accuracy(), iou=mIoU(ConfusionMatrix(data.classes))), Device(options.device)
    )
    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        LRScheduler(schedule, per="step"),
        Evaluate(evaluator, val_loader),
        Evaluate(evaluator, test_loader, at=Events.COMPLETED, prefix="test_"),
        *standard_handlers(options, model=model, optimizer=optimizer, monitor="val_iou"),
    )
    trainer.run(train_loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    metrics = trainer.state.metrics
    print(f"\nmean IoU  {float(metrics['test_iou']):.3f} of {data.classes} classes in {len(data.test)} unseen pictures")
    print(f"accuracy  {metrics['test_accuracy']:.1%} of their pixels")
    print(f"picture   {draw(model, data, options.run_dir / 'segments.png')}")
    print(f"weights sha256: {weights_sha256(model)}")


class UNet(nn.Module):
    """Down by halves, and up again; each level has twice as many channels as the one above."""

    def __init__(self, channels: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(convolutions(*pair) for pair in zip([channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * above, above, 2, stride=2) for above in widths[-2::-1])
        self.merge = nn.ModuleList(convolutions(2 * above, above) for above in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, channels, height, width) -> (batch, classes, …)
        seen = []  # at each level, finest first
        for level, down in enumerate(self.down):
            x = down(x if level == 0 else F.max_pool2d(x, 2))
            seen.append(x)
        for beside, up, merge in zip(seen[-2::-1], self.up, self.merge, strict=True):
            x = merge(torch.cat([beside, up(x)], 1))
        return self.head(x)


def convolutions(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()),
        *(nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()),
    )


class Segmentation(NamedTuple):
    train: Dataset[Pair]
    validation: Dataset[Pair]
    test: Dataset[Pair]
    channels: int
    classes: int
    weights: torch.Tensor  # of the classes in the loss: as in the paper, rare ones have more


def scenes(options: argparse.Namespace) -> Segmentation:
    """Pictures of 32 by 32 pixels, in each of which four digits stand among scraps: class 0, digits 1 to 10."""
    digits = images("digits")
    parts = (
        TensorDataset(*map(torch.stack, zip(*(scene(part, seed) for seed in range(count)), strict=True)))
        for part, count in ((digits.train, options.scenes), (digits.validation, 100), (digits.test, 100))
    )
    return Segmentation(*parts, channels=1, classes=11, weights=torch.tensor([0.2] + [1.0] * 10))


def scene(digits: Dataset[Pair], seed: int) -> Pair:
    """One picture, and the class of each of its pixels."""
    generator = torch.Generator().manual_seed(seed)

    def below(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    picture, segments = torch.zeros(1, 32, 32), torch.zeros(32, 32, dtype=torch.int64)
    for _ in range(16):  # scraps: corners of digits
        (digit, _), y, x, top, left = digits[below(len(digits))], below(28), below(28), below(5), below(5)
        picture[:, y : y + 4, x : x + 4] += digit[:, top : top + 4, left : left + 4]
    for quarter in range(4):
        (digit, label), y, x = digits[below(len(digits))], below(9), below(9)
        y, x = y + 16 * (quarter // 2), x + 16 * (quarter % 2)
        picture[:, y : y + 8, x : x + 8] = digit
        segments[y : y + 8, x : x + 8] = torch.where(digit[0] > 0.25, label + 1, 0)
    noise = torch.rand(picture.shape, generator=generator)
    return (0.8 * picture.clamp(max=1) + 0.2 * noise), segments


def pets(options: argparse.Namespace) -> Segmentation:
    """The photographs of Parkhi et al., "Cats and dogs", CVPR 2012: the animal 0, the background 1, its outline 2."""
    from torchvision import datasets  # only needed here
    from torchvision.transforms import functional as transform

    def both(photograph: Any, outline: Any) -> Pair:
        size, nearest = [options.size, options.size], transform.InterpolationMode.NEAREST
        segments = transform.pil_to_tensor(transform.resize(outline, size, nearest))[0].long() - 1
        return transform.to_tensor(transform.resize(photograph, size)), segments

    try:
        known, test = (
            datasets.OxfordIIITPet(options.data_dir, split, "segmentation", transforms=both, download=True)
            for split in ("trainval", "test")
        )
    except (RuntimeError, OSError) as error:
        raise OSError(f"The pets could neither be loaded from {options.data_dir} nor downloaded: {error}") from error
    train, validation = random_split(known, [0.9, 0.1], torch.Generator().manual_seed(0))
    return Segmentation(train, validation, test, channels=3, classes=3, weights=torch.ones(3))


DATASETS: dict[str, Callable[[argparse.Namespace], Segmentation]] = {"digits": scenes, "pets": pets}


@torch.inference_mode()
def draw(model: UNet, data: Segmentation, path: Path) -> Path:
    """Eight pictures, each above the truth and the prediction in colours, the background in black."""
    pictures, segments = (torch.stack(parts) for parts in zip(*(data.test[index] for index in range(8)), strict=True))
    predicted = model.eval()(pictures.to(model.head.weight.device)).argmax(1).cpu()
    hues = torch.arange(data.classes) / (data.classes - 1) * 2 * torch.pi
    colours = 0.5 + 0.45 * torch.stack([torch.cos(hues - shift) for shift in (0, 2.1, 4.2)], 1)  # (classes, 3)
    colours[0] = 0
    in_colours = [colours[of_pixels].permute(0, 3, 1, 2) for of_pixels in (segments, predicted)]
    rows = torch.cat([pictures.expand(-1, 3, -1, -1), *in_colours])
    return picture_grid(rows, path, columns=8, row_titles=["picture", "truth", "predicted"])


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=8, batch_size=8, threads=1)
    parser.add_argument("--dataset", choices=DATASETS, default="digits")
    parser.add_argument("--scenes", type=number(int, least=1), default=1000, help="of digits to train on")
    parser.add_argument("--size", type=number(int, least=8), default=64, help="of the pets, in pixels")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads")
    parser.add_argument("--width", type=number(int, least=1), default=12, help="channels of the finest level")
    parser.add_argument("--depth", type=number(int, least=1), default=2, help="how often the picture is halved")
    parser.add_argument("--lr", type=number(float, least=0), default=1e-2, help="the largest learning rate")
    return parser


if __name__ == "__main__":
    run_script(main)
