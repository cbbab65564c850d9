"""The base of progress bars: how far each stage is and how long it will be, and which metrics to show."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn
from camshaft.handlers.scalars import Scalars

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["EpochLine", "ProgressBar", "get_standard_metrics"]


class ProgressBar(Callback):
    """A callback that shows how far the trainer is; a subclass draws something.

    Example:
        >>> class Dots(ProgressBar):
        ...     def disable(self): ...
        ...     def enable(self): ...
        ...     def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ...         print(".", end="")
        >>> Dots().train_description
        'Training'
    """

    _trainer: Trainer | None = None
    _current_eval_dataloader_idx: int | None = None
    _sent_for: tuple[list[str], Scalars] | None = None  # metrics that are on their way from an accelerator
    _arrived: Mapping[str, float] = {}

    def __init__(self) -> None:
        self._trainer = None
        self._current_eval_dataloader_idx = None

    @property
    def trainer(self) -> Trainer:
        """The trainer.

        Raises:
            TypeError: there is none yet.
        """
        if self._trainer is None:
            raise TypeError(f"{type(self).__name__} has no trainer yet: it gets one when a run begins.")
        return self._trainer

    # ------------------------------------------------------------------------------------------- what stands before it

    @property
    def sanity_check_description(self) -> str:
        """Of the validation before the training."""
        return "Sanity Checking"

    @property
    def train_description(self) -> str:
        """Of the training."""
        return "Training"

    @property
    def validation_description(self) -> str:
        """Of a validation."""
        return "Validation"

    @property
    def test_description(self) -> str:
        """Of a test."""
        return "Testing"

    @property
    def predict_description(self) -> str:
        """Of a prediction."""
        return "Predicting"

    # --------------------------------------------------------------------------- batches; infinity where nobody knows

    @property
    def train_batch_idx(self) -> int:
        """Batches of this epoch that are done."""
        return int(self.trainer.fit_loop.epoch_loop.batch_idx) + 1

    @property
    def total_train_batches(self) -> int | float:
        """Batches of an epoch, or until ``max_steps`` if there are fewer and no number of epochs is set."""
        trainer = self.trainer
        if trainer.max_epochs == -1 and trainer.max_steps is not None and trainer.max_steps > 0:
            return min(trainer.num_training_batches, trainer.max_steps - trainer.global_step)
        return trainer.num_training_batches

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Batches of the loader that is validated with now."""
        trainer = self.trainer
        return self._of_current(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Batches of the loader that is tested with now."""
        return self._of_current(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Batches of the loader that is predicted for now."""
        return self._of_current(self.trainer.num_predict_batches)

    @property
    def total_val_batches(self) -> int | float:
        """Batches of all loaders of the validation after this epoch, 0 if there is none."""
        trainer = self.trainer
        every = trainer.check_val_every_n_epoch
        if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every != 0):
            return 0
        batches = trainer.num_val_batches
        return sum(batches) if isinstance(batches, list) else batches

    def _of_current(self, batches: Any) -> int | float:
        number: int | float = batches[self._current_eval_dataloader_idx or 0] if isinstance(batches, list) else batches
        return number

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Whether this is another loader than at the last call.

        Args:
            dataloader_idx: the number of the loader.
        """
        before, self._current_eval_dataloader_idx = self._current_eval_dataloader_idx, dataloader_idx
        return before != dataloader_idx

    def reset_dataloader_idx_tracker(self) -> None:
        """Forget which loader was the last."""
        self._current_eval_dataloader_idx = None

    # ---------------------------------------------------------------------------------------------------- on and off

    def disable(self) -> None:
        """Show nothing from now on; a subclass says how."""
        raise NotImplementedError(f"{type(self).__name__} cannot be switched off: override disable().")

    def enable(self) -> None:
        """Show something again; a subclass says how."""
        raise NotImplementedError(f"{type(self).__name__} cannot be switched on: override enable().")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print around the bar.

        Args:
            args: what to print.
            kwargs: ``print``'s.
        """
        print(*args, **kwargs)  # noqa: T201 - what it is for

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    # ---------------------------------------------------------------------------------------------------- the metrics

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the bar shows: the version of the experiment, and what was logged with ``prog_bar=True``.

        Override it to add something or to leave it out. It is called when the bar is drawn, not at every batch. Numbers
        that are on an accelerator are not waited for: those of the last drawing are shown until they have come.

        Args:
            trainer: the trainer.
            pl_module: its module.
        """
        standard = get_standard_metrics(trainer)
        _ = trainer.callback_metrics  # takes up what was logged
        # As tensors, where the trainer has them; as numbers it would have to wait for them.
        logged = self._without_waiting(getattr(trainer, "_progress_bar_metrics", None) or trainer.progress_bar_metrics)
        twice = sorted(standard.keys() & logged.keys())
        if twice:
            rank_zero_warn(
                f"The progress bar shows {', '.join(twice)} by itself, and what was logged under that name takes its "
                "place: log it under another name, or override get_metrics().",
            )
        return {**standard, **logged}

    def _without_waiting(self, values: Mapping[str, Any]) -> dict[str, float]:
        if self._sent_for is None:
            self._sent_for = (list(values), Scalars(list(values.values())))
        names, scalars = self._sent_for
        if scalars.arrived or set(names) != self._arrived.keys():
            self._arrived = dict(zip(names, scalars.numbers(), strict=True))
            self._sent_for = None
        return dict(self._arrived)

    def _final_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics at the end of a stage, where those of the last drawing would be wrong."""
        self._sent_for = None
        self._arrived = {}
        return self.get_metrics(trainer, pl_module)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sent_for": None}


class EpochLine:
    """The line that is written at the end of an epoch where the output is a file or a pipe, which shows no bar.

    Example:
        >>> line = EpochLine("Epoch 0")
        >>> line.batches = 4
        >>> line.text({"v_num": 3, "loss": 0.123456})
        'Epoch 0: 4 batches in 0.0 s (... batches/s), v_num=3, loss=0.1235'
    """

    def __init__(self, description: str) -> None:
        self.description = description
        self.batches = 0
        self._began_at = perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Do not count a pause.

        Args:
            seconds: how long it was.
        """
        self._began_at += seconds

    def text(self, metrics: Mapping[str, Any]) -> str:
        """The line.

        Args:
            metrics: what it ends with.
        """
        seconds = perf_counter() - self._began_at
        rate = f" ({self.batches / seconds:.4g} batches/s)" if seconds > 0 else ""
        shown = (
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in metrics.items()
        )
        return ", ".join([f"{self.description}: {self.batches} batches in {seconds:.1f} s{rate}", *shown])

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Write it.

        Args:
            metrics: what it ends with.
        """
        print(self.text(metrics), file=sys.stdout, flush=True)  # noqa: T201 - what it is for


def get_standard_metrics(trainer: Trainer) -> dict[str, Any]:
    """What every bar shows: the version of the experiment, of a long one its last four characters.

    Args:
        trainer: the trainer.
    """
    # Several loggers often have one version.
    versions = list(dict.fromkeys(logger.version for logger in trainer.loggers if logger.version not in {"", None}))
    if not versions:
        return {}
    version = versions[0] if len(versions) == 1 else "_".join(map(str, versions))
    return {"v_num": version[-4:] if isinstance(version, str) else version}
