"""Trains a variational autoencoder on handwritten digits and draws the plane that it lays them out on.

    python examples/vae.py                               # scikit-learn's 1,797 digits, which come with it
    python examples/vae.py --latent 10                   # more than a plane: better pictures, and no map of them
    python examples/vae.py --dataset mnist --hidden 500  # downloads MNIST

D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014. `manifold.png` is figure 4(b) at small scale:
what the decoder makes of each point of a grid over the latent plane, each cell of which is as probable as the others.
`reconstructions.png` shows new digits and what is left of them after the two numbers.

Expect a bound of -141 nats per new digit with two latent dimensions, -96 with ten and -94 with twenty: as in figure 2,
those that are of no use do no harm.
"""

import argparse
from pathlib import Path

import torch
from ignite.metrics import Average
from torch import nn
from torch.distributions import Binomial, Normal, kl_divergence
from torch.utils.data import DataLoader

from camshaft import EMA, Device, Engine, Evaluate, Events, Metrics, OptimizerStep
from camshaft.contrib.datasets import images
from camshaft.contrib.pictures import picture_grid
from camshaft.engine.distributed import rank
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256

# Each pixel of scikit-learn's digits counts how many of 4 by 4 dots were black; for the others, black or white.
DOTS = {"digits": 16, "mnist": 1, "fashion-mnist": 1}


def main() -> None:
    options = start(option_parser())
    data = images(options.dataset, options.data_dir)
    dots = DOTS[options.dataset]

    # ------------------------------------------------------------------------------------------------ the research

    model = VAE(data.shape, options.hidden, options.latent)

    def bound(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The evidence lower bound of each picture, and the part of it that the latent code costs; in nats."""
        counts = (dots * pictures).round()  # (batch, channels, height, width)
        code, logits = model(counts / dots)
        likelihood = Binomial(dots, logits=logits).log_prob(counts).sum((1, 2, 3))
        cost = kl_divergence(code, Normal(0.0, 1.0)).sum(1)
        return likelihood - cost, cost

    def training_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        elbo, cost = bound(batch[0])
        return {"loss": -elbo.mean(), "cost": cost.mean()}

    def evaluation_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return bound(batch[0])[0][:, None]  # Average takes the mean over the first of two dimensions

    # ------------------------------------------------------------------------------------------------ the engineering

    train_loader = DataLoader(data.train, batch_size=options.batch_size, shuffle=True)
    val_loader, test_loader = (DataLoader(part, batch_size=256) for part in (data.validation, data.test))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    evaluator = Engine(evaluation_step).attach(Metrics(elbo=Average()), Device(options.device))
    ema = EMA(model, decay=0.99, warmup=True)

    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        ema,
        Evaluate(evaluator, val_loader, ema=ema),
        Evaluate(evaluator, test_loader, at=Events.COMPLETED, prefix="test_", ema=ema),
        *standard_handlers(options, model=model, optimizer=optimizer),
    )
    trainer.run(train_loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    model = ema.module.cpu()
    pictures = torch.stack([data.test[index][0] for index in range(10)])
    with torch.no_grad():
        code, _ = model(pictures)
        decoded = model.decode(code.mean).sigmoid()
        if options.latent == 2:
            made, path = model.decode(plane(side=20)).sigmoid(), options.run_dir / "manifold.png"
        else:
            made, path = model.decode(torch.randn(400, options.latent)).sigmoid(), options.run_dir / "samples.png"
    picture_grid(made, path, columns=20)
    reconstructions = options.run_dir / "reconstructions.png"
    picture_grid(torch.cat([pictures, decoded]), reconstructions, columns=10, row_titles=["new", "decoded"])

    elbo = float(trainer.state.metrics["test_elbo"])
    print(f"bound on new pictures {elbo:.1f} nats each, of {len(data.test)}")
    print(f"made by the decoder   {path}")
    print(f"reconstructions       {reconstructions}")
    print(f"weights sha256: {weights_sha256(model)}")


class VAE(nn.Module):
    """Encoder and decoder of two hidden layers."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, latent: int) -> None:
        super().__init__()
        pixels = torch.Size(shape).numel()
        self.encoder = nn.Sequential(nn.Flatten(), *hidden_layers(pixels, hidden), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(*hidden_layers(latent, hidden), nn.Linear(hidden, pixels), nn.Unflatten(1, shape))

    def forward(self, pictures: torch.Tensor) -> tuple[Normal, torch.Tensor]:
        """The code's distribution (batch, latent), and each pixel's logits (batch, channels, height, width) from it."""
        mean, log_variance = self.encoder(pictures).float().chunk(2, dim=1)
        code = Normal(mean, (log_variance / 2).exp())
        return code, self.decode(code.rsample())

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        return self.decoder(code)


def hidden_layers(inputs: int, hidden: int) -> list[nn.Module]:
    return [nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()]


def plane(side: int) -> torch.Tensor:
    """The middles of side by side cells of the plane, row by row from the top, of which each is equally probable."""
    steps = (torch.arange(side) + 0.5) / side
    z = Normal(0.0, 1.0).icdf(steps)
    return torch.stack(torch.meshgrid(z, -z, indexing="xy"), dim=-1).reshape(-1, 2)


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=60, batch_size=64, threads=1)
    parser.add_argument("--latent", type=number(int, least=1), default=2, help="dimensions of the latent code")
    parser.add_argument("--hidden", type=number(int, least=1), default=256, help="units of each hidden layer")
    parser.add_argument("--dataset", choices=DOTS, default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for downloads")
    return parser


if __name__ == "__main__":
    run_script(main)
