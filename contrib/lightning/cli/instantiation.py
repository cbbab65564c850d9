"""Making objects from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar, cast

from camshaft.contrib.lightning.cli.dependency import ArgumentParser, require
from camshaft.contrib.lightning.hyperparameters import given_hyperparameters

__all__ = ["Instantiator", "class_path_of", "instantiate_class", "instantiate_module", "with_class_path"]

T = TypeVar("T")

# Written into checkpoints under Lightning's name, which both libraries know.
_OWN_NAME = "lightning.pytorch.cli.instantiate_module"


def instantiate_class(args: Any, init: dict[str, Any]) -> Any:
    """An object of the class that a configuration names.

    Args:
        args: the first argument, or a tuple of them.
        init: ``{"class_path": ..., "init_args": {...}}``.

    Example:
        >>> instantiate_class((), {"class_path": "datetime.timedelta", "init_args": {"days": 1}})
        datetime.timedelta(days=1)
    """
    module, _, name = init["class_path"].rpartition(".")
    first = args if isinstance(args, tuple) else (args,)
    return getattr(import_module(module), name)(*first, **init.get("init_args", {}))


def instantiate_module(class_type: type[T], config: dict[str, Any]) -> T:
    """An object of a class, or of the subclass that the configuration names, with the objects that its arguments name.

    Args:
        class_type: the class.
        config: its arguments as a command line has kept them, and perhaps ``_class_path``.
    """
    require("A checkpoint of a command line's module")
    hparams = {**config, "_instantiator": _OWN_NAME}
    parser = ArgumentParser(exit_on_error=False)
    if "_class_path" in config:
        parser.add_subclass_arguments(class_type, "module", fail_untyped=False)
        arguments = {name: value for name, value in config.items() if name != "_class_path"}
        config = {"class_path": config["_class_path"], "dict_kwargs": arguments}
    else:
        parser.add_class_arguments(class_type, "module", fail_untyped=False)

    def make(made_type: type[T], *args: Any, **kwargs: Any) -> T:
        with given_hyperparameters(made_type, hparams):  # so that its next checkpoint is like this one
            return made_type(*args, **kwargs)

    made = parser.instantiate(parser.parse_object({"module": config}), instantiators=[(make, class_type, True)])
    return cast(T, made.module)


def class_path_of(kind: type) -> str:
    """Where a class can be imported from.

    Example:
        >>> import datetime
        >>> class_path_of(datetime.timedelta)
        'datetime.timedelta'
    """
    return f"{kind.__module__}.{kind.__qualname__}"


def with_class_path(kind: type) -> Callable[[Any], dict[str, Any]]:
    """A function that makes a class's arguments into a configuration that names the class."""

    def add(arguments: Any) -> dict[str, Any]:
        arguments = arguments.as_dict() if hasattr(arguments, "as_dict") else arguments
        return {"class_path": class_path_of(kind), "init_args": arguments or {}}

    return add


class Instantiator:
    """Makes a module or a data module, and lets it save its configuration as its hyperparameters.

    Args:
        configuration: gives the configuration of the object, as plain values.
        key: under which it stands, ``"model"`` or ``"data"``.
    """

    def __init__(self, configuration: Callable[[], dict[str, Any]], key: str) -> None:
        self.configuration = configuration
        self.key = key

    def __call__(
        self, class_type: type[T], *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any
    ) -> T:
        hparams = dict(self.configuration().get(self.key) or {})
        if "class_path" in hparams:
            hparams = {
                "_class_path": hparams["class_path"],
                **(hparams.get("init_args") or {}),
                **(hparams.get("dict_kwargs") or {}),
            }
        for target, value in applied_instantiation_links.items():
            owner, _, name = target.partition(".")
            if owner == self.key:
                _set_nested(hparams, name.removeprefix("init_args."), value)
        hparams["_instantiator"] = _OWN_NAME
        with given_hyperparameters(class_type, hparams):
            return class_type(*args, **kwargs)


def _set_nested(values: dict[str, Any], name: str, value: Any) -> None:
    *owners, last = name.split(".")
    for owner in owners:
        values = values.setdefault(owner, {})
    values[last] = value
