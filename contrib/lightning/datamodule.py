"""The data of a program: how it is fetched, prepared and loaded, apart from the module that learns from it."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from camshaft.contrib.lightning.class_method import class_method
from camshaft.contrib.lightning.data_hooks import DataHooks
from camshaft.contrib.lightning.dataset_loaders import loaders_of
from camshaft.contrib.lightning.hyperparameters import HyperparametersMixin
from camshaft.contrib.lightning.loading import MapLocation, load_datamodule

if TYPE_CHECKING:
    from typing_extensions import Self

    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["LightningDataModule"]


class LightningDataModule(DataHooks, HyperparametersMixin):
    """Data sets and loaders in one place; a :class:`Trainer` takes it as ``trainer.fit(module, datamodule=...)``.

    A subclass overrides what it has; the other methods are never called. Where both have a hook, the data module's
    loaders and transfers count before the module's.

    Attributes:
        trainer: the trainer that uses it, or None.
        prepare_data_per_node: whether ``prepare_data`` runs on every machine rather than on the first one only.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> class Numbers(LightningDataModule):
        ...     def __init__(self, batch_size: int = 2) -> None:
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...     def setup(self, stage):
        ...         self.numbers = torch.arange(6.0)
        ...     def train_dataloader(self):
        ...         return DataLoader(self.numbers, batch_size=self.hparams.batch_size)
        >>> numbers = Numbers(batch_size=3)
        >>> numbers.setup("fit")
        >>> list(numbers.train_dataloader())
        [tensor([0., 1., 2.]), tensor([3., 4., 5.])]
    """

    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE: ClassVar[str] = "datamodule_hparams_type"

    name: str | None = None
    trainer: Trainer | None = None
    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()  # what a subclass passes on is its own; it is accepted as Lightning accepts it

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """A data module of data sets; those for training are shuffled.

        Args:
            train_dataset: a data set, or a collection of them, for ``train_dataloader``.
            val_dataset: for ``val_dataloader``.
            test_dataset: for ``test_dataloader``.
            predict_dataset: for ``predict_dataloader``.
            batch_size: of every loader, and for ``__init__``, if it takes it.
            num_workers: of every loader, and for ``__init__``, if it takes it.
            datamodule_kwargs: for ``__init__``.
        """
        parameters = inspect.signature(cls.__init__).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name, value in (("batch_size", batch_size), ("num_workers", num_workers)):
            if takes_all or name in parameters:
                datamodule_kwargs.setdefault(name, value)
        datamodule = cls(**datamodule_kwargs)
        for stage, datasets in (
            ("train", train_dataset),
            ("val", val_dataset),
            ("test", test_dataset),
            ("predict", predict_dataset),
        ):
            if datasets is not None:
                loaders = functools.partial(
                    loaders_of, datasets, batch_size=batch_size, num_workers=num_workers, shuffle=stage == "train"
                )
                setattr(datamodule, f"{stage}_dataloader", loaders)
        return datamodule

    def on_exception(self, exception: BaseException) -> None:
        """Called when a run ends with an error."""

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep of it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint kept."""

    @class_method
    def load_from_checkpoint(
        cls,  # noqa: N805
        checkpoint_path: str | Path | IO[bytes],
        map_location: MapLocation = None,
        hparams_file: str | Path | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """A data module made with the hyperparameters and the state that a checkpoint keeps, ours or Lightning's.

        Args:
            checkpoint_path: a path, an address or an open file.
            map_location: where its tensors shall be, as for ``torch.load``.
            hparams_file: a ``.yaml`` or ``.csv`` file whose hyperparameters count instead.
            weights_only: accepted; nothing but values is ever read.
            kwargs: hyperparameters that count before the checkpoint's, or are missing there.

        Raises:
            TypeError: ``__init__`` needs arguments that are neither in the checkpoint nor given; or it is called on
                an object rather than on the class.
        """
        return load_datamodule(cls, checkpoint_path, map_location, hparams_file, weights_only, **kwargs)

    def __str__(self) -> str:
        lines = []
        for title, stage in (("Train", "train"), ("Validation", "val"), ("Test", "test"), ("Predict", "predict")):
            try:
                loaders = getattr(self, f"{stage}_dataloader")()
            except Exception:  # noqa: BLE001 - not overridden, or not set up yet, which fails as it likes
                loaders = None
            lines.append(f"{{{title} dataloader: {_sizes(loaders)}}}")
        return "\n".join(lines)


def _sizes(loaders: Any) -> str:
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        return " ; ".join(f"{number}. {_sizes(loader)}" for number, loader in enumerate(loaders, start=1))
    dataset = getattr(loaders, "dataset", None)
    if dataset is None:
        return "None"
    return f"size={len(dataset)}" if hasattr(dataset, "__len__") else "size=NA"
