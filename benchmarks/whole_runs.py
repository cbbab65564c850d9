"""How long a training takes to an accuracy: by hand, with Camshaft and with each peer, same seeds and batches.

    python benchmarks/whole_runs.py [--repeats 3] [--peers all]

Two small trainings on one thread: a perceptron on scikit-learn's digits, and a transformer that predicts the next
character of the texts of Python's own help. Each has gradients clipped, the loss in a CSV file, a progress bar, a
validation after each epoch and an early stopping that watches it. Each repeat runs every way once, in an order that
changes, in one process; the clock runs from the construction of what a library wants to the end of the validation that
first reaches the accuracy. A ratio is the median of the repeats' own ratios to the loop by hand.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from pathlib import Path

import libraries  # first: it mends the path
import torch
from libraries import Batches, ShuffledBatches, Train, Trained, Training
from torch import nn
from torch.nn import functional as F

GOAL = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="three times as many for digits (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="instead of as many as lead to the accuracy")
    parser.add_argument("--batches", type=int, help="of an epoch at most")
    parser.add_argument("--peers", choices=("all", "none"), default="all", help="(default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    libraries.silence()
    peers = libraries.installed_peers() if options.peers == "all" else {}
    ways = {"by hand": libraries.by_hand, "Camshaft": libraries.camshaft, **peers}
    for name, target, repeats, training in (
        ("digits", 0.96, 3 * options.repeats, digits()),
        ("characters", 0.45, options.repeats, characters()),
    ):
        training.epochs = options.epochs or training.epochs
        if options.batches is not None:
            training.train.cut(options.batches)
        print(
            f"{name}: {sum(parameter.numel() for parameter in training.model.parameters())} parameters, epochs of "
            f"{len(training.train)} batches, {repeats} repeats; to an accuracy of {target:.0%}\n"
            "                         epochs    seconds    ratio   of fastest   accuracy after all   weights"
        )
        table(measure(ways, training, repeats), target)
        print()


def table(measured: dict[str, list[Trained]], target: float) -> None:
    by_hand = [seconds_to(target, trained) for trained in measured["by hand"]]
    for way, trainings in measured.items():
        seconds = [seconds_to(target, trained) for trained in trainings]
        last = trainings[-1]
        accuracies = [accuracy for _, _, accuracy in last.validated]
        epochs = next((str(epoch) for epoch, one in enumerate(accuracies, 1) if one >= target), "never")
        ratio = statistics.median(ours / hand for ours, hand in zip(seconds, by_hand, strict=True))
        verdict = f"   goal {GOAL}: {'reached' if ratio <= GOAL else 'MISSED'}" if way == "Camshaft" else ""
        weights = "same bits" if last.same_weights(measured["by hand"][-1]) else "others"
        print(
            f"{way:24} {epochs:>6}   {statistics.median(seconds):8.3f}   {ratio:6.3f}       "
            f"{min(seconds) / min(by_hand):6.3f}   {accuracies[-1]:18.1%}   {weights}{verdict}"
        )


def seconds_to(target: float, trained: Trained) -> float:
    """The seconds to the end of the first validation with that accuracy, or of the training if there is none."""
    return next((seconds for seconds, _, accuracy in trained.validated if accuracy >= target), trained.seconds)


def measure(ways: dict[str, Train], training: Training, repeats: int) -> dict[str, list[Trained]]:
    """Train every way in every repeat; the order goes round, and a first round is for warming up."""
    names = list(ways)
    measured: dict[str, list[Trained]] = {name: [] for name in names}
    for repeat in range(-1, repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            with tempfile.TemporaryDirectory() as directory:
                gc.collect()
                trained = ways[name](training, Path(directory))
            if repeat >= 0:
                measured[name].append(trained)
    return measured


# ---------------------------------------------------------------------------------------------------- the trainings


def digits() -> Training:
    """A perceptron for 8 by 8 pixels."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second

    pixels, numbers = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(numbers)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, val = order[:1500], order[1500:]
    torch.manual_seed(0)
    return Training(
        model=nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        train=ShuffledBatches(inputs[train], labels[train], 16),
        val=Batches([(inputs[part], labels[part]) for part in val.split(99)]),
        epochs=12,
        **CONCERNS,
    )


CONTEXT, WIDTH, HEADS, LAYERS = 32, 48, 4, 2


def characters() -> Training:
    """A transformer for the texts of ``help()``."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - a large dict

    text = "".join(topics[name] for name in sorted(topics))[:300_000]
    alphabet = sorted(set(text))
    numbers = {character: number for number, character in enumerate(alphabet)}
    encoded = torch.tensor([numbers[character] for character in text])
    windows = encoded[: len(encoded) // CONTEXT * CONTEXT].view(-1, CONTEXT)  # (windows, time)
    following = torch.cat((encoded, encoded[:1]))[1 : windows.numel() + 1].view(-1, CONTEXT)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    train, val = order[:1600], order[1600:1920]
    torch.manual_seed(0)
    return Training(
        model=Transformer(len(alphabet)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
        train=ShuffledBatches(windows[train], following[train], 16),
        val=Batches([(windows[part], following[part].flatten()) for part in val.split(32)]),
        epochs=7,
        **CONCERNS,
    )


CONCERNS = {"clipping": 1.0, "log": True, "bar": True, "validation": True, "early_stopping": True}


class Transformer(nn.Module):
    """Predicts each next character."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # (batch, time) -> (batch · time, characters)
        hidden = self.layers(self.embedding(inputs) + self.position)
        return self.head(self.norm(hidden)).flatten(0, 1)


class Layer(nn.Module):
    """Attention to what came before, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_heads, self.from_heads = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # (batch, time, width), the same
        batch, time, width = hidden.shape
        heads = self.to_heads(self.norm_1(hidden)).view(batch, time, 3, HEADS, width // HEADS)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # (batch, heads, time, width of one)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.from_heads(attended.transpose(1, 2).reshape(batch, time, width))
        return hidden + self.perceptron(self.norm_2(hidden))


if __name__ == "__main__":
    main()
