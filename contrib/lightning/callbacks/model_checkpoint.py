"""Saves checkpoints, keeps the best and the last of them, and deletes the others.

Called at on_train_epoch_end, or at on_validation_end where validation does not come once an epoch; with
``every_n_train_steps`` and ``train_time_interval`` at on_train_batch_end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import proxy

import torch
from torch import Tensor

from camshaft.contrib.lightning.callbacks.checkpoint import Checkpoint
from camshaft.contrib.lightning.callbacks.checkpoint_directory import (
    absolute,
    default_directory,
    link,
    remove,
    why_unwritable,
)
from camshaft.contrib.lightning.callbacks.checkpoint_name import filled_in, split_filepath
from camshaft.contrib.lightning.callbacks.monitored import mode_of
from camshaft.contrib.lightning.trainer.states import TrainerFn
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import WarningCache, rank_zero_info, rank_zero_warn
from camshaft.engine.distributed import broadcast

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["ModelCheckpoint"]

_said = WarningCache()


class ModelCheckpoint(Checkpoint):
    """Saves a checkpoint each epoch, each so many steps or each so many minutes, and keeps the best of them.

    A file is whole or not there at all, and an older one is deleted only when the newer one is on the disk. A directory
    that cannot be written to is an error when the run starts. NaN is worse than any number.

    Args:
        dirpath: the directory; by default ``checkpoints`` in that of the trainer's first logger, or in
            ``default_root_dir``.
        filename: the template of the files' names, such as ``"{epoch}-{val_loss:.2f}"``; by default
            ``"{epoch}-{step}"``.
        monitor: the name of the value in ``trainer.callback_metrics`` that tells the best. Without it the latest
            checkpoint is kept.
        verbose: tell of each checkpoint.
        save_last: also keep ``last.ckpt``, always the latest state; "link" makes it a symbolic link to the checkpoint
            that was saved last.
        save_top_k: how many of the best to keep; -1 keeps all, 0 none.
        save_on_exception: also save when an exception ends the run.
        save_weights_only: leave out the optimizers and all else that only training needs.
        mode: whether "min" or "max" is best; "auto" takes the maximum of what is called an accuracy or the like.
        auto_insert_metric_name: whether "{epoch}" becomes "epoch=3" rather than "3".
        every_n_train_steps: save each so many optimizer steps.
        train_time_interval: save when so much time has passed.
        every_n_epochs: save each so many epochs; the default is 1 if neither of the two above is given.
        save_on_train_epoch_end: save at the end of training epochs (True) or of validation (False); by default of
            epochs if validation comes once in each.
        enable_version_counter: append "-v1" to a name that is taken; if not, the file is replaced.
        filepath: in the place of ``dirpath`` and ``filename``, as before Lightning 1.0; it then monitors ``val_loss``
            if there is one.
        period: ``every_n_epochs``, as before Lightning 1.0.
        prefix: what names begin with, as before Lightning 1.0.

    Attributes:
        best_model_path: of the best checkpoint, or without ``monitor`` of the latest.
        best_model_score: the value that it has.
        best_k_models: the value of each checkpoint that is kept, by path.
        kth_best_model_path: of the worst that is kept, once there are ``save_top_k``.
        last_model_path: of ``last.ckpt``.
        current_score: the value of the checkpoint that was saved last.

    Raises:
        MisconfigurationException: arguments that contradict each other, or an unknown ``mode``; when it would save, if
            validation was run and the monitored value is not there.
        OSError: when ``fit`` starts, if the directory cannot be written to.

    Example:
        >>> checkpoint = ModelCheckpoint("runs", filename="{epoch}-{val_loss:.2f}", monitor="val_loss", save_top_k=3)
        >>> Path(checkpoint.format_checkpoint_name({"epoch": 2, "val_loss": 0.1234})).name
        'epoch=2-val_loss=0.12.ckpt'
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        *,
        filepath: str | os.PathLike[str] | None = None,
        period: int | None = None,
        prefix: str = "",
    ) -> None:
        if dirpath is not None and filename is None and "{" in os.fspath(dirpath):
            dirpath, filepath = None, dirpath  # a directory is no template
        self._monitors_if_there = filepath is not None and monitor is None
        if filepath is not None:
            if dirpath is not None or filename is not None:
                raise MisconfigurationException(
                    f"ModelCheckpoint(filepath={os.fspath(filepath)!r}) is directory and name in one: leave out "
                    f"dirpath={dirpath!r} and filename={filename!r}, or split it into these two."
                )
            dirpath, filename = split_filepath(filepath, prefix)
            monitor = monitor or "val_loss"
        elif prefix:
            filename = prefix + (filename or "{epoch}" + self.CHECKPOINT_JOIN_CHAR + "{step}")
        if period is not None:
            if every_n_epochs is not None:
                raise MisconfigurationException(
                    f"period={period} is the former name of every_n_epochs={every_n_epochs}: keep one of them."
                )
            every_n_epochs = period
        if every_n_train_steps is None and every_n_epochs is None and train_time_interval is None:
            every_n_epochs = 1

        self.dirpath = absolute(dirpath)
        self.filename = filename
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.mode = mode_of(self, monitor, mode)
        self.auto_insert_metric_name = auto_insert_metric_name
        self._every_n_train_steps = every_n_train_steps or 0
        self._train_time_interval = train_time_interval
        self._every_n_epochs = every_n_epochs or 0
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter
        self._refuse_contradictions()

        self.best_model_path = ""
        self.best_model_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}
        self.kth_best_model_path = ""
        self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        self.last_model_path = ""
        self.current_score: Tensor | None = None
        self._last_checkpoint_saved = ""
        self._last_global_step_saved = 0  # where no step was made, there is nothing to save
        self._last_time_checked: float | None = None
        self._validated = False  # in this fit
        self._saves_after_validation = False  # what came due at a step waits for the value of this validation
        self._obsolete: list[str] = []  # to be deleted when all that is new is on the disk

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    @property
    def every_n_epochs(self) -> int | None:
        """How many epochs lie between checkpoints; 0 if they come by steps or by time."""
        return self._every_n_epochs

    # ------------------------------------------------------------------------------------------------ when to save

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = broadcast(self.dirpath or default_directory(trainer))
        if stage == TrainerFn.FITTING:
            self._validated = self._saves_after_validation = False
            if trainer.global_step == 0:  # another training, not the same that goes on
                self._last_checkpoint_saved, self._last_global_step_saved = "", 0
            if not trainer.fast_dev_run and (self.save_top_k != 0 or self.save_last or self.save_on_exception):
                error = broadcast(why_unwritable(self.dirpath))
                if error is not None:
                    raise error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_time_checked = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._every_n_train_steps and self._train_time_interval is None:
            return
        if not self._is_due(trainer) or self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor is not None and (self.monitor not in candidates or _validates_next(trainer)):
            self._saves_after_validation = True
        else:
            self._save(trainer, candidates)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._validated = True
        was_due, self._saves_after_validation = self._saves_after_validation, False
        if self._should_skip_saving_checkpoint(trainer):
            return
        if was_due:
            self._save(trainer, self._monitor_candidates(trainer))
        elif not self._should_save_on_train_epoch_end(trainer):
            self._save_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._should_save_on_train_epoch_end(trainer) and not self._should_skip_saving_checkpoint(trainer):
            self._save_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._remove_obsolete(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self.save_on_exception or self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        filepath = self._free_name(trainer, candidates)
        self._save_checkpoint(trainer, filepath)
        self._save_last_checkpoint(trainer, candidates)
        rank_zero_info(f"{type(exception).__name__} has ended the run; its state is in {filepath}.")

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether steps or time ask for a checkpoint now; the first process looks at the clock for all."""
        if self._train_time_interval is None:
            return trainer.global_step % self._every_n_train_steps == 0
        now = time.monotonic()
        since = self._last_time_checked
        is_due = since is not None and now - since >= self._train_time_interval.total_seconds()
        is_due = trainer.strategy.reduce_boolean_decision(trainer.is_global_zero and is_due, all=False)
        if is_due:
            self._last_time_checked = now
        return is_due

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        return (
            bool(trainer.fast_dev_run)
            or trainer.state.fn != TrainerFn.FITTING
            or trainer.sanity_checking
            or self._last_global_step_saved == trainer.global_step
        )

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        if self._save_on_train_epoch_end is not None:
            return self._save_on_train_epoch_end
        if not trainer.enable_validation or (trainer.num_val_batches and sum(trainer.num_val_batches) == 0):
            return True
        comes_with_epochs = trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0
        return comes_with_epochs and trainer.val_check_seconds is None

    # ------------------------------------------------------------------------------------------------ what to save

    def _save_epoch(self, trainer: Trainer) -> None:
        candidates = self._monitor_candidates(trainer)
        if self._every_n_epochs and (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            self._save(trainer, candidates)
        else:
            self._save_last_checkpoint(trainer, candidates)
            self._remove_obsolete(trainer)

    def _save(self, trainer: Trainer, candidates: dict[str, Any]) -> None:
        self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)
        self._remove_obsolete(trainer)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if self.save_top_k == 0:
            return
        if self.monitor is None or (self._monitors_if_there and self.monitor not in monitor_candidates):
            self._save_none_monitor_checkpoint(trainer, monitor_candidates)
        elif self.monitor in monitor_candidates:
            self._save_monitor_checkpoint(trainer, monitor_candidates)
        else:
            known = ", ".join(repr(name) for name in monitor_candidates if name not in ("epoch", "step"))
            message = (
                f"ModelCheckpoint monitors {self.monitor!r}, which nothing has logged, so it saves nothing. There is: "
                f"{known or 'nothing'}. Monitor one of these, or call self.log({self.monitor!r}, value)."
            )
            if self._validated:
                raise MisconfigurationException(message)
            _said.warn(message)

    def _save_none_monitor_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        replaced = self.best_model_path if self.save_top_k == 1 else ""
        filepath = self._free_name(trainer, monitor_candidates, may_replace=replaced)
        self.best_model_path = filepath  # before it is saved: it is part of the state
        if replaced:
            self._obsolete.append(replaced)
        self._save_checkpoint(trainer, filepath)

    def _save_monitor_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        current = torch.as_tensor(monitor_candidates[self.monitor or ""]).squeeze()
        if self.check_monitor_top_k(trainer, current):
            self._update_best_and_save(current, trainer, monitor_candidates)
        elif self.verbose:
            rank_zero_info(f"{_moment(trainer)}: {self.monitor!r} was not among the best {self.save_top_k}.")

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        most = len(self.best_k_models) + 1 if self.save_top_k == -1 else self.save_top_k
        worst = ""
        if len(self.best_k_models) == most:
            worst = self.kth_best_model_path
            self.best_k_models.pop(worst)
            self._obsolete.append(worst)
        if torch.isnan(current):
            current = torch.full_like(current, torch.inf if self.mode == "min" else -torch.inf)

        filepath = self._free_name(trainer, monitor_candidates, may_replace=worst)
        self.current_score = current
        self.best_k_models[filepath] = current
        best_of, worst_of = (min, max) if self.mode == "min" else (max, min)
        self.best_model_path = best_of(self.best_k_models, key=self.best_k_models.__getitem__)
        self.best_model_score = self.best_k_models[self.best_model_path]
        if len(self.best_k_models) == most:
            self.kth_best_model_path = worst_of(self.best_k_models, key=self.best_k_models.__getitem__)
            self.kth_value = self.best_k_models[self.kth_best_model_path]
        if self.verbose:
            rank_zero_info(
                f"{_moment(trainer)}: {self.monitor!r} is {current:.5f} (the best is {self.best_model_score:.5f}), "
                f"saved to {filepath}."
            )
        self._save_checkpoint(trainer, filepath)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a checkpoint with this value would be kept; all processes must agree."""
        if current is None:
            return False
        if self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return True
        is_better = torch.lt if self.mode == "min" else torch.gt
        worst = self.best_k_models[self.kth_best_model_path]
        return trainer.strategy.reduce_boolean_decision(bool(is_better(current, worst.to(current.device))), all=True)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if not self.save_last:
            return
        filepath = self._free_name(
            trainer, monitor_candidates, self.CHECKPOINT_NAME_LAST, may_replace=self.last_model_path
        )
        previous, self.last_model_path = self.last_model_path, filepath  # before it is saved: it is part of the state
        if previous:
            self._obsolete.append(previous)
        if self.save_last == "link" and self._last_checkpoint_saved and self.save_top_k != 0:
            self._link_checkpoint(trainer, self._last_checkpoint_saved, filepath)
        else:
            self._save_checkpoint(trainer, filepath)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        trainer.save_checkpoint(filepath, self.save_weights_only)
        self._last_global_step_saved = trainer.global_step
        if filepath != self.last_model_path:
            self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if trainer.is_global_zero:
            link(filepath, linkpath)
        trainer.strategy.barrier()

    # ------------------------------------------------------------------------------------------------ deleting

    def _remove_obsolete(self, trainer: Trainer) -> None:
        """Delete what was replaced, now that the newer ones are on the disk."""
        kept = {self.best_model_path, self.last_model_path, *self.best_k_models}
        obsolete, self._obsolete = self._obsolete, []
        for filepath in obsolete:
            if filepath not in kept and self._should_remove_checkpoint(trainer, filepath):
                self._remove_checkpoint(trainer, filepath)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str) -> bool:
        """Whether it lies in the directory of this run and is not the one that the run was resumed from."""
        resumed_from = trainer.ckpt_path
        path = Path(previous).absolute()
        if resumed_from is not None and path == Path(resumed_from).absolute():
            return False
        return Path(self.dirpath or "").absolute() in path.parents

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if trainer.is_global_zero:
            remove(filepath)

    # ------------------------------------------------------------------------------------------------ names

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """The path of a checkpoint with these values.

        Args:
            metrics: values by name; "epoch" and "step" among them.
            filename: a template in the place of this callback's.
            ver: a version to append.
            prefix: what the name begins with, before a "-".

        Example:
            >>> ModelCheckpoint(filename="{epoch:03d}").format_checkpoint_name({"epoch": 5}, ver=2)
            'epoch=005-v2.ckpt'
            >>> checkpoint = ModelCheckpoint(filename="loss{val/loss:.2f}", auto_insert_metric_name=False)
            >>> checkpoint.format_checkpoint_name({"val/loss": 0.1234}, prefix="digits")
            'digits-loss0.12.ckpt'
        """
        template = filename or self.filename or "{epoch}" + self.CHECKPOINT_JOIN_CHAR + "{step}"
        equals = self.CHECKPOINT_EQUALS_CHAR if self.auto_insert_metric_name else None
        parts = [filled_in(template, metrics, equals=equals)]
        if prefix is not None:
            parts.insert(0, prefix)
        if ver is not None:
            parts.append(f"v{ver}")
        name = self.CHECKPOINT_JOIN_CHAR.join(parts) + self.FILE_EXTENSION
        return str(Path(self.dirpath) / name) if self.dirpath else name

    def _free_name(
        self, trainer: Trainer, metrics: dict[str, Any], filename: str | None = None, *, may_replace: str = ""
    ) -> str:
        filepath = self.format_checkpoint_name(metrics, filename)
        version = self.STARTING_VERSION
        while self._enable_version_counter and filepath != may_replace and self.file_exists(filepath, trainer):
            filepath = self.format_checkpoint_name(metrics, filename, ver=version)
            version += 1
        return filepath

    def file_exists(self, filepath: str | os.PathLike[str], trainer: Trainer) -> bool:
        """Whether there is such a file, as the first process sees it."""
        return bool(broadcast(os.path.lexists(filepath)))

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Any]:
        """The values that there are, with the epoch and the step as integers, even where the program logs them."""
        candidates = dict(trainer.callback_metrics)
        for name, number in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
            logged = candidates.get(name)
            candidates[name] = logged.int() if isinstance(logged, Tensor) else torch.tensor(number)
        return candidates

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "best_model_score": self.best_model_score,
            "best_model_path": self.best_model_path,
            "current_score": self.current_score,
            "dirpath": self.dirpath,
            "best_k_models": dict(self.best_k_models),
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": self.kth_value,
            "last_model_path": self.last_model_path,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_model_path = state_dict["best_model_path"]
        saved_in = state_dict.get("dirpath", self.dirpath)
        if saved_in != self.dirpath:
            rank_zero_warn(
                f"This run saves its checkpoints in {self.dirpath!r}, the one that it goes on from did in "
                f"{saved_in!r}: of those there it knows only the best, {self.best_model_path!r}, and will delete none."
            )
            return
        self.best_model_score = state_dict["best_model_score"]
        self.best_k_models = dict(state_dict.get("best_k_models", {}))
        self.kth_best_model_path = state_dict.get("kth_best_model_path", "")
        self.kth_value = state_dict.get("kth_value", self.kth_value)
        self.last_model_path = state_dict.get("last_model_path", "")

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write the paths and the values of the checkpoints that are kept.

        Args:
            filepath: of the file; by default ``best_k_models.yaml`` in the directory of the checkpoints.
        """
        path = Path(filepath) if filepath is not None else Path(self.dirpath or "") / "best_k_models.yaml"
        # A string of JSON is one of YAML, too, and a path has no other place for a colon.
        lines = [f"{json.dumps(name)}: {_yaml_number(score.item())}\n" for name, score in self.best_k_models.items()]
        path.write_text("".join(lines) or "{}\n", encoding="utf-8")

    def _refuse_contradictions(self) -> None:
        for name, least in (("save_top_k", -1), ("_every_n_train_steps", 0), ("_every_n_epochs", 0)):
            value = getattr(self, name)
            if value < least:
                raise MisconfigurationException(f"{name.lstrip('_')} is at least {least}, but is {value}.")
        steps, epochs, interval = self._every_n_train_steps, self._every_n_epochs, self._train_time_interval
        if (steps >= 1) + (epochs >= 1) + (interval is not None) > 1:
            raise MisconfigurationException(
                f"A ModelCheckpoint saves by steps, by epochs or by time, but got every_n_train_steps={steps}, "
                f"every_n_epochs={epochs} and train_time_interval={interval}. Make one ModelCheckpoint for each."
            )
        if self.monitor is None and self.save_top_k not in (-1, 0, 1):
            raise MisconfigurationException(
                f"ModelCheckpoint(save_top_k={self.save_top_k}) has no value that tells the best: give it a monitor, "
                "such as monitor='val_loss', or save_top_k=-1 to keep all checkpoints."
            )
        if self.save_last not in (None, False, True, "link"):
            raise MisconfigurationException(f"save_last is True, False or 'link', not {self.save_last!r}.")


def _validates_next(trainer: Trainer) -> bool:
    """Whether validation follows this batch, and with it a newer value."""
    loop = trainer.training_loop
    return loop is not None and loop._is_time_to_validate(at_end=trainer.is_last_batch)


def _moment(trainer: Trainer) -> str:
    return f"Epoch {trainer.current_epoch}, step {trainer.global_step}"


def _yaml_number(number: float) -> str:
    text = repr(float(number))
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
