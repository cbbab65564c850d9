"""A training configured by Hydra: the optimizer and the handlers are entries of its configuration."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from camshaft import Checkpoint, Engine, Events, OptimizerStep, Preemption, RunRecord


@dataclass
class Configuration:
    max_epochs: int = 2
    preempted_at: int = 0
    lr: float = 0.5
    optimizer: Any = field(default_factory=lambda: {"_target_": "torch.optim.SGD", "lr": "${lr}"})
    handlers: Any = field(
        default_factory=lambda: {
            "clipping": {"_target_": "camshaft.GradientClipping", "max_norm": 1.0},
            "accumulation": {"_target_": "camshaft.GradientAccumulation", "micro_batches": 2},
        }
    )


ConfigStore.instance().store(name="configuration", node=Configuration)


@hydra.main(version_base="1.3", config_path=None, config_name="configuration")
def main(configuration):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Linear(2, 1)
    optimizer = instantiate(configuration.optimizer, model.parameters())
    directory = Path(HydraConfig.get().runtime.output_dir)
    trainer = Engine(lambda engine, batch: model(batch).square().mean()).attach(
        OptimizerStep(optimizer),
        *instantiate(configuration.handlers).values(),
        Checkpoint(directory, model=model, optimizer=optimizer),
        Preemption(),
        RunRecord(directory, configuration),
    )
    first = not (directory / "checkpoints").exists()

    @trainer.on(Events.ITERATION_COMPLETED(once=configuration.preempted_at or 10_000))
    def preempt(engine):
        if first:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.run([torch.ones(4, 2)] * 6, max_epochs=configuration.max_epochs)


if __name__ == "__main__":
    main()
