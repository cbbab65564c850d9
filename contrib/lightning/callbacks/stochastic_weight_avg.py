"""Averages the weights of the last epochs, which are trained at a constant learning rate of their own.

Called at setup, on_fit_start, on_train_epoch_start and on_train_end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.evaluation import arguments_of_step
from camshaft.contrib.lightning.results import Results
from camshaft.contrib.lightning.schedules import LRSchedulerConfig
from camshaft.contrib.lightning.strategies import FSDPStrategy
from camshaft.contrib.lightning.trainer.states import TrainerFn
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["StochasticWeightAveraging"]


class StochasticWeightAveraging(Callback):
    """Takes the mean of the weights at the beginning of the last epochs, and gives it to the module in the end.

    From its first epoch on, a ``torch.optim.swa_utils.SWALR`` takes the place of the module's schedule. When training
    has ended, also before its last epoch, the module gets the mean; the statistics of its batch normalisation, which
    belong to other weights, are then computed anew by ``training_step`` on the training data, without gradients.

    Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018.

    Args:
        swa_lrs: the learning rate of these epochs, or a list of those of the parameter groups.
        swa_epoch_start: the first of these epochs, counted from 1; or the fraction of ``max_epochs`` before it.
        annealing_epochs: over how many epochs the learning rate goes there.
        annealing_strategy: "cos" or "linear".
        avg_fn: of the average, the weight and the number of those averaged before; their plain mean by default.
        device: where the average is kept; None: where the module is.

    Raises:
        MisconfigurationException: an argument of another kind; when ``fit`` starts, if there is not one optimizer with
            at most one schedule, if the model is sharded, or if a fraction is given without ``max_epochs``.

    Example:
        >>> averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=6)
        >>> averaging.swa_start  # counted from 0
        5
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        device: torch.device | str | None = "cpu",
    ) -> None:
        if isinstance(swa_epoch_start, int) and swa_epoch_start < 1:
            raise MisconfigurationException(f"swa_epoch_start counts from 1, but is {swa_epoch_start}.")
        if isinstance(swa_epoch_start, float) and not 0 <= swa_epoch_start <= 1:
            raise MisconfigurationException(f"As a fraction, swa_epoch_start is 0 to 1, not {swa_epoch_start}.")
        rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not all(isinstance(rate, float) and rate > 0 for rate in rates):
            raise MisconfigurationException(f"swa_lrs is a positive float or a list of these, not {swa_lrs!r}.")
        if avg_fn is not None and not callable(avg_fn):
            raise MisconfigurationException(f"avg_fn is a function, not {avg_fn!r}.")
        if device is not None and not isinstance(device, (torch.device, str)):
            raise MisconfigurationException(f"device is a torch.device or a string, not {device!r}.")
        self.n_averaged: Tensor | None = None
        self.momenta: dict[_BatchNorm, float | None] = {}
        self._swa_epoch_start = swa_epoch_start
        self._swa_lrs = swa_lrs
        self._annealing_epochs = annealing_epochs
        self._annealing_strategy = annealing_strategy
        self._avg_fn = avg_fn or self.avg_fn
        self._device = device
        self._average_model: LightningModule | None = None
        self._swa_scheduler: SWALR | None = None
        self._max_epochs = -1
        self._init_n_averaged = 0
        self._latest_update_epoch = -1
        self._scheduler_state: dict[str, Any] | None = None  # out of a checkpoint

    @property
    def swa_start(self) -> int:
        """The first of its epochs, counted from 0; where a fraction was given, once ``fit`` has started."""
        return max(int(self._swa_epoch_start) - 1, 0)

    @property
    def swa_end(self) -> float:
        """The last epoch, counted from 0."""
        return float("inf") if self._max_epochs == -1 else self._max_epochs - 1

    # ------------------------------------------------------------------------------------------------ during a run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != TrainerFn.FITTING:
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            raise MisconfigurationException("StochasticWeightAveraging cannot average a model that is sharded.")
        self._average_model = copy.deepcopy(pl_module)
        self.n_averaged, self._init_n_averaged, self._latest_update_epoch = None, 0, -1
        self._swa_scheduler, self._scheduler_state = None, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1 or len(trainer.lr_scheduler_configs) > 1:
            raise MisconfigurationException(
                f"StochasticWeightAveraging works with one optimizer and at most one schedule, but there are "
                f"{len(trainer.optimizers)} and {len(trainer.lr_scheduler_configs)}."
            )
        if not pl_module.automatic_optimization and self.pl_module_contains_batch_norm(pl_module):
            raise MisconfigurationException(
                "StochasticWeightAveraging calls training_step once more on all data for the statistics of batch "
                "normalisation, which a module that makes its own steps (automatic_optimization = False) cannot bear."
            )
        self._max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        if isinstance(self._swa_epoch_start, float):
            if self._max_epochs == -1:
                raise MisconfigurationException(
                    f"swa_epoch_start={self._swa_epoch_start} is a fraction of max_epochs, which is not given: give "
                    "it, or the epoch as an integer."
                )
            self._swa_epoch_start = int(self._max_epochs * self._swa_epoch_start)
        if self._scheduler_state is not None:
            self._begin(trainer, pl_module)  # now: the state of a schedule that the checkpoint has is that of SWALR

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if not self.swa_start <= epoch <= self.swa_end:
            return
        assert self._average_model is not None  # setup has made it
        if self._swa_scheduler is None:
            self._begin(trainer, pl_module)
        if epoch > self._latest_update_epoch:
            assert self.n_averaged is not None  # made at the beginning
            self.update_parameters(self._average_model, pl_module, self.n_averaged, self._avg_fn)
            self._latest_update_epoch = epoch

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None  # setup has made it
        self._average_model = self._average_model.to(self._device or pl_module.device)
        optimizer = trainer.optimizers[0]
        self._swa_scheduler = SWALR(
            optimizer,
            swa_lr=self._swa_lrs,  # type: ignore[arg-type]
            anneal_epochs=self._annealing_epochs,
            anneal_strategy=self._annealing_strategy,
        )
        if self._scheduler_state is not None:
            self._swa_scheduler.load_state_dict(self._scheduler_state)
            self._scheduler_state = None
        elif trainer.current_epoch != self.swa_start:
            rank_zero_warn(
                f"StochasticWeightAveraging begins in epoch {trainer.current_epoch}, not in {self.swa_start}: the "
                "checkpoint was saved without it."
            )
        for config in trainer.lr_scheduler_configs:
            if config.interval != "epoch" or config.frequency != 1:
                rank_zero_warn(f"From now on the learning rate is that of SWALR, each epoch, in the place of {config}.")
        trainer.lr_scheduler_configs[:] = [LRSchedulerConfig(self._swa_scheduler)]
        if self.n_averaged is None:
            self.n_averaged = torch.tensor(self._init_n_averaged, dtype=torch.long, device=pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.n_averaged is None or self._average_model is None:
            return
        self.transfer_weights(self._average_model, pl_module)
        if self.pl_module_contains_batch_norm(pl_module):
            self.reset_batch_norm_and_save_state(pl_module)
            _train_without_gradients(trainer, pl_module)
            self.reset_momenta()

    # ------------------------------------------------------------------------------------------------ averages

    @staticmethod
    def avg_fn(averaged_model_parameter: Tensor, model_parameter: Tensor, num_averaged: Tensor) -> Tensor:
        """The mean of ``num_averaged`` weights and one more."""
        return averaged_model_parameter + (model_parameter - averaged_model_parameter) / (num_averaged + 1)

    @staticmethod
    def update_parameters(
        average_model: nn.Module, model: nn.Module, n_averaged: Tensor, avg_fn: Callable[..., Tensor]
    ) -> None:
        """Take the weights of ``model`` into the average."""
        for average, weight in zip(average_model.parameters(), model.parameters(), strict=True):
            now, new = average.detach(), weight.detach().to(average.device)
            now.copy_(new if n_averaged == 0 else avg_fn(now, new, n_averaged.to(average.device)))
        n_averaged += 1

    @staticmethod
    def transfer_weights(src_pl_module: nn.Module, dst_pl_module: nn.Module) -> None:
        """Give one module the weights of the other."""
        for source, target in zip(src_pl_module.parameters(), dst_pl_module.parameters(), strict=True):
            target.detach().copy_(source.detach())

    # ------------------------------------------------------------------------------------------------ statistics

    @staticmethod
    def pl_module_contains_batch_norm(pl_module: nn.Module) -> bool:
        """Whether there are statistics that belong to the weights."""
        return any(isinstance(module, _BatchNorm) for module in pl_module.modules())

    def reset_batch_norm_and_save_state(self, pl_module: nn.Module) -> None:
        """Forget the statistics, and let them become the plain mean of those of all batches."""
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                self.momenta[module] = module.momentum
                module.momentum = None
                module.reset_running_stats()

    def reset_momenta(self) -> None:
        """Let the statistics move again as they did."""
        for module, momentum in self.momenta.items():
            module.momentum = momentum
        self.momenta = {}

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        return {
            "n_averaged": 0 if self.n_averaged is None else self.n_averaged.item(),
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": None if self._swa_scheduler is None else _plain(self._swa_scheduler.state_dict()),
            "average_model_state": None if self._average_model is None else self._average_model.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._init_n_averaged = state_dict["n_averaged"]
        self._latest_update_epoch = state_dict["latest_update_epoch"]
        self._scheduler_state = state_dict["scheduler_state"]
        if self._average_model is not None and state_dict["average_model_state"] is not None:
            self._average_model.load_state_dict(state_dict["average_model_state"])


def _plain(scheduler_state: dict[str, Any]) -> dict[str, Any]:
    """The state of an SWALR without its function of annealing, which its constructor sets."""
    return {name: value for name, value in scheduler_state.items() if not callable(value)}


def _train_without_gradients(trainer: Trainer, pl_module: LightningModule) -> None:
    """Call ``training_step`` on all training data, with nothing learned and nothing logged."""
    step = arguments_of_step(pl_module.training_step, 1)
    pl_module.train()
    with torch.no_grad(), _nothing_logged(trainer, pl_module) as results:
        for batch_idx, batch in zip(range(int(trainer.num_training_batches)), trainer.train_dataloader, strict=False):
            batch = pl_module.on_before_batch_transfer(batch, 0)  # noqa: PLW2901
            batch = pl_module.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)  # noqa: PLW2901
            batch = pl_module.on_after_batch_transfer(batch, 0)  # noqa: PLW2901
            results.begin_batch(batch)
            step(batch, batch_idx, 0)


@contextmanager
def _nothing_logged(trainer: Trainer, pl_module: LightningModule) -> Iterator[Results]:
    before = trainer.results
    trainer.results = pl_module._results = results = Results()
    results.hook = "training_step"
    try:
        yield results
    finally:
        trainer.results = pl_module._results = before
