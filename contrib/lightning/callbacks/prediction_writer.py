"""The base of callbacks that write predictions.

Called at on_predict_epoch_start, on_predict_batch_end and on_predict_epoch_end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from camshaft.contrib.lightning.callbacks.batch_indices import batch_indices
from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["BasePredictionWriter", "WriteInterval"]


class WriteInterval(str, Enum):
    """When predictions are written."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Whether after each batch."""
        return self is not WriteInterval.EPOCH

    @property
    def on_epoch(self) -> bool:
        """Whether after all batches."""
        return self is not WriteInterval.BATCH


class BasePredictionWriter(Callback):
    """Writes what ``trainer.predict`` predicts; a subclass says how, in the one or the other method or in both.

    Each process writes its own part; the indices tell which samples of the data set that is.

    Args:
        write_interval: "batch" calls ``write_on_batch_end``, "epoch" ``write_on_epoch_end``, "batch_and_epoch" both.

    Raises:
        MisconfigurationException: another ``write_interval``.

    Example:
        >>> class PrintPredictions(BasePredictionWriter):
        ...     def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        ...         print(predictions)
        >>> PrintPredictions("epoch").interval.on_batch
        False
    """

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        if write_interval not in [interval.value for interval in WriteInterval]:
            raise MisconfigurationException(
                f"The write_interval is 'batch', 'epoch' or 'batch_and_epoch', not {write_interval!r}."
            )
        self.interval = WriteInterval(write_interval)
        self._upcoming: Iterator[list[int] | None] = batch_indices(None)
        self._indices: list[list[list[int] | None]] = []  # of the batches of each loader
        self._predictions: list[list[Any]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the prediction of one batch.

        Args:
            prediction: what ``predict_step`` returned.
            batch_indices: of the batch's samples in the data set; None where the loader does not tell.
            batch: the batch.
            batch_idx: its number in its loader.
            dataloader_idx: the number of the loader.
        """
        raise NotImplementedError(f"{type(self).__name__} has no write_on_batch_end.")

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write the predictions of all batches.

        Args:
            predictions: what ``predict_step`` returned for each batch; with several loaders, a list of these for each.
            batch_indices: for each loader, the indices of the samples of each batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no write_on_epoch_end.")

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._indices = [[] for _ in trainer.num_predict_batches]
        self._predictions = [[] for _ in trainer.num_predict_batches]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            engine = trainer.predict_loop.engine
            self._upcoming = batch_indices(None if engine is None else engine.state.dataloader)
        indices = next(self._upcoming)
        if self.interval.on_batch:
            self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)
        if self.interval.on_epoch:
            self._predictions[dataloader_idx].append(outputs)
            self._indices[dataloader_idx].append(indices)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval.on_epoch:
            predictions = self._predictions if len(self._predictions) > 1 else self._predictions[0]
            self.write_on_epoch_end(trainer, pl_module, predictions, self._indices)
        self._indices, self._predictions = [], []
