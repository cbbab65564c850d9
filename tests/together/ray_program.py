"""A training function for Ray Train, started by it in each of two workers; the driver writes what came of it."""

import json
import sys
from pathlib import Path

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from camshaft import Checkpoint, DataParallel, DistributedSampling, Engine, Events, OptimizerStep, TensorLoader


def train(configuration):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.arange(48.0).reshape(24, 2) / 48
    directory = Path(configuration["directory"])
    trainer = Engine(lambda engine, batch: (model(batch[0]) - 1).square().mean()).attach(
        OptimizerStep(optimizer),
        DataParallel(model),
        DistributedSampling(),
        Checkpoint(directory, model=model, optimizer=optimizer),
    )
    rank = ray.train.get_context().get_world_rank()
    began_at = []

    @trainer.on(Events.ITERATION_STARTED)
    def note(engine):
        began_at.append(engine.state.iteration)

    @trainer.on(Events.ITERATION_COMPLETED(once=configuration["fails_at"]))
    def fail(engine):
        if rank == 0 and not (directory / "failed").exists():
            (directory / "failed").touch()
            raise RuntimeError("a machine has gone")

    @trainer.on(Events.EPOCH_COMPLETED)
    def report(engine):
        ray.train.report({"epoch": engine.state.epoch, "loss": float(engine.state.output)})

    trainer.run(TensorLoader(data, batch_size=4, shuffle=True), max_epochs=3)
    weights = [value for tensor in model.state_dict().values() for value in tensor.flatten().tolist()]
    (directory / f"{rank}.json").write_text(json.dumps({"began_at": began_at[0], "weights": weights}))


def fitted(folder, name, fails_at):
    directory = folder / name
    directory.mkdir()
    TorchTrainer(
        train,
        train_loop_config={"directory": str(directory), "fails_at": fails_at},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            storage_path=str(folder), name=f"ray-{name}", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
    fitted(folder, "whole", fails_at=1000)
    fitted(folder, "failing", fails_at=5)
