"""Trains small models with `FullySharded` in many ways, on one process or several, and writes what came of each."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine
from ignite.engine import create_supervised_trainer
from ignite.metrics import Accuracy
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from camshaft import (
    AMP,
    EMA,
    DataParallel,
    DistributedSampling,
    Engine,
    Evaluate,
    Events,
    FullySharded,
    GradientAccumulation,
    GradientClipping,
    Metrics,
    OptimizerStep,
)
from camshaft.engine.sharded import whole
from camshaft.handlers import fully_sharded

torch.set_num_threads(1)
WORLD, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))

# 77 samples in batches of 12, that is 6 in an epoch, in groups of 4: neither comes out even.
INPUTS = torch.randn(77, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, (INPUTS.sum(1) > 0).long())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x).relu()


class Network(nn.Module):
    """Of 33 features, which do not share evenly, two blocks, a part that is never called and one shared buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 33)
        self.blocks = nn.Sequential(Block(33), Block(33))
        self.head = nn.Linear(33, 2)
        self.scale = nn.Parameter(torch.ones(1))  # one element: on the second of two processes there is none

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x))) * self.scale


def flat(tensors: Any) -> list[float]:
    return torch.cat([whole(tensor).detach().flatten().double() for tensor in tensors]).tolist()


def network() -> Network:
    torch.manual_seed(RANK)  # the first process decides where all begin
    return Network()


