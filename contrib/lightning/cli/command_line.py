"""The command line of a program: its module, its data and the trainer, each made from options and files."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from camshaft import __version__
from camshaft.contrib.lightning import callbacks, loggers, profilers, strategies
from camshaft.contrib.lightning.cli.dependency import (
    ActionConfigFile,
    Namespace,
    as_dict,
    class_from_function,
    require,
)
from camshaft.contrib.lightning.cli.instantiation import Instantiator, instantiate_class, with_class_path
from camshaft.contrib.lightning.cli.parser import LightningArgumentParser
from camshaft.contrib.lightning.cli.save_config import SaveConfigCallback
from camshaft.contrib.lightning.cli.types import ArgsType, ReduceLROnPlateau
from camshaft.contrib.lightning.datamodule import LightningDataModule
from camshaft.contrib.lightning.hooks import is_overridden
from camshaft.contrib.lightning.loading import read_checkpoint
from camshaft.contrib.lightning.module import LightningModule
from camshaft.contrib.lightning.trainer import Trainer
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn
from camshaft.contrib.lightning.utilities.seed import seed_everything

__all__ = ["LightningCLI"]


class LightningCLI:
    """Makes a module, a data module and a trainer from the command line, and runs ``fit``, ``validate`` and so on.

    ``python train.py fit --model.lr 0.1 --trainer.max_epochs 3``, ``--config config.yaml``, ``--print_config`` and
    ``--help`` work for every argument of the classes that has a type.

    Args:
        model_class: the module's class, or a function that makes one; None lets ``--model`` name it.
        datamodule_class: the same for the data module, which may also be none at all.
        save_config_callback: saves the configuration beside the logs; None saves none.
        save_config_kwargs: arguments for it, such as ``{"overwrite": True}``.
        trainer_class: the trainer's class, or a function that makes one.
        trainer_defaults: what the trainer's arguments are unless given; callbacks in it are always added.
        seed_everything_default: the seed unless given; True for ``PL_GLOBAL_SEED`` or 0, False for none.
        parser_kwargs: for the parser; under a subcommand's name, for that one's.
        parser_class: the parser's class.
        subclass_mode_model: whether ``--model`` may name a subclass of ``model_class``.
        subclass_mode_data: whether ``--data`` may name a subclass of ``datamodule_class``.
        args: the arguments, as a list like ``sys.argv[1:]``, or a configuration; ``sys.argv`` unless given.
        run: whether there are subcommands, one of which is run; without, the objects are only made.
        auto_configure_optimizers: whether ``--optimizer`` and ``--lr_scheduler`` are there and make
            ``configure_optimizers``.
        load_from_checkpoint_support: whether ``save_hyperparameters`` keeps the configuration rather than the objects
            that were made from it, so that ``load_from_checkpoint`` can make them again.

    Attributes:
        model: the module.
        datamodule: the data module, or None.
        trainer: the trainer.
        config: the configuration.
        config_init: the configuration with the objects that were made.
        subcommand: the one that was chosen.

    Raises:
        ModuleNotFoundError: jsonargparse is not installed.
        MisconfigurationException: several optimizers without ``link_to``.

    Example:
        >>> from camshaft.contrib.lightning.demos.boring_classes import DemoModel
        >>> from unittest.mock import patch
        >>> with patch("sys.argv", ["train.py", "--model.out_dim=3", "--trainer.max_epochs=2"]):
        ...     cli = LightningCLI(DemoModel, run=False, seed_everything_default=False)
        >>> cli.model.l1.out_features, cli.trainer.max_epochs
        (3, 2)
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: dict[str, Any] | None = None,
        trainer_class: type[Trainer] | Callable[..., Trainer] = Trainer,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int = True,
        parser_kwargs: dict[str, Any] | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
    ) -> None:
        require("LightningCLI")
        _import_classes()
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = save_config_kwargs or {}
        self.trainer_class = trainer_class
        self.trainer_defaults = trainer_defaults or {}
        self.seed_everything_default = seed_everything_default
        self.parser_kwargs = parser_kwargs or {}
        self.parser_class = parser_class
        self.auto_configure_optimizers = auto_configure_optimizers
        self.model_class = model_class
        self.subclass_mode_model = model_class is None or subclass_mode_model
        self.datamodule_class = datamodule_class
        self.subclass_mode_data = datamodule_class is None or subclass_mode_data
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        self._subcommand_arguments: dict[str, list[str]] = {}

        own = {key: value for key, value in self.parser_kwargs.items() if key not in self.subcommands()}
        of_subcommands = {key: value for key, value in self.parser_kwargs.items() if key in self.subcommands()}
        self.setup_parser(run, own, of_subcommands)
        self.parse_arguments(self.parser, args)
        self.subcommand: str | None = self.config["subcommand"] if run else None
        self._take_hyperparameters_of_checkpoint()
        self._seed()

        self._keeps_configuration = load_from_checkpoint_support
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        if self.subcommand is not None:
            self._run(self.subcommand)

    # ------------------------------------------------------------------------------------- the parsers

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods that can be run, and which of their arguments are no options."""
        evaluated = {"model", "dataloaders", "datamodule"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": set(evaluated),
            "test": set(evaluated),
            "predict": set(evaluated),
        }

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that knows ``--config`` and ``--print_config``."""
        kwargs.setdefault("dump_header", [f"camshaft=={__version__}"])
        parser = self.parser_class(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A configuration file: YAML or JSON.")
        return parser

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Make the parser, and those of the subcommands."""
        self.parser = self.init_parser(**main_kwargs)
        if not add_subcommands:
            self._add_arguments(self.parser)
            return
        chooser = self.parser.add_subcommands()
        trainer_class = _as_class(self.trainer_class)
        for subcommand, skipped in self.subcommands().items():
            description = (inspect.getdoc(getattr(trainer_class, subcommand)) or "").partition("\n")[0]
            parser = self.init_parser(**{"description": description, **subparser_kwargs.get(subcommand, {})})
            self._add_arguments(parser)
            added = parser.add_method_arguments(trainer_class, subcommand, skip=set(skipped), fail_untyped=False)
            self._subcommand_parsers[subcommand] = parser
            self._subcommand_arguments[subcommand] = added
            chooser.add_subcommand(subcommand, parser, help=description)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--seed_everything``."""
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="The seed of all random numbers; true for PL_GLOBAL_SEED or 0, false for none.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add those of the trainer, the module and the data module."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        defaults = {f"trainer.{key}": value for key, value in self.trainer_defaults.items() if key != "callbacks"}
        parser.set_defaults(defaults)
        parser.add_lightning_class_args(self.model_class or LightningModule, "model", self.subclass_mode_model)
        parser.add_lightning_class_args(
            self.datamodule_class or LightningDataModule,
            "data",
            self.subclass_mode_data,
            required=self.datamodule_class is not None,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add more arguments, or link some; override it."""

    def _add_arguments(self, parser: LightningArgumentParser) -> None:
        self.add_default_arguments_to_parser(parser)
        self.add_core_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not parser._optimizers:
                parser.add_optimizer_args()
            if not parser._lr_schedulers:
                parser.add_lr_scheduler_args()
        self.link_optimizers_and_lr_schedulers(parser)

    @staticmethod
    def link_optimizers_and_lr_schedulers(parser: LightningArgumentParser) -> None:
        """Link the optimizers and schedules that go to an argument of their own."""
        parser.link_optimizers_and_lr_schedulers()

    # ------------------------------------------------------------------------------------- the configuration

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments into ``self.config``."""
        if args is not None and len(sys.argv) > 1:
            rank_zero_warn(
                f"LightningCLI(args={args!r}) takes no notice of the program's own arguments, {sys.argv[1:]}."
            )
        if isinstance(args, dict | Namespace):
            self.config = parser.parse_object(args)
        else:
            self.config = parser.parse_args(args)

    def _take_hyperparameters_of_checkpoint(self) -> None:
        """Make the module as the checkpoint of ``--ckpt_path`` keeps it, so that its weights fit."""
        path = self._get(self.config, "ckpt_path") if self.subcommand else None
        if not path or not Path(path).is_file():
            return
        hparams = dict(read_checkpoint(path, "cpu").get("hyper_parameters") or {})
        hparams.pop("_instantiator", None)
        if "_class_path" in hparams:
            hparams = {"class_path": hparams.pop("_class_path"), "dict_kwargs": hparams}
        else:  # only what is an option: a module may keep more
            known = as_dict(self._get(self.config, "model"))
            hparams = {key: value for key, value in hparams.items() if key in known}
        if hparams:
            self.config = self.parser.parse_object({self.subcommand: {"model": hparams}}, self.config)

    def _plain_configuration(self) -> dict[str, Any]:
        """The configuration as plain values, also of what links have set."""
        import yaml  # type: ignore[import-untyped]  # noqa: PLC0415 - comes with jsonargparse

        if not hasattr(self, "config_dump"):
            text = self.parser.dump(self.config, skip_link_targets=False, skip_unset=False, format="yaml")
            plain = yaml.safe_load(text)
            self.config_dump: dict[str, Any] = plain[self.subcommand] if self.subcommand else plain
        return self.config_dump

    def _seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if seed is False:
            return
        seed = seed_everything(int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is True else seed, workers=True)
        (self.config[self.subcommand] if self.subcommand else self.config)["seed_everything"] = seed

    def _get(self, config: Any, key: str, default: Any = None) -> Any:
        """What a configuration has under a key, which may be the subcommand's."""
        return config.get(str(self.subcommand), config).get(key, default)

    def _parser(self, subcommand: str | None) -> LightningArgumentParser:
        return self.parser if subcommand is None else self._subcommand_parsers[subcommand]

    # ------------------------------------------------------------------------------------- the objects

    def before_instantiate_classes(self) -> None:
        """Override it to do something before the objects are made."""

    def instantiate_classes(self) -> None:
        """Make the objects."""
        self.config_init = self.parser.instantiate(self.config, instantiators=self._instantiators())
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._set_configure_optimizers()
        self.trainer = self.instantiate_trainer()

    def _instantiators(self) -> list[tuple[Any, type, bool]]:
        """What makes the module and the data module, where they are to save the configuration that they come from."""
        if not self._keeps_configuration:
            return []
        return [
            (Instantiator(self._plain_configuration, key), _class_of(kind), with_subclasses)
            for key, kind, with_subclasses in (
                ("model", self.model_class or LightningModule, self.subclass_mode_model),
                ("data", self.datamodule_class or LightningDataModule, self.subclass_mode_data),
            )
        ]

    def after_instantiate_classes(self) -> None:
        """Override it to do something when the objects are made."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer; arguments given here count before the configuration's."""
        config = {**_one_level(self._get(self.config_init, "trainer", {})), **kwargs}
        callbacks = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        always = self.trainer_defaults.get("callbacks") or []
        callbacks += always if isinstance(always, list) else [always]
        if self.save_config_callback is not None and not config.get("fast_dev_run"):
            callbacks.append(
                self.save_config_callback(
                    self._parser(self.subcommand),
                    self.config.get(str(self.subcommand), self.config),
                    **self.save_config_kwargs,
                )
            )
        if "callbacks" in config:
            given = config["callbacks"] or []
            config["callbacks"] = [*(given if isinstance(given, list | tuple) else [given]), *callbacks]
        elif callbacks:
            rank_zero_warn(
                f"{_as_class(self.trainer_class).__name__} has no argument 'callbacks', so these are not used: "
                f"{', '.join(type(callback).__name__ for callback in callbacks)}."
            )
        return self.trainer_class(**config)

    @staticmethod
    def configure_optimizers(lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None) -> Any:
        """What the module's ``configure_optimizers`` gives, where ``--optimizer`` was given; override it."""
        if lr_scheduler is None:
            return optimizer
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": lr_scheduler, "monitor": lr_scheduler.monitor},
            }
        return [optimizer], [lr_scheduler]

    def _set_configure_optimizers(self) -> None:
        parser = self._parser(self.subcommand)
        optimizers, schedules = parser.automatic(parser._optimizers), parser.automatic(parser._lr_schedulers)
        if not self.auto_configure_optimizers or not optimizers:
            return
        if len(optimizers) > 1 or len(schedules) > 1:
            raise MisconfigurationException(
                f"configure_optimizers cannot be made from several optimizers or schedules: {optimizers + schedules}. "
                "Link each to an argument, add_optimizer_args(..., link_to='model.optimizer_init'), and write "
                "configure_optimizers with instantiate_class."
            )
        chosen = self._chosen(optimizers[0], parser._optimizers)
        if not chosen:
            return
        if is_overridden("configure_optimizers", self.model):
            rank_zero_warn(
                f"--{optimizers[0]} counts, and not {type(self.model).__name__}.configure_optimizers.",
            )
        optimizer = instantiate_class(self.model.parameters(), chosen)
        schedule = self._chosen(schedules[0], parser._lr_schedulers) if schedules else None
        scheduler = instantiate_class(optimizer, schedule) if schedule else None
        self.model.configure_optimizers = functools.partial(
            self.configure_optimizers, self.model, optimizer=optimizer, lr_scheduler=scheduler
        )

    def _chosen(self, key: str, kinds: dict[str, tuple[Any, str]]) -> dict[str, Any] | None:
        """The class and the arguments of an optimizer or a schedule, None where none was chosen."""
        kind, chosen = kinds[key][0], self._get(self.config_init, key)
        if isinstance(kind, tuple):
            return as_dict(chosen) if chosen else None
        return with_class_path(kind)(chosen)

    # ------------------------------------------------------------------------------------- the run

    def _run(self, subcommand: str) -> None:
        """Run one of the trainer's methods, or of this class's under that name, between what is to come around it."""
        for name in (f"before_{subcommand}", subcommand, f"after_{subcommand}"):
            function = getattr(self, name, None)
            if name == subcommand:
                function = function or getattr(self.trainer, subcommand)
                function(**self._prepare_subcommand_kwargs(subcommand))
            elif callable(function):
                function()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        options = self.config_init[subcommand]
        kwargs = {key: options[key] for key in self._subcommand_arguments[subcommand] if key in options}
        kwargs["model"] = self.model
        if self.datamodule is not None:
            kwargs["datamodule"] = self.datamodule
        return kwargs


def _one_level(config: Any) -> dict[str, Any]:
    """One level of a configuration as a dictionary, with the objects in it as they are."""
    return dict(vars(config)) if isinstance(config, Namespace) else dict(config)


def _as_class(kind: Any) -> type:
    made: type = kind if isinstance(kind, type) else class_from_function(kind)
    return made


def _class_of(kind: Any) -> type:
    """The class, or that of what a function makes."""
    made: type = kind if isinstance(kind, type) else inspect.signature(kind, eval_str=True).return_annotation
    return made


def _import_classes() -> None:
    """Import the classes that a configuration may name without their module, such as ``EarlyStopping``."""
    for package in (callbacks, loggers, profilers, strategies):
        for name in package.__all__:
            getattr(package, name)
