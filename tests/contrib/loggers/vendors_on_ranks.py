"""One process of several that log together to MLflow and to Weights & Biases, to be read back by test_vendors.py.

python vendors_on_ranks.py TRACKING_URI, with torchrun's variables, in the directory for the files
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from vendors_program import mlflow, mlflow_kept, wandb, wandb_kept

from camshaft import Engine
from camshaft.engine.distributed import finalise, initialise, rank
from camshaft.handlers import Checkpoint


def main(tracking_uri: str) -> None:
    initialise()
    engine = Engine(lambda engine, batch: torch.tensor(engine.state.iteration + 10.0 * rank()))
    to_mlflow: Any = mlflow(tracking_uri)
    to_mlflow.experiment = "ranks"
    to_wandb = wandb("")
    engine.attach(to_mlflow, to_wandb, Checkpoint("run", model=torch.nn.Linear(1, 1)))
    engine.run(range(3), max_epochs=2)
    kept = {"began": [getattr(logger, "run", None) is not None for logger in (to_mlflow, to_wandb)]}
    if rank() == 0:
        kept |= {"mlflow": mlflow_kept(to_mlflow), "wandb": wandb_kept(to_wandb)}
    Path(f"{rank()}.json").write_text(json.dumps(kept), encoding="utf-8")
    finalise()


if __name__ == "__main__":
    main(*sys.argv[1:])
