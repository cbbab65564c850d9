"""What a Trainer tells of itself: to callbacks, loggers and programs that were written for Lightning's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from camshaft.contrib.lightning.data import batches_to_train
from camshaft.contrib.lightning.old_names import FormerNames
from camshaft.contrib.lightning.schedules import LRSchedulerConfig
from camshaft.contrib.lightning.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from camshaft.engine.distributed import world_size
from camshaft.engine.engine import Engine

if TYPE_CHECKING:
    from camshaft.contrib.lightning.data import Source
    from camshaft.contrib.lightning.evaluation import Evaluation
    from camshaft.contrib.lightning.precision import Precision
    from camshaft.contrib.lightning.strategies import Strategy
    from camshaft.contrib.lightning.training import Training

__all__ = ["TrainerViews"]


class FitLoop:
    """The numbers of a training under the names by which Lightning's programs ask for them.

    Args:
        trainer: whose training it is.

    Example:
        >>> from camshaft.contrib.lightning import Trainer
        >>> trainer = Trainer(max_epochs=2, logger=False)
        >>> trainer.fit_loop.max_epochs += 3  # for a further fit, which goes on where this one ended
        >>> trainer.max_epochs, trainer.fit_loop.epoch_loop.total_batch_idx
        (5, -1)
    """

    def __init__(self, trainer: TrainerViews) -> None:
        self._trainer = trainer
        training = trainer.training_loop
        self.batch_idx = trainer.batch_idx
        self.total_batch_idx = training.total_batch_idx if training is not None else -1
        self.global_step = trainer.global_step
        self.max_batches = trainer.num_training_batches
        self.min_steps, self.max_steps = trainer.min_steps, trainer.max_steps
        self.val_loop = trainer.validation
        self._batches_that_stepped = training.logging_step if training is not None else 0
        completed = trainer.current_epoch
        begun = max(training.engine.state.epoch, completed) if training is not None else 0
        processed = begun if training is not None and training.epoch_end is not None else completed
        current = SimpleNamespace(ready=begun, started=begun, processed=processed, completed=completed)
        self.epoch_progress = SimpleNamespace(current=current, total=current)

    @property
    def epoch_loop(self) -> FitLoop:
        """Within an epoch."""
        return self

    @property
    def max_epochs(self) -> int:
        """After which training ends; may be set."""
        return self._trainer.max_epochs

    @max_epochs.setter
    def max_epochs(self, epochs: int) -> None:
        self._trainer.max_epochs = epochs

    @property
    def min_epochs(self) -> int | None:
        """Before which training does not end early; may be set."""
        return self._trainer.min_epochs

    @min_epochs.setter
    def min_epochs(self, epochs: int | None) -> None:
        self._trainer.min_epochs = epochs


class TrainerViews(FormerNames):
    """The attributes of a Trainer that only say how things are; the Trainer itself is in :mod:`.trainer`."""

    state: TrainerState
    strategy: Strategy
    precision_settings: Precision
    training_loop: Training | None
    validation: Evaluation
    validate_loop: Evaluation
    test_loop: Evaluation
    predict_loop: Evaluation
    callbacks: list[Any]
    loggers: list[Any]
    datamodule: Any
    max_epochs: int
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    num_sanity_val_steps: int
    limit_train_batches: float
    limit_val_batches: float
    lightning_way: bool
    _accumulate_grad_batches: int
    _default_root_dir: Path
    _train_source: Source | None

    # ------------------------------------------------------------------------------------------------ where it is

    @property
    def engine(self) -> Engine:
        """The engine that trains; any handler can be attached to it.

        Raises:
            RuntimeError: ``fit`` has not been called: pass handlers as ``callbacks``, or attach them in a hook.
        """
        if self.training_loop is None:
            raise RuntimeError(
                "There is no engine before fit() has the module: pass handlers as Trainer(callbacks=[...]), or attach "
                "them in on_fit_start."
            )
        return self.training_loop.engine

    @property
    def lightning_module(self) -> Any:
        """The module, or None."""
        return self.strategy.lightning_module

    @property
    def model(self) -> Any:
        """The module, or None."""
        return self.lightning_module

    @property
    def current_epoch(self) -> int:
        """The epochs completed: 0 in the first one."""
        return self.training_loop.epochs_completed if self.training_loop is not None else 0

    @property
    def global_step(self) -> int:
        """The optimizer steps made: with several optimizers, those of the one that made most."""
        if self.training_loop is None:
            return 0
        steps = [optimizer.steps for optimizer in self.training_loop.optimizers]
        return sum(steps) if self.lightning_way else max(steps, default=0)

    @property
    def batch_idx(self) -> int:
        """Of the training batch under way, within its epoch."""
        return self.training_loop.batch_idx if self.training_loop is not None else -1

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch under way is the last of its epoch."""
        return self.training_loop is not None and self.training_loop.is_last_batch

    @property
    def fit_loop(self) -> FitLoop:
        """Lightning's way to the numbers of the training."""
        return FitLoop(self)

    @property
    def accumulate_grad_batches(self) -> int:
        """How many batches make one optimizer step; may be set while training."""
        return self._accumulate_grad_batches

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, batches: int) -> None:
        self._accumulate_grad_batches = batches
        if self.training_loop is not None:
            self.training_loop.set_accumulation(batches)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of torch."""
        return [one.optimizer for one in self.training_loop.optimizers] if self.training_loop is not None else []

    @property
    def lightning_optimizers(self) -> list[Any]:
        """The optimizers as the module gets them."""
        return self.training_loop.optimizers if self.training_loop is not None else []

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The schedules."""
        return self.training_loop.configured.schedules if self.training_loop is not None else []

    @property
    def manual_optimization(self) -> Any:
        """What steps by hand.

        Raises:
            RuntimeError: the module has not switched automatic optimization off.
        """
        if self.training_loop is None or self.training_loop.manual is None:
            raise RuntimeError("manual_backward() needs self.automatic_optimization = False, set in __init__.")
        return self.training_loop.manual

    @property
    def scaler(self) -> Any:
        """The gradient scaler of 16-bit precision, or None."""
        if self.training_loop is None:
            return None
        return next((step.scaler for step in self.training_loop.steps), self.training_loop.scaler)

    @property
    def train_dataloader(self) -> Any:
        """What was given to train on."""
        return self.training_loop.loaders if self.training_loop is not None else None

    @property
    def val_dataloaders(self) -> Any:
        """What was given to validate on."""
        return self.validate_loop.loaders if self.state.fn == TrainerFn.VALIDATING else self.validation.loaders

    @property
    def test_dataloaders(self) -> Any:
        """What was given to test on."""
        return self.test_loop.loaders

    @property
    def predict_dataloaders(self) -> Any:
        """What was given to predict."""
        return self.predict_loop.loaders

    @property
    def num_training_batches(self) -> float:
        """Batches in an epoch."""
        return self.training_loop.num_batches if self.training_loop is not None else float("inf")

    @property
    def num_val_batches(self) -> list[float]:
        """Batches of each validation loader."""
        loop = self.validate_loop if self.state.fn == TrainerFn.VALIDATING else self.validation
        return loop.max_batches

    @property
    def num_sanity_val_batches(self) -> list[float]:
        """Batches of each validation loader that are looked at before training."""
        steps = float("inf") if self.num_sanity_val_steps == -1 else self.num_sanity_val_steps
        return [min(steps, batches) for batches in self.validation.max_batches]

    @property
    def num_test_batches(self) -> list[float]:
        """Batches of each test loader."""
        return self.test_loop.max_batches

    @property
    def num_predict_batches(self) -> list[float]:
        """Batches of each loader to predict."""
        return self.predict_loop.max_batches

    @property
    def val_check_batch(self) -> float | None:
        """After how many batches there is a validation."""
        return self.training_loop.val_check_batch if self.training_loop is not None else None

    @property
    def estimated_stepping_batches(self) -> float:
        """How many optimizer steps the training will make; for schedules, in ``configure_optimizers``."""
        if self.max_epochs == -1:
            return float("inf") if self.max_steps == -1 else self.max_steps
        batches = self.num_training_batches
        if self.training_loop is None:
            batches = self._batches_ahead()
        if batches == float("inf"):
            return self.max_steps if self.max_steps != -1 else float("inf")
        steps = -(-int(batches) // self.accumulate_grad_batches) * max(self.max_epochs, 1)
        return min(self.max_steps, steps) if self.max_steps != -1 else steps

    def _batches_ahead(self) -> float:
        """The batches of an epoch, before the training is set up."""
        assert self._train_source is not None
        source = self._train_source
        return batches_to_train(source.peek(), self.limit_train_batches, self.strategy.prepared_to_train).number

    @property
    def enable_validation(self) -> bool:
        """Whether there is something to validate with and on."""
        return self.validation.exists and self.limit_val_batches != 0

    @property
    def sanity_checking(self) -> bool:
        """Whether validation is being tried before training."""
        return self.state.stage is RunningStage.SANITY_CHECKING

    @property
    def training(self) -> bool:
        """Whether it trains just now."""
        return self.state.stage is RunningStage.TRAINING

    @training.setter
    def training(self, training: bool) -> None:
        self.state.stage = RunningStage.TRAINING if training else None

    @property
    def validating(self) -> bool:
        """Whether it validates just now."""
        return self.state.stage is RunningStage.VALIDATING

    @property
    def testing(self) -> bool:
        """Whether it tests just now."""
        return self.state.stage is RunningStage.TESTING

    @property
    def predicting(self) -> bool:
        """Whether it predicts just now."""
        return self.state.stage is RunningStage.PREDICTING

    @property
    def evaluating(self) -> bool:
        """Whether it validates or tests just now."""
        return self.state.stage is not None and self.state.stage.evaluating

    @property
    def interrupted(self) -> bool:
        """Whether the last call was cut off."""
        return self.state.status == TrainerStatus.INTERRUPTED

    @property
    def default_root_dir(self) -> str:
        """Where logs and checkpoints go."""
        return str(self._default_root_dir)

    @property
    def log_dir(self) -> str | None:
        """The first logger's directory, else the root."""
        directory = getattr(self.logger, "log_dir", None) if self.loggers else self.default_root_dir
        return None if directory is None else str(self.strategy.broadcast(directory))

    @property
    def logger(self) -> Any:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Any) -> None:
        self.loggers = [logger] if logger else []

    @property
    def checkpoint_callback(self) -> Any:
        """The first callback that saves, or None."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        """The callbacks that save."""
        from camshaft.contrib.lightning.callbacks.checkpoint import Checkpoint  # noqa: PLC0415

        return [one for one in self.callbacks if isinstance(one, Checkpoint)]

    @property
    def early_stopping_callback(self) -> Any:
        """The first ``EarlyStopping``, or None."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """All of them."""
        from camshaft.contrib.lightning.callbacks.early_stopping import EarlyStopping  # noqa: PLC0415

        return [one for one in self.callbacks if isinstance(one, EarlyStopping)]

    @property
    def progress_bar_callback(self) -> Any:
        """The progress bar, or None."""
        from camshaft.contrib.lightning.callbacks.progress import ProgressBar  # noqa: PLC0415

        return next((one for one in self.callbacks if isinstance(one, ProgressBar)), None)

    @property
    def precision(self) -> str:
        """As Lightning 2.x writes it."""
        return self.precision_settings.name

    @property
    def accelerator(self) -> Any:
        """The kind of device, by its name."""
        return SimpleNamespace(name=self.strategy.accelerator)

    @property
    def device_ids(self) -> list[int]:
        """The devices of this machine's processes."""
        return self.strategy.device_ids

    @property
    def num_devices(self) -> int:
        """How many there are on this machine."""
        return len(self.strategy.device_ids)

    @property
    def world_size(self) -> int:
        """How many processes there are, or are to be."""
        return max(world_size(), 1)

    @property
    def global_rank(self) -> int:
        """The number of this process among all."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """The number of this process on its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """The number of this machine."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first process."""
        return self.global_rank == 0

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process alone, without breaking a progress bar."""
        if not self.is_global_zero:
            return
        bar = self.progress_bar_callback
        if bar is not None:
            bar.print(*args, **kwargs)
        else:
            print(*args, **kwargs)  # noqa: T201 - what it is for
