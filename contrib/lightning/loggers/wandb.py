"""Sends the numbers of a run to Weights & Biases."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any, Literal

from torch import nn

from camshaft.contrib.lightning.loggers.checkpoints import Checkpoint
from camshaft.contrib.lightning.loggers.hyperparameters import as_mapping, as_plain
from camshaft.contrib.lightning.loggers.logger import rank_zero_experiment
from camshaft.contrib.lightning.loggers.service import ServiceLogger, client
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only

__all__ = ["WandbLogger"]

_STEP = "trainer/global_step"


class WandbLogger(ServiceLogger):
    """Sends numbers, hyperparameters, media and checkpoints to Weights & Biases, or to files for it.

    Args:
        name: of the run.
        save_dir: where wandb keeps its files.
        version: the id of the run; the same as ``id``.
        offline: True to write files, to be uploaded later with ``wandb sync``.
        dir: the same as ``save_dir``, if that is None.
        id: of a run to continue.
        anonymous: whether a run without an account is allowed.
        project: by default the environment's ``WANDB_PROJECT``, else ``lightning_logs``.
        log_model: ``"all"`` to upload checkpoints when they are saved, True when the run is over, or False.
        experiment: a run that has begun, to record with.
        prefix: what stands before the name of each metric, and a ``-`` after it.
        checkpoint_name: of the uploaded checkpoints; ``model-ID`` unless given.
        add_file_policy: ``"immutable"`` to upload checkpoints without copying them first.
        kwargs: ``wandb.init``'s, such as ``entity``, ``group`` and ``tags``.

    Raises:
        MisconfigurationException: ``log_model`` with ``offline``.
        ModuleNotFoundError: ``wandb`` is not installed.
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] | None = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 - Lightning's name
        id: str | None = None,  # noqa: A002
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        **kwargs: Any,
    ) -> None:
        client("wandb", "wandb", self)
        if offline and log_model:
            raise MisconfigurationException(
                f"WandbLogger(log_model={log_model!r}, offline=True): offline nothing can be uploaded. Leave one out."
            )
        super().__init__(log_model)
        directory = save_dir if save_dir is not None else dir
        self._experiment = experiment
        self._prefix = prefix
        self._checkpoint_name = checkpoint_name
        self.add_file_policy = add_file_policy
        self._wandb_init: dict[str, Any] = {
            "name": name,
            "project": project or os.environ.get("WANDB_PROJECT", "lightning_logs"),
            "dir": None if directory is None else os.fspath(directory),
            "id": version or id,
            "resume": "allow",
            **({"anonymous": "allow"} if anonymous else {}),
            **({"mode": "offline"} if offline else {}),
            **kwargs,
        }

    def _start(self) -> Any:
        wandb = client("wandb", "wandb", self)
        if wandb.run is not None:
            return wandb.run  # the program has begun one
        run = wandb.init(**self._wandb_init)
        self._wandb_init["id"] = run.id  # of a copy of this logger in another process
        if self._wandb_init.get("sync_tensorboard"):
            run.define_metric("*", step_metric="global_step")
        else:
            run.define_metric(_STEP)
            run.define_metric("*", step_metric=_STEP, step_sync=True)
        return run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """wandb's run."""
        return self._begun()

    @property
    def name(self) -> str | None:
        """The name of the project; that of the run is ``logger.experiment.name``."""
        name: str | None = self._wandb_init["project"]
        return name

    @property
    def version(self) -> str | None:
        """The id of the run, once it has begun or if it was given."""
        version: str | None = getattr(self._experiment, "id", None) if self._experiment else self._wandb_init["id"]
        return version if isinstance(version, str) else self._wandb_init["id"]

    @property
    def save_dir(self) -> str | None:
        """Where wandb keeps its files."""
        directory: str | None = self._wandb_init["dir"]
        return directory

    def watch(
        self, model: nn.Module, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True
    ) -> None:
        """Record histograms of a model's weights or gradients; arguments as of ``wandb.watch``."""
        self._send(lambda _: self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        values = as_plain(as_mapping(params))
        self._send(lambda run: run.config.update(values, allow_val_change=True))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        before = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        row = {f"{before}{name}": value for name, value in metrics.items()}
        if step is not None and not self._wandb_init.get("sync_tensorboard"):
            row[_STEP] = step
        self._send(lambda run: run.log(row))

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record a table, of ``columns`` and ``data`` or of a ``dataframe``."""
        table = client("wandb", "wandb", self).Table(columns=columns, data=data, dataframe=dataframe)
        self.log_metrics({key: table}, step)

    @rank_zero_only
    def log_text(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[str]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Record text as a table."""
        self.log_table(key, columns, data, dataframe, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record images: tensors, arrays, PIL's or paths; each of ``kwargs`` is a list, such as ``caption``."""
        self._log_media("Image", key, images, step, kwargs)

    @rank_zero_only
    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record sounds: arrays or paths; each of ``kwargs`` is a list, such as ``sample_rate``."""
        self._log_media("Audio", key, audios, step, kwargs)

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Record films: arrays or paths; each of ``kwargs`` is a list, such as ``fps``."""
        self._log_media("Video", key, videos, step, kwargs)

    def _log_media(
        self, kind: str, key: str, items: list[Any], step: int | None, options: dict[str, list[Any]]
    ) -> None:
        if not isinstance(items, list):
            raise TypeError(f"WandbLogger records a list of them, but got {items!r} as {key!r}.")
        for name, values in options.items():
            if len(values) != len(items):
                raise ValueError(f"{key!r} has {len(items)} items, but {name!r} has {len(values)}: give each item one.")
        wrap = getattr(client("wandb", "wandb", self), kind)
        media = [wrap(item, **{name: values[i] for name, values in options.items()}) for i, item in enumerate(items)]
        self.log_metrics({key: media}, step)

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """The artifact, noted as used by this run."""
        return self.experiment.use_artifact(artifact, type=artifact_type)

    @staticmethod
    @rank_zero_only
    def download_artifact(
        artifact: str,
        save_dir: str | os.PathLike[str] | None = None,
        artifact_type: str | None = None,
        use_artifact: bool | None = True,
    ) -> str:
        """Download an artifact and return where it is.

        Args:
            artifact: its path.
            save_dir: where to; wandb chooses unless given.
            artifact_type: its type.
            use_artifact: whether the run, if there is one, notes that it uses it.
        """
        wandb = client("wandb", "wandb", WandbLogger)
        if wandb.run is not None and use_artifact:
            found = wandb.run.use_artifact(artifact)
        else:
            found = wandb.Api().artifact(artifact, type=artifact_type)
        path: str = found.download(root=None if save_dir is None else os.fspath(save_dir))
        return path

    def _upload(self, experiment: Any, checkpoint: Checkpoint, about: dict[str, Any]) -> None:
        name = self._checkpoint_name or f"model-{experiment.id}"
        artifact = client("wandb", "wandb", self).Artifact(name=name, type="model", metadata=about)
        artifact.add_file(str(checkpoint.path), name="model.ckpt", policy=self.add_file_policy)
        experiment.log_artifact(artifact, aliases=checkpoint.aliases)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_experiment": None}  # another process continues the run by its id