def loader(**options: Any) -> DataLoader[Any]:
    torch.manual_seed(1)
    return DataLoader(DATA, batch_size=12 // WORLD, shuffle=True, drop_last=True, **options)


def train(
    *more: Any, engine_class: type[IgniteEngine] = Engine, lr: float = 0.01, amsgrad: bool = False, **options: Any
) -> dict[str, Any]:
    """The ordinary program."""
    model = network()
    keys = list(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, amsgrad=amsgrad)
    evaluated = []

    def evaluation_step(engine: Any, batch: Any) -> Any:
        evaluated.append(len(batch[0]))
        return model(batch[0]), batch[1]

    evaluator = Engine(evaluation_step).attach(Metrics(accuracy=Accuracy()))
    trainer = engine_class(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    ema = EMA(model, decay=0.9)
    data = DataLoader(DATA, batch_size=13 // WORLD)  # on two processes the second one has fewer batches
    handlers = [
        OptimizerStep(optimizer),
        Evaluate(evaluator, data),
        Evaluate(evaluator, data, prefix="ema_", ema=ema),
        DistributedSampling(),
        ema,
        FullySharded(model, **options),
        *more,
    ]
    for handler in handlers:
        handler.attach(trainer)
    state = trainer.run(loader(), max_epochs=3)
    return {
        "steps": [state.iteration, state.optimizer_step],
        "weights": flat(model.parameters()),
        "averages": flat(ema.module.parameters()),
        "accuracies": [state.metrics["val_accuracy"], state.metrics["ema_accuracy"]],
        "norm": float(state.metrics.get("gradient_norm", 0)),
        "norm is plain": type(state.metrics.get("gradient_norm")) is torch.Tensor,
        "evaluated": sum(evaluated) // 6,
        "same keys": list(model.state_dict()) == keys,
        "sharded": [isinstance(parameter, DTensor) for parameter in model.parameters()],
        "wrapped": [name for name, part in model.named_modules() if isinstance(part, FSDPModule)],
        "optimizer's": all(
            ours is theirs for ours, theirs in zip(model.parameters(), optimizer.param_groups[0]["params"], strict=True)
        ),
        "part": sum(parameter.to_local().numel() for parameter in model.parameters()) if WORLD > 1 else None,
        "state is sharded": all(isinstance(one["exp_avg"], DTensor) for one in optimizer.state.values()),
        "copy is plain": not any(isinstance(part, FSDPModule) for part in ema.module.modules()),
    }


def used_before() -> dict[str, Any]:
    """An optimizer that has made steps with the whole parameters goes on with the sharded ones."""
    model = network()
    if WORLD > 1:  # where the first process begins, with gradients that all have
        torch.manual_seed(0)
        model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    F.cross_entropy(model(INPUTS), DATA.tensors[1]).backward()
    optimizer.step()
    trainer = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    trainer.attach(OptimizerStep(optimizer), DistributedSampling(), FullySharded(model))
    trainer.run(loader())
    return {"weights": flat(model.parameters())}


def adversaries() -> dict[str, Any]:
    """Two models, two optimizers and a step that calls them itself, with sums in the place of noise."""
    generator, critic = network(), nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    generator_step = OptimizerStep(torch.optim.Adam(generator.parameters(), lr=0.01))
    critic_step = OptimizerStep(torch.optim.Adam(critic.parameters(), lr=0.01))

    def step(engine: Any, batch: Any) -> None:
        real = torch.stack([batch[0].sum(1), batch[1]], 1)
        made = generator(batch[0])
        critic_step(critic(made.detach()).mean() - critic(real).mean() + critic(real).square().mean())
        generator_step(-critic(made).mean())

    trainer = Engine(step).attach(critic_step, generator_step, DistributedSampling(), GradientAccumulation(2))
    trainer.attach(FullySharded(generator, wrap=Block), FullySharded(critic)).run(loader(), max_epochs=2)
    return {"weights": flat([*generator.parameters(), *critic.parameters()])}


def called_twice() -> dict[str, Any]:
    model = network()
    step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
    trainer = Engine(lambda engine, batch: F.mse_loss(model(batch[0]), model(-batch[0]).sin()))
    trainer.attach(step, DistributedSampling(), FullySharded(model, wrap=[Block])).run(loader())
    return {"weights": flat(model.parameters())}


def own_backward() -> dict[str, Any]:
    """An Ignite program that does its own backward and evaluates by hand."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)
    correct = []

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            for start in range(0, 77 if RANK == 0 else 30, 10):  # as many batches as it pleases
                inputs, labels = INPUTS[start : start + 10], DATA.tensors[1][start : start + 10]
                correct.append((model(inputs).argmax(1) == labels).sum().item())

    trainer.add_event_handler(Events.EPOCH_COMPLETED, evaluate)
    FullySharded(model, wrap=Block).attach(trainer)
    DistributedSampling().attach(trainer)
    trainer.run(loader(), max_epochs=2)
    return {"weights": flat(model.parameters()), "correct": sum(correct[8:]) if RANK == 0 else None}


def run_again() -> dict[str, Any]:
    """A run that an error has stopped within a group, then another one."""
    model = network()
    fails = [True]

    def step(engine: Any, batch: Any) -> torch.Tensor:
        if fails and engine.state.iteration == 4:
            raise KeyError(fails.pop())
        return F.cross_entropy(model(batch[0]), batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Engine(step).attach(OptimizerStep(optimizer), DistributedSampling(), FullySharded(model))
    trainer.attach(GradientAccumulation(8), GradientClipping(1.0))
    data = DataLoader(DATA, batch_size=12 // WORLD, drop_last=True)
    try:
        trainer.run(data)
    except KeyError:
        trainer.state.max_epochs = None
        trainer.run(data, max_epochs=1)
    return {"norm": float(trainer.state.metrics["gradient_norm"])}


def state_within_a_group() -> dict[str, Any]:
    """What an OptimizerStep keeps in the middle of a group, put into another one."""
    model = network()
    step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
    trainer = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    trainer.attach(step, DistributedSampling(), FullySharded(model), GradientAccumulation(4))
    kept: list[Any] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: kept.append(step.state_dict()))
    trainer.run(DataLoader(DATA, batch_size=12 // WORLD, drop_last=True), epoch_length=4)
    return {"gradients": flat(kept[0]["gradients"]), "weights": flat(model.parameters())}


def part_called() -> dict[str, Any]:
    """Steps that call parts of the model, one that is wrapped by itself and one that is not."""
    results = {}
    for name in ("blocks", "head"):
        model = network()
        part = getattr(model, name)
        trainer = Engine(lambda engine, batch, part=part: part(torch.ones(4, 33)).square().mean())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer.attach(OptimizerStep(optimizer), FullySharded(model, wrap=[Block, nn.Sequential]))
        trainer.logger.disabled = True
        try:
            trainer.run([None])
            results[name] = flat(part.parameters())
        except RuntimeError as error:
            results[name] = str(error)
    return results


def auto() -> dict[str, Any]:
    """What is wrapped if nothing is said."""
    fully_sharded.SMALLEST_BLOCK = 1000
    tied = nn.ModuleList([nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    model = nn.ModuleDict({
        "blocks": nn.Sequential(Block(40), nn.Sequential(Block(40), Block(3)), nn.ReLU()),
        "tied": tied,
        "alone": nn.Linear(40, 40),
    })  # fmt: skip
    return {"wrapped": [name for name, part in model.named_modules() if part in fully_sharded._large_blocks(model)]}


def mixed() -> dict[str, Any]:
    """An optimizer with a parameter that belongs to no sharded model."""
    model, bias = network(), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([*model.parameters(), bias], lr=0.01)
    trainer = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]) + bias, batch[1]))
    clipping = GradientClipping(0.1)
    trainer.attach(OptimizerStep(optimizer), FullySharded(model), clipping, GradientAccumulation(4))
    trainer.run([(INPUTS, DATA.tensors[1])] * 6)
    return {"weights": flat([*model.parameters(), bias]), "norm": float(trainer.state.metrics["gradient_norm"])}


def statistics() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    trainer.attach(OptimizerStep(optimizer), DistributedSampling(), FullySharded(model)).run(loader())
    return {"buffers": flat(model.buffers())}


def refused() -> dict[str, Any]:
    results = {}
    for name, handlers in {
        "both": lambda model: (DataParallel(model), FullySharded(model)),
        "precision": lambda model: (
            AMP("bf16"),
            FullySharded(model, mixed_precision=MixedPrecisionPolicy(param_dtype=torch.float16)),
        ),
        "nothing to wrap": lambda model: (FullySharded(model, wrap=nn.Conv2d),),
    }.items():
        model = network()
        trainer = Engine(lambda engine, batch: None).attach(*handlers(model))  # type: ignore[operator]
        trainer.logger.disabled = True
        try:
            trainer.run([0])
        except ValueError as error:
            results[name] = str(error)
    model = network()
    handler = FullySharded(model)
    trainer = Engine(lambda engine, batch: None).attach(handler)
    trainer.run([0])
    try:
        handler.detach(trainer)
    except ValueError as error:
        results["detached"] = str(error)
    return results


def saved() -> dict[str, Any]:
    """Averages that were kept whole are taken back by a sharded model."""
    model = network()
    averages = {name: torch.full_like(weight, 0.5) for name, weight in model.named_parameters()}
    trainer = Engine(lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1]))
    ema = EMA(model, decay=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer.attach(OptimizerStep(optimizer), ema, FullySharded(model))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: ema.load_state_dict({"updates": 1, "averages": averages})
    )
    trainer.run([(INPUTS, DATA.tensors[1])])
    with ema.applied():
        weights = flat(model.parameters())
    return {"weights": weights, "after": flat(model.parameters()), "begun": flat(network().parameters())}


BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
PROGRAMS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: train(GradientClipping(0.5)),
    "on ignite": lambda: train(GradientClipping(0.5), engine_class=IgniteEngine),
    "blocks": lambda: train(GradientClipping(0.5), wrap=Block),
    "kept after forward": lambda: train(wrap=lambda part: isinstance(part, Block), reshard_after_forward=False),
    "accumulating": lambda: train(GradientAccumulation(4), wrap=[Block]),
    "accumulating each": lambda: train(GradientAccumulation(4), wrap=[Block], exchange_each_micro_batch=True),
    "by value": lambda: train(GradientClipping(max_value=0.01)),
    "largest": lambda: train(GradientClipping(0.05, norm_type=float("inf"))),
    "offloaded": lambda: train(cpu_offload=True),
    "policy": lambda: train(GradientClipping(0.5), wrap=Block, mixed_precision=BF16),
    "autocast": lambda: train(GradientClipping(0.5), AMP("bf16"), wrap=Block),
    "scaled": lambda: train(GradientClipping(0.5), AMP("fp16", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**24))),
    "used before": used_before,
    "adversaries": adversaries,
    "called twice": called_twice,
    "own backward": own_backward,
    "run again": run_again,
    "state within a group": state_within_a_group,
    "part called": part_called,
    "auto": auto,
    "mixed": mixed,
    "statistics": statistics,
    "refused": refused,
    "saved": saved,
}

if __name__ == "__main__":
    os.chdir(tempfile.gettempdir())
    only = sys.argv[2:] or PROGRAMS
    Path(sys.argv[1]).write_text(json.dumps({name: PROGRAMS[name]() for name in only}))
