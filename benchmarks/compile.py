"""What `Compile` makes of a step: where it pays on this machine's CPU, and where it does not.

    python benchmarks/compile.py [--seconds 0.3] [--repeats 25]

Each model is trained by one engine as it is, by one with `Compile()`, by one with `Compile(optimizer=True)`, and by one
whose step function torch compiles as a whole, in turn and on one thread, whose own time is measured: other programs on
the machine do not count. Printed are the medians of the time of an iteration, the medians of the ratios of pairs, and
the seconds that `Compile` took, which are in neither; those of torch.compile(step) are not known.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from camshaft import Compile, Engine, OptimizerStep

GOAL = 1.3
"""The speed, in that of the step as it is, that is to be reached on the model that was chosen for it."""

CHOSEN = "gated residual network"


class GatedResidual(nn.Module):
    """Layers that normalise, gate and add: many operations on each element for each multiplication of matrices."""

    def __init__(self, width: int = 64, layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, width)
        for layer, scale in zip(self.layers, self.scales, strict=True):
            hidden = layer(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale)
            x = x + hidden * torch.sigmoid(1.702 * hidden)
        return self.head(x)


class Transformer(nn.Module):
    """Reads characters, and says for each which one comes next."""

    def __init__(self, characters: int = 65, width: int = 64, length: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))
        self.head = nn.Linear(width, characters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # (batch, length)
        x = self.embedding(tokens) + self.positions
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return self.head(x).flatten(0, 1)  # (batch * length, characters)


def convolutions() -> nn.Module:
    """For images of 8 by 8 pixels."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Case(NamedTuple):
    """A model, and the inputs and classes of a batch."""

    model: Callable[[], nn.Module]
    inputs: torch.Tensor
    classes: torch.Tensor


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    characters = torch.randint(65, (16, 64))
    return {
        CHOSEN: Case(GatedResidual, torch.randn(2048, 64), torch.randint(10, (2048,))),
        "small transformer": Case(Transformer, characters, torch.randint(65, (16 * 64,))),
        "convolutions, 8 x 8 pixels": Case(convolutions, torch.randn(64, 1, 8, 8), torch.randint(10, (64,))),
        "Linear(16, 4)": Case(lambda: nn.Linear(16, 4), torch.randn(32, 16), torch.randint(4, (32,))),
    }


Step = Callable[[Engine, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]

WAYS: dict[str, Callable[[Step], tuple[Step, list[Compile]]]] = {
    "as it is": lambda step: (step, []),
    "Compile()": lambda step: (step, [Compile()]),
    "Compile(optimizer=True)": lambda step: (step, [Compile(optimizer=True)]),
    "torch.compile(step)": lambda step: (torch.compile(step, dynamic=False), []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="of one run, about (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="runs of each (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("torch").setLevel(logging.ERROR)

    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{'':28}  {'':24}  iteration   speed  compiling  goal")
    for name, case in cases().items():
        report(name, case, options.seconds, options.repeats)


def report(name: str, case: Case, seconds: float, repeats: int) -> None:
    """Measure one model in all ways, and print a line for each."""
    engines, compiling = {}, {}
    for way, compiled in WAYS.items():
        engines[way] = engine_for(case, compiled)
        with tempfile.TemporaryDirectory() as empty:  # nothing is found there that was compiled before
            for handler in engines[way].handlers:
                if isinstance(handler, Compile):
                    handler.cache_directory = empty
            compiling[way] = run(engines[way], case, 5).times.get("COMPILATION")
    begin = time.process_time()
    run(engines["as it is"], case, 20)
    iterations = max(10, int(seconds / (time.process_time() - begin) * 20))

    times: dict[str, list[float]] = {way: [] for way in engines}
    for _ in range(repeats):
        for way, engine in engines.items():
            begin = time.process_time()
            run(engine, case, iterations)
            times[way].append((time.process_time() - begin) / iterations)
    for way, taken in times.items():
        speed = statistics.median(eager / own for eager, own in zip(times["as it is"], taken, strict=True))
        verdict = ""
        if name == CHOSEN and way == "Compile()":
            verdict = f"{GOAL} {'reached' if speed >= GOAL else 'MISSED'}"
        compiled = "" if compiling[way] is None else f"{compiling[way]:.1f} s"
        print(f"{name:28}  {way:24}  {statistics.median(taken) * 1e6:6.0f} µs  {speed:6.2f}  {compiled:>9}  {verdict}")
        name = ""


def engine_for(case: Case, compiled: Callable[[Step], tuple[Step, list[Compile]]]) -> Engine:
    torch.manual_seed(0)
    model = case.model()

    def step(engine, batch):
        inputs, classes = batch
        return F.cross_entropy(model(inputs), classes)

    function, handlers = compiled(step)
    return Engine(function).attach(OptimizerStep(torch.optim.AdamW(model.parameters(), lr=1e-3)), *handlers)


def run(engine: Engine, case: Case, iterations: int):
    return engine.run([(case.inputs, case.classes)] * iterations)


if __name__ == "__main__":
    main()
