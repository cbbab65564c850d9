"""Trains a generative adversarial network, two optimizers in one step, on points in the plane or on pictures.

    python examples/gan.py                                    # points around eight places on a circle
    python examples/gan.py --constraint clipping              # with the critic of the first WGAN
    python examples/gan.py --dataset digits --batch-size 64 --penalty 1 --max-epochs 150  # pictures; or mnist

I. Gulrajani, F. Ahmed, M. Arjovsky, V. Dumoulin and A. Courville, "Improved Training of Wasserstein GANs", NeurIPS
2017. `critic.png` shows the critic's values with points of the data and of the generator. The paper's figure 1(a), the
values of critics that are trained against a fixed generator, is what two runs draw, the lower and the upper row:

    python examples/gan.py --generator fixed --constraint penalty
    python examples/gan.py --generator fixed --constraint clipping

Expect all 8 places to be covered, and 94 % of what is generated to lie within three standard deviations of one.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from camshaft import EMA, Engine, OptimizerStep
from camshaft.contrib.datasets import IMAGES, images
from camshaft.contrib.pictures import picture_grid
from camshaft.engine.distributed import rank
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256

ANGLES = torch.arange(8) * math.pi / 4
PLACES = math.sqrt(2) * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
DEVIATION = 0.05  # of the points around each place
CLIP = 0.01  # of the critic's weights, as in Arjovsky, Chintala and Bottou, "Wasserstein GAN", ICML 2017


def main() -> None:
    options = start(option_parser())
    in_plane = options.dataset == "places"
    data = (
        points(25_600, torch.Generator().manual_seed(0))
        if in_plane
        else images(options.dataset, options.data_dir).train
    )
    shape = data[0][0].shape

    # ------------------------------------------------------------------------------------------------ the research

    latent = 2 if in_plane else 64
    generator, critic = network(latent, options.hidden, shape.numel()), network(shape.numel(), options.hidden, 1)

    def generated(real: torch.Tensor) -> torch.Tensor:
        """As many as are real, by the trained generator or by the fixed one, which adds noise to the data."""
        if options.generator == "fixed":
            return real + torch.randn_like(real)
        return generator(torch.randn(len(real), latent, device=real.device))

    def step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        real = batch[0].flatten(1)
        fake = generated(real).detach()
        distance = critic(real).mean() - critic(fake).mean()
        if options.constraint == "penalty":
            critic_step(options.penalty * gradient_penalty(critic, real, fake) - distance)
        else:
            critic_step(-distance)
            clip_weights(critic)
        if options.generator == "trained" and engine.state.iteration % 2 == 0:
            generator_step(-critic(generated(real)).mean())
        return {"distance": distance.detach()}

    # ------------------------------------------------------------------------------------------------ the engineering

    loader = DataLoader(data, batch_size=options.batch_size, shuffle=True, drop_last=True)
    generator_optimizer, critic_optimizer = (
        torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=(0.5, 0.9))
        for network in (generator, critic)
    )
    generator_step, critic_step = OptimizerStep(generator_optimizer), OptimizerStep(critic_optimizer)
    ema = EMA(generator, decay=0.99)

    networks = {"generator": generator, "critic": critic}
    optimizers = {"generator_optimizer": generator_optimizer, "critic_optimizer": critic_optimizer}
    trainer = Engine(step).attach(
        generator_step, critic_step, ema, *standard_handlers(options, **networks, **optimizers)
    )
    trainer.run(loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    generator.cpu()
    critic.cpu()
    real = torch.stack([data[index][0].flatten() for index in range(10_000 if in_plane else 100)])
    with ema.applied(), torch.no_grad():
        fake = generated(real)
    if in_plane:
        covered, good = quality(fake)
        print(f"values    {draw(critic, real[:500], fake[:500], options.run_dir / 'critic.png')}")
        print(f"contrast  {contrast(critic):.2f} standard deviations of the values, between the places and the gaps")
        print(f"covered   {covered} of {len(PLACES)} places")
        print(f"good      {good:.1%} of {len(fake):,} samples")
    else:
        print(f"samples   {picture_grid(fake.unflatten(1, shape), options.run_dir / 'samples.png')}")
    print(f"weights sha256: {weights_sha256(critic)}")


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (inputs, hidden, hidden):
        layers += [nn.Linear(size, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


@torch.no_grad()
def clip_weights(critic: nn.Module) -> None:
    for weight in critic.parameters():
        weight.clamp_(-CLIP, CLIP)


def gradient_penalty(critic: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """How far the critic's slope is from 1, at points between real and generated ones."""
    share = torch.rand(len(real), 1, device=real.device)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


def points(count: int, generator: torch.Generator | None = None) -> TensorDataset:
    """Normally distributed around the places, and the number of the place of each."""
    numbers = torch.randint(len(PLACES), (count,), generator=generator)
    return TensorDataset(PLACES[numbers] + DEVIATION * torch.randn(count, 2, generator=generator), numbers)


def quality(samples: torch.Tensor) -> tuple[int, float]:
    """How many places have at least a fifth of their part of the samples, and the share of good samples."""
    distances, nearest = torch.cdist(samples, PLACES).min(dim=1)
    good = distances < 3 * DEVIATION
    counts = torch.bincount(nearest[good], minlength=len(PLACES))
    return int((counts >= len(samples) / len(PLACES) / 5).sum()), float(good.float().mean())


@torch.no_grad()
def contrast(critic: nn.Module) -> float:
    """By how much the critic prefers the places to the points of the circle between them, in units of its deviation."""
    half_way = ANGLES + math.pi / 8
    gaps = math.sqrt(2) * torch.stack([half_way.cos(), half_way.sin()], dim=1)
    return float((critic(PLACES).mean() - critic(gaps).mean()) / critic(square(50)).std())


def square(side: int) -> torch.Tensor:
    """A grid of side by side points that holds all places, row by row from below."""
    steps = torch.linspace(-2, 2, side)
    return torch.cartesian_prod(steps, steps).flip(1)


@torch.no_grad()
def draw(critic: nn.Module, real: torch.Tensor, fake: torch.Tensor, path: Path) -> Path:
    """The critic's values as a landscape, with points of the data and of the generator."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.7), dpi=100, layout="compressed")
    panel = figure.subplots()
    side = 200
    x, y = square(side).reshape(side, side, 2).unbind(2)
    values = critic(square(side)).reshape(side, side)
    landscape = panel.contourf(x, y, values, levels=30, cmap="viridis")
    figure.colorbar(landscape, label="the critic's value")
    panel.scatter(*real.T, s=8, color="white", label="data")
    panel.scatter(*fake.T, s=8, color="tab:red", label="generated")
    panel.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", xlabel="x", ylabel="y")
    panel.legend(loc="upper right", markerscale=2, facecolor="lightgrey")
    figure.savefig(path)
    return path


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=30, batch_size=256, threads=1)
    parser.add_argument("--dataset", choices=["places", *IMAGES], default="places")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads")
    parser.add_argument(
        "--constraint", choices=["penalty", "clipping"], default="penalty", help="what bounds the slope"
    )
    parser.add_argument("--penalty", type=number(float, least=0), default=0.1, help="its weight")
    parser.add_argument("--generator", choices=["trained", "fixed"], default="trained", help="fixed: data with noise")
    parser.add_argument("--hidden", type=number(int, least=1), default=128, help="units of each of three layers")
    parser.add_argument("--learning-rate", type=number(float, least=0), default=2e-3)
    return parser


if __name__ == "__main__":
    run_script(main)
