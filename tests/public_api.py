"""Writes down what is public: `python tests/public_api.py` renews docs/public-api.txt.

Public is what the packages below list in ``__all__``, with its parameters and, of classes, the attributes without an
underscore that Camshaft itself defines; and the commands with their options.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.distributed.run import get_args_parser

from camshaft.__main__ import COMMANDS
from camshaft.handlers import Handler

__all__ = ["FILE", "public_api", "public_modules"]

FILE = Path(__file__).parents[1] / "docs" / "public-api.txt"

# Modules that are public beside the packages whose names are all found through `__all__`.
MODULES = (
    "camshaft",
    "camshaft.curves",
    "camshaft.engine",
    "camshaft.engine.distributed",
    "camshaft.handlers",
    "camshaft.launch",
    "camshaft.scripts",
)


def public_modules() -> list[ModuleType]:
    """The modules whose ``__all__`` is public; of ``camshaft.contrib`` all that have no private part in their name."""
    contrib = importlib.import_module("camshaft.contrib")
    found = [name for _, name, _ in pkgutil.iter_modules(contrib.__path__, "camshaft.contrib.")]
    lightning = importlib.import_module("camshaft.contrib.lightning")
    packages = [
        name for _, name, package in pkgutil.iter_modules(lightning.__path__, f"{lightning.__name__}.") if package
    ]
    modules = (importlib.import_module(name) for name in sorted({*MODULES, *found, *packages}))
    return [module for module in modules if getattr(module, "__all__", None)]


def public_api() -> str:
    """The text of the file."""
    lines = [
        "# What is public, by module. Written by `python tests/public_api.py`; docs/stability.md says what it is for."
    ]
    where: dict[int, str] = {}  # the first name of each object, where it is described
    for module in public_modules():
        lines += ["", module.__name__]
        for name in sorted(module.__all__):
            value = getattr(module, name)
            full = where.setdefault(id(value), f"{module.__name__}.{name}")
            is_elsewhere = full != f"{module.__name__}.{name}" and (inspect.isclass(value) or callable(value))
            lines += [f"    {line}" for line in ([f"{name} = {full}"] if is_elsewhere else described(name, value))]
    lines += ["", "$ camshaft", *(f"    {line}" for line in commands())]
    return "\n".join(lines) + "\n"


@functools.cache
def public_values() -> list[Any]:
    return [getattr(module, name) for module in public_modules() for name in module.__all__]


def described(name: str, value: Any) -> Iterator[str]:
    """A name with its parameters; below a class what it adds to its public bases."""
    if inspect.isclass(value):
        yield f"class {name}{'' if issubclass(value, enum.Enum) else signature(value)}"
        if is_ours(value):
            for line in members(value):
                yield f"    {line}"
    elif callable(value):
        yield f"{name}{signature(value)}"
    else:
        yield name


def members(kind: type) -> Iterator[str]:
    if issubclass(kind, enum.Enum):
        yield from kind.__members__
        return
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    fields += getattr(kind, "_fields", ())
    fields += documented_attributes(kind) if "__doc__" in vars(kind) else []
    own = [
        base
        for base in kind.__mro__
        if base is kind or (is_ours(base) and not any(base is one for one in public_values()))
    ]
    for name in sorted({*fields, *(name for base in own for name in vars(base))}):
        value = inspect.getattr_static(kind, name, None)
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if name.startswith("_") or (issubclass(kind, Handler) and kind is not Handler and is_of_handlers(name, value)):
            continue
        yield f"{name}{signature(value)}" if inspect.isfunction(value) and name not in fields else name


def is_of_handlers(name: str, value: Any) -> bool:
    """Whether it is what every handler has, or what the engine calls at an event and nobody else."""
    if name in vars(Handler):
        return True
    return inspect.isfunction(value) and list(inspect.signature(value).parameters)[1:] in (
        ["engine"],
        ["engine", "error"],
        ["engine", "event"],
    )


def documented_attributes(kind: type) -> list[str]:
    """Those in the section Attributes of the docstring."""
    section = re.search(r"^Attributes:\n((?:    .*\n|\n)*)", f"{inspect.getdoc(kind) or ''}\n", re.MULTILINE)
    return re.findall(r"^    (\w+):", section[1], re.MULTILINE) if section else []


def is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "camshaft"


def signature(value: Any) -> str:
    """Parameters and defaults, without types, which differ in how versions of Python show them."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = [
        parameter.replace(annotation=parameter.empty, default=default(parameter.default))
        for parameter in found.parameters.values()
    ]
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


class Shown:
    """A default whose representation is the same in each process."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def default(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return value
    return Shown(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))


def commands() -> Iterator[str]:
    """Each command with its arguments and options."""
    for name in sorted(COMMANDS):
        parser = argparse.ArgumentParser(add_help=False)
        importlib.import_module(f"camshaft.commands.{name}").add_arguments(parser)
        torchs = get_args_parser()._actions if name == "launch" else []
        yield " · ".join([name, *sorted({*map(shown, parser._actions)} - {*map(shown, torchs)})])


def shown(action: argparse.Action) -> str:
    return " ".join(action.option_strings) or str(action.metavar or action.dest)


if __name__ == "__main__":
    FILE.write_text(public_api(), encoding="utf-8")
