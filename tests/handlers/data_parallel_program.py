"""Trains small models with `DataParallel` in many ways, on one process or several, and writes what came of each."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine
from ignite.engine import create_supervised_trainer
from ignite.metrics import Accuracy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from camshaft import (
    EMA,
    DataParallel,
    DistributedSampling,
    Engine,
    Evaluate,
    GradientAccumulation,
    GradientClipping,
    Metrics,
    OptimizerStep,
)

torch.set_num_threads(1)
WORLD, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))

# 77 samples in batches of 12, that is 6 in an epoch, in groups of 4: neither comes out even.
INPUTS = torch.randn(77, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = TensorDataset(INPUTS, (INPUTS.sum(1) > 0).long())
LABELS = DATA.tensors[1]


class Classifier(nn.Module):
    """Two parts that can be called one by one, and perhaps a part that only some samples need."""

    def __init__(self, *between: nn.Module, sometimes: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), *between, nn.ReLU())
        self.head = nn.Linear(32, 2)
        self.sometimes = nn.Linear(32, 2) if sometimes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.encoder(x))
        needing = x[:, 0] > 1.2
        if self.sometimes is not None and needing.any():
            logits = logits + self.sometimes(self.encoder(x)) * needing[:, None]
        return logits


def flat(tensors: Any) -> list[float]:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors]).tolist()


def classifier(*between: nn.Module, sometimes: bool = False) -> Classifier:
    torch.manual_seed(RANK)  # the first process decides where all begin
    return Classifier(*between, sometimes=sometimes).double()


def loader() -> DataLoader[Any]:
    torch.manual_seed(1)
    return DataLoader(DATA, batch_size=12 // WORLD, shuffle=True, drop_last=True)


def train(*more: Any, engine_class: type[IgniteEngine] = Engine, **options: Any) -> dict[str, Any]:
    """The ordinary program."""
    model = classifier()
    keys = list(model.state_dict())
    evaluated = []

    def evaluation_step(engine: Any, batch: Any) -> Any:
        evaluated.append(len(batch[0]))
        return model(batch[0]), batch[1]

    evaluator = Engine(evaluation_step).attach(Metrics(accuracy=Accuracy()))
    trainer = engine_class(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    ema = EMA(model, decay=0.9)
    handlers = [
        OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)),
        GradientClipping(0.5),
        Evaluate(evaluator, DataLoader(DATA, batch_size=13 // WORLD)),  # of two processes the second has fewer batches
        DistributedSampling(),
        ema,
        DataParallel(model, **options),
        *more,
    ]
    for handler in handlers:
        handler.attach(trainer)
    state = trainer.run(loader(), max_epochs=3)
    return {
        "steps": [state.iteration, state.optimizer_step],
        "weights": flat(model.parameters()),
        "averages": flat(ema.module.parameters()),
        "accuracy": state.metrics["val_accuracy"],
        "evaluated": sum(evaluated) // 3,
        "same keys": list(model.state_dict()) == keys,
    }


def step_of(function: Callable[[nn.Module, Any], torch.Tensor], *more: Any, **options: Any) -> dict[str, Any]:
    """A step that uses the model in another way."""
    model = classifier(sometimes=options.get("find_unused_parameters", False))
    trainer = Engine(lambda engine, batch: function(model, batch))
    trainer.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.5)), *more)
    trainer.attach(DistributedSampling(), DataParallel(model, **options)).run(loader(), max_epochs=2)
    return {"weights": flat(model.parameters())}


def called_twice(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]) + F.mse_loss(model(-batch[0]), model(batch[0]).sin())


def parts_called(model: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model.head(model.encoder(batch[0])), batch[1])


def ordinary(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def sometimes_by_parts(model: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(Classifier.forward(model, batch[0]), batch[1])


def adversaries(accumulate: int) -> dict[str, Any]:
    """Two models, two optimizers and a step that calls them itself."""
    generator = classifier()
    critic = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    generator_step = OptimizerStep(torch.optim.Adam(generator.parameters(), lr=0.01))
    critic_step = OptimizerStep(torch.optim.Adam(critic.parameters(), lr=0.01))

    def step(engine: Any, batch: Any) -> None:
        real = torch.stack([batch[0].sum(1), batch[1]], 1)
        made = generator(batch[0])
        critic_step(critic(made.detach()).mean() - critic(real).mean() + critic(real).square().mean())
        generator_step(-critic(made).mean())

    trainer = Engine(step).attach(critic_step, generator_step, DistributedSampling(), GradientAccumulation(accumulate))
    trainer.attach(DataParallel(generator), DataParallel(critic)).run(loader(), max_epochs=2)
    return {"weights": flat([*generator.parameters(), *critic.parameters()]), "steps": critic_step.steps}


def several_steps_a_batch() -> dict[str, Any]:
    """One optimizer, whose step is made twice for each batch."""
    model = classifier()
    optimizer_step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))

    def step(engine: Any, batch: Any) -> None:
        for sign in (1, -1):
            optimizer_step(F.cross_entropy(model(sign * batch[0]), batch[1]))

    Engine(step).attach(optimizer_step, DistributedSampling(), DataParallel(model)).run(loader(), max_epochs=2)
    return {"weights": flat(model.parameters())}


def skipped_batches() -> dict[str, Any]:
    """Of groups of two, now and then the last micro-batch is skipped after the model was called."""
    model = classifier()

    def step(engine: Any, batch: Any) -> torch.Tensor | None:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return None if engine.state.iteration % 6 in (0, 2) else loss

    trainer = Engine(step).attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.5)), GradientAccumulation(2))
    trainer.attach(DistributedSampling(), DataParallel(model)).run(loader(), max_epochs=2)
    return {"weights": flat(model.parameters())}


def weighted(micro_batches: int) -> dict[str, Any]:
    """Samples count differently, so that the processes' batches do, too."""
    model = classifier()

    def step(engine: Any, batch: Any) -> dict[str, Any]:
        tokens = 1 + (batch[0][:, 0] > 0).double() * 9
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return {"loss": (losses * tokens).sum() / tokens.sum(), "tokens": tokens.sum()}

    trainer = Engine(step).attach(GradientAccumulation(micro_batches, weight="tokens"), DistributedSampling())
    trainer.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.5)), DataParallel(model))
    trainer.run(loader(), max_epochs=2)
    return {"weights": flat(model.parameters())}


