"""A parser of jsonargparse that knows what a trainer is made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.cli.dependency import ArgumentParser, class_from_function, parser_mode, require
from camshaft.contrib.lightning.cli.types import LRSchedulerType, LRSchedulerTypeTuple
from camshaft.contrib.lightning.datamodule import LightningDataModule
from camshaft.contrib.lightning.module import LightningModule
from camshaft.contrib.lightning.trainer import Trainer
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

__all__ = ["LightningArgumentParser"]

_AUTOMATIC = "AUTOMATIC"


class LightningArgumentParser(ArgumentParser):
    """jsonargparse's parser with methods that add the arguments of modules, callbacks, optimizers and schedules.

    Args:
        args: as of ``jsonargparse.ArgumentParser``.
        description: what ``--help`` says first.
        env_prefix: with which names of environment variables begin.
        default_env: whether environment variables are read.
        kwargs: as of ``jsonargparse.ArgumentParser``.

    Attributes:
        callback_keys: under which keys callbacks were added.

    Raises:
        ModuleNotFoundError: jsonargparse is not installed.
    """

    def __init__(
        self,
        *args: Any,
        description: str = "Lightning Trainer command line tool",
        env_prefix: str = "PL",
        default_env: bool = False,
        **kwargs: Any,
    ) -> None:
        require("LightningArgumentParser")
        kwargs.setdefault("parser_mode", parser_mode())
        super().__init__(*args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs)
        self.callback_keys: list[str] = []
        # By key: the class, or the tuple of base classes, and where its configuration goes.
        self._optimizers: dict[str, tuple[Any, str]] = {}
        self._lr_schedulers: dict[str, tuple[Any, str]] = {}

    def add_lightning_class_args(
        self,
        lightning_class: type | Callable[..., Any],
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        """Add the arguments of a trainer, a module, a data module or a callback.

        Args:
            lightning_class: the class, or a function that makes such an object and says so in its annotations.
            nested_key: before the names of its options, as in ``--model.lr``.
            subclass_mode: whether a subclass may be named, as in ``--model package.Subclass``.
            required: whether, in that mode, one must be named.

        Returns:
            The names that were added.

        Raises:
            MisconfigurationException: something else.
        """
        if callable(lightning_class) and not isinstance(lightning_class, type):
            lightning_class = class_from_function(lightning_class)
        kinds = (Trainer, LightningModule, LightningDataModule, Callback)
        if not (isinstance(lightning_class, type) and issubclass(lightning_class, kinds)):
            raise MisconfigurationException(
                "add_lightning_class_args takes a subclass of Trainer, LightningModule, LightningDataModule or "
                f"Callback, or a function that makes one, but got {lightning_class!r}."
            )
        if issubclass(lightning_class, Callback):
            self.callback_keys.append(nested_key)
        if subclass_mode:
            return list(
                self.add_subclass_arguments(lightning_class, nested_key, fail_untyped=False, required=required) or ()
            )
        added: list[str] = self.add_class_arguments(
            lightning_class,
            nested_key,
            fail_untyped=False,
            instantiate=not issubclass(lightning_class, Trainer),
            sub_configs=True,
        )
        return added

    def add_optimizer_args(
        self,
        optimizer_class: type[Optimizer] | tuple[type[Optimizer], ...] = (Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = _AUTOMATIC,
    ) -> None:
        """Add the arguments of an optimizer.

        Args:
            optimizer_class: the class; in a tuple, its subclasses can be chosen.
            nested_key: before the names of its options.
            link_to: the key of an argument that takes the configuration; unless given, ``configure_optimizers`` is
                made from it.
        """
        self._add(optimizer_class, (Optimizer,), nested_key, "params")
        self._optimizers[nested_key] = (optimizer_class, link_to)

    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: LRSchedulerType | tuple[LRSchedulerType, ...] = LRSchedulerTypeTuple,
        nested_key: str = "lr_scheduler",
        link_to: str = _AUTOMATIC,
    ) -> None:
        """Add the arguments of a learning rate schedule.

        Args:
            lr_scheduler_class: the class; in a tuple, its subclasses can be chosen.
            nested_key: before the names of its options.
            link_to: as for optimizers.
        """
        self._add(lr_scheduler_class, LRSchedulerTypeTuple, nested_key, "optimizer")
        self._lr_schedulers[nested_key] = (lr_scheduler_class, link_to)

    def _add(self, kind: Any, kinds: tuple[type, ...], key: str, first_argument: str) -> None:
        classes = kind if isinstance(kind, tuple) else (kind,)
        if not all(inspect.isclass(one) and issubclass(one, kinds) for one in classes):
            names = " or ".join(f"{one.__module__}.{one.__name__}" for one in kinds)
            raise MisconfigurationException(f"The class of {key!r} is a subclass of {names}, but got {kind!r}.")
        options: dict[str, Any] = {"instantiate": False, "fail_untyped": False, "skip": {first_argument}}
        if isinstance(kind, tuple):
            self.add_subclass_arguments(kind, key, **options)
        else:
            self.add_class_arguments(kind, key, sub_configs=True, **options)

    def automatic(self, kinds: dict[str, tuple[Any, str]]) -> list[str]:
        """The keys of optimizers or schedules that ``configure_optimizers`` is to be made from."""
        return [key for key, (_, link_to) in kinds.items() if link_to == _AUTOMATIC]

    def link_optimizers_and_lr_schedulers(self) -> None:
        """Link those that go to an argument of their own."""
        from camshaft.contrib.lightning.cli.instantiation import with_class_path  # noqa: PLC0415

        for key, (kind, link_to) in {**self._optimizers, **self._lr_schedulers}.items():
            if link_to == _AUTOMATIC:
                continue
            if isinstance(kind, tuple):
                self.link_arguments(key, link_to)
            else:
                self.link_arguments(key, link_to, compute_fn=with_class_path(kind))
