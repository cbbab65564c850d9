"""Trains a diffusion model on handwritten digits and shows how pictures come out of noise.

    python examples/diffusion.py                                # scikit-learn's 1,797 digits, which come with it
    python examples/diffusion.py --dataset mnist --steps 1000   # downloads MNIST; as many steps as the paper has

J. Ho, A. Jain and P. Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020. `progression.png` is figure 6 at
small scale: from the left to the right, what the model expects the final picture to be, and below it the noisy picture
that it sees then. `samples.png` shows pictures that it has made.

Expect a Fréchet distance of 1.2 between the pictures made and those of the training, in the features of a small
classifier; for new digits it is 0.3 and for noise 60. Pictures are made with averaged weights (`EMA`).
"""

import argparse
from pathlib import Path

import torch
from ignite.metrics import Average
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from camshaft import EMA, Device, Engine, Evaluate, GradientClipping, Metrics, OptimizerStep
from camshaft.contrib.datasets import IMAGES, images
from camshaft.contrib.pictures import picture_grid
from camshaft.engine.distributed import rank
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256


def main() -> None:
    options = start(option_parser())
    data = images(options.dataset, options.data_dir)

    # ------------------------------------------------------------------------------------------------ the research

    model = NoisePredictor(data.shape[0], options.width, options.steps)

    def training_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pictures = 2 * batch[0] - 1  # (batch, channels, height, width), from -1 to 1 as the noise
        time = torch.randint(options.steps, (len(pictures),), device=pictures.device)
        noise = torch.randn_like(pictures)
        left = model.left[time, None, None, None]
        return F.mse_loss(model(left.sqrt() * pictures + (1 - left).sqrt() * noise, time), noise)

    # ------------------------------------------------------------------------------------------------ the engineering

    train_loader = DataLoader(data.train, batch_size=options.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    evaluator = Engine(training_step).attach(Metrics(loss=Average()), Device(options.device))
    ema = EMA(model, decay=0.995, warmup=True)

    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        GradientClipping(1.0),
        ema,
        Evaluate(evaluator, DataLoader(data.validation, batch_size=1000), ema=ema),
        *standard_handlers(options, model=model, optimizer=optimizer),
    )
    trainer.run(train_loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    model = ema.module
    shown = [options.steps * part // 8 for part in range(8, -1, -1)]  # of the steps that are still to make
    made, progression = sample(model, options.samples, data.shape, shown)
    print(f"samples      {picture_grid(made[:100], options.run_dir / 'samples.png', columns=20)}")
    path = picture_grid(
        progression[:, :, :4].transpose(0, 2).flatten(0, 2),  # (steps, kinds, 4, …) -> rows of a picture and its noise
        options.run_dir / "progression.png",
        columns=len(shown),
        titles=[f"step {step}" for step in shown],
        row_titles=4 * ["expected", "noisy"],
    )
    print(f"progression  {path}")
    pictures, new = whole(data.train)[0], whole(data.test)[0]
    judge = classifier(data.train, data.classes)
    for name, some in {"made": made, "new": new, "noise": torch.rand_like(made)}.items():
        print(f"{name:<6} {frechet_distance(judge[:-1](some), judge[:-1](pictures)):6.2f} from the training's pictures")
    print(f"weights sha256: {weights_sha256(model)}")


@torch.no_grad()
def sample(
    model: "NoisePredictor", count: int, shape: tuple[int, int, int], shown: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures out of noise; beside them what was expected and still noisy when ``shown`` steps were left."""
    noisy = torch.randn(count, *shape, device=model.left.device)
    progression = []
    for step in range(len(model.left), 0, -1):
        time = torch.full((count,), step - 1, device=noisy.device)
        left, beta = model.left[step - 1], model.beta[step - 1]
        noise = model(noisy, time)
        expected = (noisy - (1 - left).sqrt() * noise) / left.sqrt()
        if step in shown:
            progression.append(torch.stack([expected, noisy]))
        noisy = (noisy - beta / (1 - left).sqrt() * noise) / (1 - beta).sqrt()
        if step > 1:
            noisy = noisy + beta.sqrt() * torch.randn_like(noisy)
    progression.append(torch.stack([noisy, noisy]))
    return (noisy.cpu() / 2 + 0.5).clamp(0, 1), torch.stack(progression).cpu() / 2 + 0.5


class NoisePredictor(nn.Module):
    """A U-Net of two resolutions that is told the time; with the schedule of the noise."""

    def __init__(self, channels: int, width: int, steps: int) -> None:
        super().__init__()
        beta = torch.linspace(1e-4, 0.02, steps) * 1000 / steps  # the paper's, for any number of steps
        self.register_buffer("beta", beta)
        self.register_buffer("left", (1 - beta).cumprod(0))  # of the picture's variance at each time
        self.time = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU()
        )
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = Block(width, width, 2 * width)
        self.middle = nn.ModuleList([Block(width, 2 * width, 2 * width), Block(2 * width, 2 * width, 2 * width)])
        self.up = Block(3 * width, width, 2 * width)
        self.last = nn.Sequential(nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        embedded = self.time(waves(time, self.time[0].in_features))
        fine = self.down(self.first(noisy), embedded)
        coarse = F.avg_pool2d(fine, 2)
        for block in self.middle:
            coarse = block(coarse, embedded)
        return self.last(self.up(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], dim=1), embedded))


class Block(nn.Module):
    """Two convolutions beside a shortcut; between them the time is added."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = nn.Linear(time, outputs)
        self.second = nn.Sequential(nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, features: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.shortcut(features) + self.second(self.first(features) + self.time(time)[:, :, None, None])


def waves(time: torch.Tensor, size: int) -> torch.Tensor:
    """Sines and cosines of the time, (batch,) -> (batch, size), of wavelengths from 2 pi to 20,000 pi."""
    frequencies = 10_000 ** -torch.linspace(0, 1, size // 2, device=time.device)
    angles = time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def classifier(data: Dataset, classes: int) -> nn.Sequential:
    """Tells the classes of pictures; all but its last layer gives features to compare pictures by."""
    torch.manual_seed(0)  # the same judge for all models
    pixels = data[0][0].numel()
    judge = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, classes))
    trainer = Engine(lambda engine, batch: F.cross_entropy(judge(batch[0]), batch[1]))
    trainer.attach(OptimizerStep(torch.optim.AdamW(judge.parameters(), lr=1e-2, weight_decay=0.05)))
    trainer.run(DataLoader(data, batch_size=64, shuffle=True), max_epochs=20)
    return judge.requires_grad_(False)


def whole(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and labels of all the data."""
    return next(iter(DataLoader(data, batch_size=len(data))))


def frechet_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """Between the normal distributions with the means and covariances of both; (pictures, features) each."""
    covariance, others_covariance = (torch.cov(some.double().T) for some in (features, others))
    roots = torch.linalg.eigvals(covariance @ others_covariance).real.clamp(min=0).sqrt()
    apart = (features.double().mean(0) - others.double().mean(0)).square().sum()
    return float(apart + covariance.trace() + others_covariance.trace() - 2 * roots.sum())


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=50, batch_size=64, threads=1)
    positive = number(int, least=1)
    parser.add_argument("--steps", type=number(int, least=40), default=100, help="from noise to a picture")
    parser.add_argument("--width", type=number(int, least=8), default=32, help="channels, a multiple of 8")
    parser.add_argument("--samples", type=positive, default=500, help="to draw and to measure")
    parser.add_argument("--dataset", choices=IMAGES, default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads")
    return parser


if __name__ == "__main__":
    run_script(main)
