"""Finds hyperparameters by trying them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.tuner.batch_size_scaling import find_batch_size
from camshaft.contrib.lightning.tuner.lr_finder import LRFinder, find_learning_rate
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["Tuner"]

_METHODS = ("fit", "validate", "test", "predict")


class Tuner:
    """Finds a learning rate or a batch size; the module, the trainer and its loggers stay as they were.

    Args:
        trainer: with which the module will be trained.

    Example:
        >>> from camshaft.contrib.lightning import Trainer
        >>> from camshaft.contrib.lightning.demos.boring_classes import DemoModel, RandomDataset
        >>> from torch.utils.data import DataLoader
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> model, loader = DemoModel(), DataLoader(RandomDataset(32, 512), batch_size=16)
        >>> found = Tuner(trainer).lr_find(model, loader, min_lr=1e-4, num_training=30)
        >>> model.learning_rate == found.suggestion(), trainer.global_step
        (True, 0)
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def lr_find(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: str = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinder | None:
        """Train some steps with a learning rate that grows, and see where the loss falls most steeply.

        Args:
            model: the module.
            train_dataloaders: to train on, as for ``Trainer.fit``.
            val_dataloaders: accepted; nothing is validated.
            dataloaders: not for this.
            datamodule: instead of loaders.
            method: ``"fit"`` only.
            min_lr: the learning rate of the first step.
            max_lr: the one of the last.
            num_training: how many steps; the data begins again where it has fewer.
            mode: ``"exponential"`` or ``"linear"``: how the learning rate grows.
            early_stop_threshold: the search ends when the loss is so many times the smallest one; None for never.
            update_attr: whether to set the module's ``lr`` or ``learning_rate``, or that of its hyperparameters.
            attr_name: the name of another attribute.

        Returns:
            What was found; None in a ``fast_dev_run``.

        Raises:
            AttributeError: there is no such attribute to set.
            MisconfigurationException: another method, or a module with several optimizers.
            ValueError: another mode, or learning rates in the wrong order.
        """
        if method != "fit":
            raise MisconfigurationException(f"lr_find(method=...) is 'fit' only, but got {method!r}.")
        _check_loaders(method, train_dataloaders, val_dataloaders, dataloaders)
        data = {"train_dataloaders": train_dataloaders, "datamodule": datamodule}
        if train_dataloaders is not None and hasattr(train_dataloaders, "train_dataloader"):
            data = {"train_dataloaders": None, "datamodule": train_dataloaders}
        return find_learning_rate(
            self._trainer,
            model,
            data,
            min_lr=min_lr,
            max_lr=max_lr,
            num_training=num_training,
            mode=mode,
            early_stop_threshold=early_stop_threshold,
            update_attr=update_attr,
            attr_name=attr_name,
        )

    def scale_batch_size(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: str = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Find the largest batch size for which there is enough memory, and set it.

        Args:
            model: the module, which makes its loaders with the batch size, or else the data module does.
            train_dataloaders: a data module; loaders have a batch size of their own already.
            val_dataloaders: not for this.
            dataloaders: a data module, where another method is tried.
            datamodule: the data module.
            method: what to try: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
            mode: ``"power"`` doubles the size until there is too little memory; ``"binsearch"`` then searches between
                the last two.
            steps_per_trial: how many batches of each size.
            init_val: the first size.
            max_trials: how many sizes at most.
            batch_arg_name: the attribute of the module, the data module or their hyperparameters that is the batch
                size.
            margin: the share by which what ``"binsearch"`` finds is made smaller, for safety.
            max_val: the largest size, for want of an error where memory never ends.

        Returns:
            The size; None in a ``fast_dev_run``.

        Raises:
            MisconfigurationException: loaders are given, there is no such attribute, or there are several processes.
            ValueError: another method or mode.
            RuntimeError: there is too little memory for a single sample.
        """
        if method not in _METHODS:
            raise ValueError(
                f"scale_batch_size(method=...) is one of {', '.join(map(repr, _METHODS))}, not {method!r}."
            )
        _check_loaders(method, train_dataloaders, val_dataloaders, dataloaders)
        for given in (train_dataloaders, dataloaders):
            if given is not None and hasattr(given, "prepare_data"):
                datamodule = given
            elif given is not None:
                raise MisconfigurationException(
                    "scale_batch_size cannot change the batch size of loaders that are made already: make them in the "
                    "module or in a data module, from self.batch_size."
                )
        return find_batch_size(
            self._trainer,
            model,
            datamodule,
            method=method,
            mode=mode,
            steps_per_trial=steps_per_trial,
            init_val=init_val,
            max_trials=max_trials,
            batch_arg_name=batch_arg_name,
            margin=margin,
            max_val=max_val,
        )


def _check_loaders(method: str, train: Any, val: Any, others: Any) -> None:
    if method == "fit" and others is not None:
        raise MisconfigurationException(
            "To tune 'fit', give train_dataloaders or a data module rather than dataloaders."
        )
    if method != "fit" and (train is not None or val is not None):
        raise MisconfigurationException(f"To tune {method!r}, give dataloaders or a data module.")
