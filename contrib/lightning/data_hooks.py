"""The hooks by which a module or a data module gives a run its data."""

from __future__ import annotations

from typing import Any

import torch

from camshaft.handlers.device import moved

__all__ = ["DataHooks"]


class DataHooks:
    """What a module and a data module have in common; each overrides what it needs.

    Example:
        >>> DataHooks().on_after_batch_transfer("batch", 0)
        'batch'
    """

    def prepare_data(self) -> None:
        """Download and so on: on every process, first on one of each machine, so that what it assigns is there."""

    def setup(self, stage: str) -> None:
        """Before ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``; in every process."""

    def teardown(self, stage: str) -> None:
        """After ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``; in every process."""

    def train_dataloader(self) -> Any:
        """What to train on, if ``fit`` was given nothing: an iterable, or a collection of iterables."""
        raise NotImplementedError(f"{type(self).__name__} has no train_dataloader(), and no loader was given.")

    def val_dataloader(self) -> Any:
        """What to validate on: an iterable, or several."""
        raise NotImplementedError(f"{type(self).__name__} has no val_dataloader(), and no loader was given.")

    def test_dataloader(self) -> Any:
        """What to test on: an iterable, or several."""
        raise NotImplementedError(f"{type(self).__name__} has no test_dataloader(), and no loader was given.")

    def predict_dataloader(self) -> Any:
        """What to predict: an iterable, or several."""
        raise NotImplementedError(f"{type(self).__name__} has no predict_dataloader(), and no loader was given.")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Changes a batch before it is moved to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch to the device."""
        return moved(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Changes a batch on the device."""
        return batch
