"""Sends the numbers of a run to Weights & Biases."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from camshaft.contrib.loggers.client import client
from camshaft.contrib.loggers.service import ServiceLogger, Status
from camshaft.handlers.logger import Record

__all__ = ["WandBLogger"]

# wandb writes to its file this often; by itself each 15 seconds, and what is not there is lost when the run is killed.
_INTERVAL, _FLUSH_EVERY = "x_transaction_log_flush_interval", 0.25  # seconds


class WandBLogger(ServiceLogger):
    """Sends numbers, parameters, tags and checkpoints to Weights & Biases, or to files for it (``mode="offline"``).

    The numbers are drawn over ``iteration``. A resumed run goes on with the run of the same id; offline it makes
    another directory of files, and ``wandb sync`` puts both together.

    Args:
        project: its name.
        settings: ``wandb.init``'s arguments, such as ``name``, ``entity``, ``dir`` and ``mode``.
        every: record what the step returns at each N-th iteration.
        parameters: as of :class:`ServiceLogger`, and so are the other three.
        tags: see there.
        checkpoints: see there.
        run_id: see there.

    Raises:
        ValueError: as :class:`ServiceLogger`.
        ModuleNotFoundError: when the run starts, ``wandb`` is not installed.

    Example:
        >>> WandBLogger("digits", mode="offline", tags=["first"])
        WandBLogger(project='digits', tags=['first'], mode='offline')
    """

    service: ClassVar[str] = "wandb"

    def __init__(
        self,
        project: str | None = None,
        *,
        every: int = 50,
        parameters: Any = None,
        tags: Any = (),
        checkpoints: Any = None,
        run_id: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(every=every, parameters=parameters, tags=tags, checkpoints=checkpoints, run_id=run_id)
        self.project = project
        self.settings = settings

    def begin_run(self, run_id: str | None) -> tuple[Any, str]:
        wandb = client("wandb", "wandb", self)
        how = {"resume": "allow", **self.settings}
        if hasattr(wandb.Settings(), _INTERVAL):
            settings = copy.copy(how.get("settings") or {})
            if isinstance(settings, dict):
                settings.setdefault(_INTERVAL, _FLUSH_EVERY)
            else:
                setattr(settings, _INTERVAL, _FLUSH_EVERY)
            how["settings"] = settings
        run = wandb.init(project=self.project, id=run_id, **how)
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        return run, run.id

    def send_parameters(self, run: Any, parameters: Mapping[str, Any]) -> None:
        run.config.update(dict(parameters), allow_val_change=True)

    def send_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        words = [f"{name}:{value}" if value else name for name, value in tags.items()]
        run.tags = tuple(dict.fromkeys((*(run.tags or ()), *words)))

    def send_record(self, run: Any, record: Record) -> None:
        run.log({**record.values, "iteration": record.iteration, "epoch": record.epoch})

    def send_file(self, run: Any, path: Path, name: str) -> None:
        kind = "model" if name.startswith("checkpoints/") else "file"
        artifact = client("wandb", "wandb", self).Artifact(f"{run.id}-{_word(kind if path.is_dir() else name)}", kind)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path), name=Path(name).name)
        run.log_artifact(artifact, aliases=["latest", _word(Path(name).name)])

    def flush_run(self, run: Any) -> None:
        time.sleep(2 * _FLUSH_EVERY)  # wandb's other process writes by the clock, and cannot be asked to

    def end_run(self, run: Any, status: Status) -> None:
        run.finish(exit_code=int(status == "failed"))


def _word(name: str) -> str:
    """A name of the characters that wandb takes."""
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)
