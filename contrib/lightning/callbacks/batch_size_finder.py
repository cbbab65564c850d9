"""Finds the largest batch size for which there is enough memory.

Called at on_fit_start, on_validation_start, on_test_start and on_predict_start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.trainer.states import TrainerFn
from camshaft.contrib.lightning.tuner.batch_size_scaling import find_batch_size
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from camshaft.contrib.lightning.evaluation import Evaluation
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["BatchSizeFinder"]


class BatchSizeFinder(Callback):
    """Tries batch sizes until there is too little memory, and runs with the largest that succeeded.

    The module or the data module makes its loaders with the batch size that is one of its attributes. A subclass may
    call :meth:`scale_batch_size` when other epochs begin.

    Args:
        mode: "power" doubles the size until there is too little memory; "binsearch" then searches between the last two.
        steps_per_trial: how many batches of each size.
        init_val: the first size.
        max_trials: how many sizes at most.
        batch_arg_name: the attribute that is the batch size.
        margin: the share by which what "binsearch" finds is made smaller, for safety.
        max_val: the largest size.

    Attributes:
        optimal_batch_size: what was found; ``init_val`` before.

    Raises:
        ValueError: another mode, or a margin that is no share.
        MisconfigurationException: when it runs, if loaders were given to the trainer, or there is no such attribute.

    Example:
        >>> BatchSizeFinder("binsearch", init_val=16).optimal_batch_size
        16
    """

    SUPPORTED_MODES = ("power", "binsearch")

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        if mode.lower() not in self.SUPPORTED_MODES:
            raise ValueError(f"The mode of BatchSizeFinder is 'power' or 'binsearch', not {mode!r}.")
        if not 0 <= margin < 1:
            raise ValueError(f"The margin of BatchSizeFinder is a share, at least 0 and below 1, not {margin!r}.")
        self.optimal_batch_size: int | None = init_val
        self._mode = mode.lower()
        self._steps_per_trial = steps_per_trial
        self._init_val = init_val
        self._max_trials = max_trials
        self._batch_arg_name = batch_arg_name
        self._margin = margin
        self._max_val = max_val

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scale_batch_size(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.scale_batch_size(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scale_batch_size(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scale_batch_size(trainer, pl_module)

    def scale_batch_size(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find it now, and go on with loaders of that size."""
        fn = trainer.state.fn
        loops: dict[TrainerFn | None, Evaluation] = {
            TrainerFn.VALIDATING: trainer.validate_loop,
            TrainerFn.TESTING: trainer.test_loop,
            TrainerFn.PREDICTING: trainer.predict_loop,
        }
        loop = loops.get(fn)
        source = trainer._train_source if loop is None else loop.source
        if source is not None and source.given is not None:
            raise MisconfigurationException(
                f"BatchSizeFinder cannot change the batch size of loaders that are made already: let the module or a "
                f"data module make them in {source.hook}(), from self.{self._batch_arg_name}."
            )
        self.optimal_batch_size = find_batch_size(
            trainer,
            pl_module,
            trainer.datamodule,
            method=str(fn),
            mode=self._mode,
            steps_per_trial=self._steps_per_trial,
            init_val=self._init_val,
            max_trials=self._max_trials,
            batch_arg_name=self._batch_arg_name,
            margin=self._margin,
            max_val=self._max_val,
        )
        if loop is not None:
            loop.loaders = None
            loop.setup_data()
        elif trainer.training_loop is not None and trainer.training_loop.loaders is not None:
            trainer.training_loop.make_loaders_anew()