def own_backward() -> dict[str, Any]:
    model = classifier()
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.5), F.cross_entropy)
    DistributedSampling().attach(trainer)
    DataParallel(model).attach(trainer)
    trainer.run(loader(), max_epochs=2)
    return {"weights": flat(model.parameters())}


def statistics() -> dict[str, Any]:
    """The buffers in each iteration's forward pass, where two calls of one step must not disturb each other."""
    model = classifier(nn.BatchNorm1d(32))
    begun, evaluated = [], []
    calls = []

    def note(module: nn.Module, *arguments: Any) -> None:
        if module.training:
            if len(calls) % 2 == 0:  # the first of the two calls of a step
                begun.append(flat(model.buffers()))
            calls.append(module)

    def step(engine: Any, batch: Any) -> torch.Tensor:
        return called_twice_with_statistics(model, batch)

    evaluator = Engine(lambda engine, batch: evaluated.append(flat(model.buffers())) or model(batch))
    trainer = Engine(step).attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
    trainer.attach(DistributedSampling(), DataParallel(model), Evaluate(evaluator, [INPUTS]))
    model.encoder[1].register_forward_pre_hook(note)
    trainer.run(loader(), max_epochs=2)
    return {"weights": flat(model.parameters()), "begun": begun, "evaluated": evaluated}


def called_twice_with_statistics(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]) + F.cross_entropy(model(batch[0] + 1), batch[1])


def refused() -> dict[str, Any]:
    model = classifier()
    trainer = Engine(ordinary).attach(DataParallel(model), DataParallel(model))
    trainer.logger.disabled = True
    try:
        trainer.run([0])
    except ValueError as error:
        twice = str(error)
    trainer = Engine(lambda engine, batch: ordinary(model, batch))
    trainer.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.5)), DistributedSampling())
    trainer.logger.disabled = True
    try:
        trainer.run(loader())
        without = "nothing"
    except ValueError as error:
        without = str(error)
    return {"twice": twice, "without": without}


def detached() -> dict[str, Any]:
    model = classifier()
    parallel = DataParallel(model)
    trainer = Engine(lambda engine, batch: ordinary(model, batch)).attach(parallel)
    trainer.run(loader(), max_epochs=1)
    parallel.detach(trainer)
    return {"class": type(model) is Classifier, "calls": ordinary(model, (INPUTS, LABELS)).item() > 0}


PROGRAMS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": train,
    "on ignite": lambda: train(engine_class=IgniteEngine),
    "accumulating": lambda: train(GradientAccumulation(4)),
    "static graph": lambda: train(static_graph=True),
    "static graph, accumulating": lambda: train(GradientAccumulation(4), static_graph=True),
    "without bucket views": lambda: train(GradientAccumulation(4), gradient_as_bucket_view=False),
    "called twice": lambda: step_of(called_twice),
    "called twice, accumulating": lambda: step_of(called_twice, GradientAccumulation(4)),
    "parts called": lambda: step_of(parts_called),
    "parts called, accumulating": lambda: step_of(parts_called, GradientAccumulation(4)),
    "used sometimes": lambda: step_of(ordinary, find_unused_parameters=True),
    "used sometimes, by parts": lambda: step_of(sometimes_by_parts, find_unused_parameters=True),
    "adversaries": lambda: adversaries(1),
    "adversaries, accumulating": lambda: adversaries(4),
    "several steps a batch": several_steps_a_batch,
    "skipped batches": skipped_batches,
    "weighted": lambda: weighted(1),
    "weighted, accumulating": lambda: weighted(4),
    "own backward": own_backward,
    "statistics": statistics,
    "refused": refused,
    "detached": detached,
}

if __name__ == "__main__":
    only = sys.argv[2:] or PROGRAMS
    Path(sys.argv[1]).write_text(json.dumps({name: PROGRAMS[name]() for name in only}))
