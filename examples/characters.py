"""Trains a transformer to predict text character by character, and lets it write.

    python examples/characters.py                         # the texts of Python's help(), which come with it
    python examples/characters.py --text shakespeare.txt  # any text file, such as Karpathy's tiny Shakespeare

Its sequences are paragraphs, which differ in length, so batches differ in how many characters they teach. Two batches
make one optimizer step, in which each counts by its characters: the gradient is that of both as one batch, and on
several processes (`camshaft launch --nproc-per-node 2 examples/characters.py`) that of all their batches.

The network: Vaswani et al., "Attention is all you need", NeurIPS 2017. Characters: Al-Rfou et al., "Character-level
language modeling with deeper self-attention", AAAI 2019. Expect about 2.0 bits per character of unseen paragraphs;
gzip -9 needs 2.4 for each of the 300,000 characters of the same text.
"""

import argparse
import math
import re
from pathlib import Path
from pydoc_data.topics import topics

import torch
from ignite.metrics import Loss
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, random_split

from camshaft import (
    Device,
    Engine,
    Evaluate,
    GradientAccumulation,
    GradientClipping,
    LRScheduler,
    Metrics,
    OptimizerStep,
)
from camshaft.curves import plot_curves
from camshaft.engine.distributed import rank, world_size
from camshaft.scripts import number, run_script, script_parser, standard_handlers, start, weights_sha256

MARK, PADDING = 0, -100  # begins and ends a paragraph; what cross_entropy passes over


def main() -> None:
    options = start(option_parser())
    help_texts = "\n\n".join(topics[name] for name in sorted(topics))
    text = options.text.read_text(encoding="utf-8") if options.text else help_texts
    alphabet = sorted(set(text))
    data = paragraphs(text[: options.characters], alphabet, options.context)
    if len(data) < 20:
        raise ValueError(f"{options.text} has {len(data)} paragraphs, too few to hold some back: 20 are the least.")

    # ------------------------------------------------------------------------------------------------ the research

    model = Transformer(1 + len(alphabet), options.width, options.layers, options.context)

    def training_step(engine: Engine, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        logits, targets = model(batch[:, :-1]), batch[:, 1:]
        return {"loss": cross_entropy(logits, targets), "characters": (targets != PADDING).sum()}

    def evaluation_step(engine: Engine, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model(batch[:, :-1]).float(), batch[:, 1:]

    # ------------------------------------------------------------------------------------------------ the engineering

    train, validation = random_split(data, [0.9, 0.1], torch.Generator().manual_seed(0))
    train_loader = DataLoader(train, options.batch_size, shuffle=True, drop_last=True, collate_fn=padded)
    val_loader = DataLoader(validation, 64, collate_fn=padded)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=0.1)
    steps = math.ceil(len(train) // world_size() // options.batch_size / options.accumulate)  # of an epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.max_epochs * steps + 1, pct_start=0.1
    )

    evaluator = Engine(evaluation_step).attach(
        Metrics(bits=Loss(bits, batch_size=lambda targets: (targets != PADDING).sum())), Device(options.device)
    )
    trainer = Engine(training_step).attach(
        OptimizerStep(optimizer),
        GradientAccumulation(options.accumulate, weight="characters"),
        GradientClipping(1.0),
        LRScheduler(schedule, per="step"),
        Evaluate(evaluator, val_loader),
        *standard_handlers(options, model=model, optimizer=optimizer, monitor="val_bits"),
    )
    trainer.run(train_loader, max_epochs=options.max_epochs)
    if rank() > 0:
        return

    # ------------------------------------------------------------------------------------------------ what came of it

    written = "".join(alphabet[index - 1] for index in write(model, 300))
    (options.run_dir / "written.txt").write_text(written, encoding="utf-8")
    print(f"\n{written}\n")
    print(f"bits per character  {trainer.state.metrics['val_bits']:.3f} of {len(validation)} unseen paragraphs")
    print(f"the text above      {options.run_dir / 'written.txt'}")
    print(f"curves              {plot_curves([options.run_dir], options.run_dir / 'curves.png')}")
    print(f"weights sha256: {weights_sha256(model)}")


class Transformer(nn.Module):
    """Predicts each next character from those before it."""

    def __init__(self, characters: int, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.characters = nn.Embedding(characters, width)
        nn.init.normal_(self.characters.weight, std=0.5)
        angles = torch.arange(context + 1)[:, None] * torch.exp(torch.arange(0, width, 2) / -width * math.log(1000))
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1) / 2)  # (time, width)
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 32), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:  # (batch, time) -> (batch, time, characters)
        time = indices.shape[1]
        x = self.characters(indices.clamp(min=MARK)) + self.positions[:time]
        mask = nn.Transformer.generate_square_subsequent_mask(time, device=x.device, dtype=x.dtype)
        return self.head(self.layers(x, mask, is_causal=True))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over the characters that are there."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING)


def bits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, targets) / math.log(2)


def paragraphs(text: str, alphabet: list[str], longest: int) -> list[torch.Tensor]:
    """The paragraphs of a text as indices from 1 on, between two marks; long ones in several parts."""
    index = {character: number for number, character in enumerate(alphabet, 1)}
    parts = [
        paragraph[begin : begin + longest]
        for paragraph in re.split(r"\n\s*\n", text)
        for begin in range(0, len(paragraph), longest)
    ]
    return [torch.tensor([MARK, *(index[character] for character in part), MARK]) for part in parts]


def padded(sequences: list[torch.Tensor]) -> torch.Tensor:  # -> (batch, time)
    return pad_sequence(sequences, batch_first=True, padding_value=PADDING)


@torch.inference_mode()
def write(model: Transformer, length: int) -> list[int]:
    """Draws characters one by one, of as many paragraphs as it takes."""
    model.eval()
    device = model.head.weight.device
    generator = torch.Generator().manual_seed(0)
    written: list[int] = []
    paragraph = [MARK]
    while len(written) < length:
        logits = model(torch.tensor([paragraph[-model.context :]], device=device))[0, -1].float().cpu()
        index = int(torch.multinomial(logits.softmax(0), 1, generator=generator))
        paragraph = [MARK] if index == MARK else [*paragraph, index]
        written += [] if index == MARK else [index]
    return written


def option_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__, max_epochs=4, batch_size=4, threads=1)
    parser.add_argument("--text", type=Path, help="a file to learn from, in UTF-8 (default: Python's help texts)")
    parser.add_argument("--characters", type=number(int, least=1), default=300_000, help="of the text to take at most")
    parser.add_argument("--context", type=number(int, least=2), default=128, help="the longest sequence, in characters")
    parser.add_argument("--width", type=number(int, least=1), default=64, help="of the network; a multiple of 32")
    parser.add_argument("--layers", type=number(int, least=1), default=2, help="of the network")
    parser.add_argument("--lr", type=number(float, least=0), default=5e-3, help="the largest learning rate")
    parser.add_argument("--accumulate", type=number(int, least=1), default=2, help="batches in an optimizer step")
    return parser


if __name__ == "__main__":
    run_script(main)
