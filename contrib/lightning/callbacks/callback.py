"""The base of every callback: Lightning's hooks, each of which does nothing until a subclass overrides it.

A hook that no callback overrides is never called. What a run of ``fit`` calls, in order::

    setup · on_fit_start · on_sanity_check_start · (validation) · on_sanity_check_end · on_train_start
    on_train_epoch_start
        on_train_batch_start
            on_before_zero_grad · on_before_backward · on_after_backward · on_before_optimizer_step
        on_train_batch_end
        on_validation_start · on_validation_epoch_start
            on_validation_batch_start · on_validation_batch_end
        on_validation_epoch_end · on_validation_end
    on_train_epoch_end
    on_train_end · on_fit_end · teardown
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["Callback"]


class Callback:
    """One concern of training that is attached to a ``Trainer``, by methods named after the moments they are called at.

    Example:
        >>> class CountBatches(Callback):
        ...     def __init__(self):
        ...         self.batches = 0
        ...
        ...     def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        ...         self.batches += 1
        >>> CountBatches().state_key
        'CountBatches'
    """

    @property
    def state_key(self) -> str:
        """The name under which a checkpoint keeps this callback's state; unique among the callbacks of a trainer."""
        return type(self).__qualname__

    @property
    def _legacy_state_key(self) -> type[Callback]:
        """The name in checkpoints that were saved by Lightning before version 1.5."""
        return type(self)

    def _generate_state_key(self, **kwargs: Any) -> str:
        """A name made of the class and of the arguments that tell two of its objects apart."""
        return f"{type(self).__qualname__}{kwargs!r}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run begins; ``stage`` is "fit", "validate", "test" or "predict"."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run has ended; ``stage`` is as in :meth:`setup`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """``fit`` begins: optimizers exist, weights are on their device and a checkpoint has been loaded."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """``fit`` ends."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The few batches of validation before training begin."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The few batches of validation before training are done."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training ends."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch of training begins."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch of training has ended, its validation too; what the epoch logged is in ``callback_metrics``."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is on its device and the training step begins."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch has been trained on; ``outputs`` is what the training step returned."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation begins."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation has ended, and ``callback_metrics`` has its values."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The pass over the validation data begins."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The pass over the validation data has ended; what is logged here still counts to it."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of validation begins."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of validation has ended; ``outputs`` is what the validation step returned."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Testing begins."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Testing has ended."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The pass over the test data begins."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The pass over the test data has ended; what is logged here still counts to it."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of testing begins."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of testing has ended; ``outputs`` is what the test step returned."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prediction begins."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prediction has ended."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The pass over the data to predict for begins."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The pass over the data to predict for has ended."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of prediction begins."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of prediction has ended; ``outputs`` is what the predict step returned."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A run was ended by an exception, which is raised again afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written; whatever is put into ``checkpoint`` is written with it."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint has been read, all of which is in ``checkpoint``."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """``loss.backward()`` follows."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """``loss.backward()`` is done, and the optimizers have not stepped."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """``optimizer.step()`` follows; the gradients are whole and unscaled, and not yet clipped."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """``optimizer.zero_grad()`` follows."""
