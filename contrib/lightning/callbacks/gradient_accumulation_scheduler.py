"""Changes from epoch to epoch how many batches make one optimizer step.

Called at on_train_start, which refuses what does not go with it, on_train_epoch_start, and on_train_end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["GradientAccumulationScheduler"]


class GradientAccumulationScheduler(Callback):
    """Sets ``trainer.accumulate_grad_batches`` at the beginning of epochs.

    Args:
        scheduling: from which epoch on (the first is 0) how many batches are accumulated; 1 before the first of them.

    Raises:
        TypeError: ``scheduling`` is empty.
        MisconfigurationException: an epoch that is negative, or less than one batch.
        RuntimeError, ValueError: when training starts, if the module steps its optimizers itself, or the trainer was
            given a number of batches, too.

    Example:
        >>> scheduler = GradientAccumulationScheduler({4: 2, 8: 8})
        >>> [scheduler.get_accumulate_grad_batches(epoch) for epoch in (0, 3, 4, 7, 8, 100)]
        [1, 1, 2, 2, 8, 8]
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        if not scheduling:
            raise TypeError("GradientAccumulationScheduler needs at least one epoch, such as {4: 2}.")
        for epoch, batches in scheduling.items():
            if not isinstance(epoch, int) or epoch < 0:
                raise MisconfigurationException(f"An epoch is an integer of at least 0, not {epoch!r}: {scheduling}.")
            if not isinstance(batches, int) or batches < 1:
                raise MisconfigurationException(f"At least 1 batch is accumulated, not {batches!r}: {scheduling}.")
        self.scheduling = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether there is an epoch in which a step takes more than one batch."""
        return any(batches > 1 for batches in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """How many batches a step of this epoch takes."""
        return self.scheduling[max(start for start in self.epochs if start <= epoch)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                f"{type(pl_module).__name__} steps its optimizers itself (automatic_optimization = False), so it must "
                "accumulate gradients itself, too: take GradientAccumulationScheduler away."
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) and a "
                "GradientAccumulationScheduler contradict each other: keep one of them."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = 1  # as it was, for another fit
