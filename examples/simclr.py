"""Trains an encoder of pictures without labels, then shows what a few labels are worth with it.

    python examples/simclr.py                    # scikit-learn's 1,797 digits, which come with it
    python examples/simclr.py --dataset cifar10 --width 64 --temperature 0.5 --max-epochs 200  # downloads CIFAR-10

T. Chen, S. Kornblith, M. Norouzi and G. Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020. `probes.png` shows how many new pictures a linear classifier recognises that was trained
with few labels: on the encoder's features, on pixels, and on the features of the encoder before its training. As in
figure 8 of the paper, features before the projection head are better than those behind it; here with up to five labels
of each class, and after the complete training only.

Expect 79 % of new digits to be recognised with one label of each class, 68 % behind the head and 62 % by pixels; with
ten labels, 96 % and by pixels 85 %.
"""

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from camshaft import Engine, OptimizerStep
from camshaft.contrib.datasets import IMAGES, images
from camshaft.contrib.pictures import jittered
from camshaft.engine.distributed import rank
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256

LABELS = (1, 2, 5, 10, 20, 50)  # of each class
DRAWS = 20  # of which pictures have labels


def main() -> None:
    options = start(option_parser())
    data = images(options.dataset, options.data_dir)

    # ------------------------------------------------------------------------------------------------ the research

    encoder = convolutional_encoder(data.shape[0], options.width)
    untrained = copy.deepcopy(encoder)
    features = 16 * options.width
    head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 64))
    model = nn.Sequential(encoder, head)

    def training_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pictures, _ = batch
        return contrastive_loss(model(torch.cat([augmented(pictures), augmented(pictures)])), options.temperature)

    # ------------------------------------------------------------------------------------------------ the engineering

    loader = DataLoader(data.train, batch_size=options.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer), *standard_handlers(options, log_every=1, model=model, optimizer=optimizer)
    )
    trainer.run(loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    model.cpu().eval()
    representations = {
        "encoder": encoder,
        "behind the head": model,
        "pixels": nn.Flatten(),
        "untrained encoder": untrained.eval(),
    }
    shares = {
        name: probe(featuriser, data.train, data.test, data.classes) for name, featuriser in representations.items()
    }
    print(f"labels of each class  {' '.join(f'{number:6}' for number in LABELS)}")
    for name, of_name in shares.items():
        print(f"{name:<21} {' '.join(f'{share:6.1%}' for share in of_name.tolist())}")
    print(f"picture               {draw(shares, options.run_dir / 'probes.png')}")
    print(f"weights sha256: {weights_sha256(model)}")


def convolutional_encoder(channels: int, width: int) -> nn.Sequential:
    """Square pictures of 8 pixels or more -> 16 * width features."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if outputs < 4 * width else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


def augmented(pictures: torch.Tensor) -> torch.Tensor:
    """Moved, turned, zoomed, brighter or darker; those in colour also tinted, and half of them mirrored."""
    number, channels, size, _ = pictures.shape
    views = jittered(pictures, pixels=size / 8, degrees=15, zoom=0.2)
    brightness = torch.empty(number, channels, 1, 1, device=pictures.device).uniform_(0.6, 1.4)
    mirrored = (torch.rand(number, 1, 1, 1, device=pictures.device) < 0.5) & (channels == 3)
    return (brightness * torch.where(mirrored, views.flip(3), views)).clamp(0, 1)


def contrastive_loss(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent: each view is to be told by its similarity to the other one of its picture from all other views.

    The first half of the projections (2 * pictures, size) are of one view each, the second of the other.
    """
    views = F.normalize(projections.float(), dim=1)
    similarities = views @ views.T / temperature
    similarities.fill_diagonal_(-torch.inf)
    others = torch.arange(len(views), device=views.device).roll(len(views) // 2)
    return F.cross_entropy(similarities, others)


@torch.no_grad()
def probe(featuriser: nn.Module, train: Dataset, test: Dataset, classes: int) -> torch.Tensor:
    """The share of new pictures that a linear classifier recognises, for each number of labels; mean over draws."""
    (pictures, labels), (new, new_labels) = (
        next(iter(DataLoader(part, batch_size=len(part)))) for part in (train, test)
    )
    features, new_features = featuriser(pictures), featuriser(new)
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    features, new_features = (features - mean) / deviation, (new_features - mean) / deviation
    generator = torch.Generator().manual_seed(0)  # the same labels for all
    shares = torch.zeros(DRAWS, len(LABELS))
    for draw in range(DRAWS):
        order = torch.randperm(len(labels), generator=generator)
        for column, count in enumerate(LABELS):
            chosen = torch.cat([order[labels[order] == label][:count] for label in range(classes)])
            weights = ridge_regression(features[chosen], F.one_hot(labels[chosen], classes) - 1 / classes)
            shares[draw, column] = ((new_features @ weights).argmax(1) == new_labels).float().mean()
    return shares.mean(0)


def ridge_regression(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The weights (features, classes) of least squares with a penalty."""
    kernel = features @ features.T
    kernel += 0.1 * kernel.diagonal().mean() * torch.eye(len(kernel))
    return features.T @ torch.linalg.solve(kernel, targets.float())


def draw(shares: Mapping[str, torch.Tensor], path: Path) -> Path:
    """The share of new pictures recognised against the number of labels, a line for each representation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    panel = figure.subplots()
    for (name, of_name), line in zip(shares.items(), ("-", "--", ":", "-."), strict=True):
        panel.semilogx(LABELS, 100 * of_name, linestyle=line, marker="o", label=name)
    panel.set_xticks(LABELS, LABELS)
    panel.minorticks_off()
    panel.set(xlabel="labels of each class", ylabel="new pictures recognised (%)")
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path)
    return path


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=60, batch_size=256, threads=1)
    parser.add_argument("--temperature", type=number(float, least=0.01), default=0.2, help="of the similarities")
    parser.add_argument("--width", type=number(int, least=1), default=16, help="channels of the first layer")
    parser.add_argument("--dataset", choices=IMAGES, default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads")
    return parser


if __name__ == "__main__":
    run_script(main)
