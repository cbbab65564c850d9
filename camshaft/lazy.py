"""Lets the public names of a package load when they are first asked for, so that importing the package is cheap."""

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(
    package: str, modules: Mapping[str, str], renamed: Mapping[str, tuple[str, str]] | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` (PEP 562) of a package whose public names live in its sub-modules.

    Args:
        package: the package's `__name__`.
        modules: for each public name, the sub-module that defines it, relative to the package.
        renamed: for each name that is deprecated, its new name, and the first version that does not know the old one
            any more; until then it works and warns.
    """
    namespace = vars(sys.modules[package])
    renamed = renamed or {}

    def load(name: str) -> object:
        if name in renamed:
            new, until = renamed[name]
            warnings.warn(
                f"{package}.{name} is named {package}.{new} now; version {until} will not know the old name.",
                DeprecationWarning,
                stacklevel=2,  # of whoever asks for the name
            )
            return getattr(sys.modules[package], new)
        if name not in modules:
            # Python proposes the nearest name of `obj` to whoever mistyped one.
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        value: object = getattr(import_module(f"{package}.{modules[name]}"), name)
        namespace[name] = value  # from now on Python finds it without asking
        return value

    def names() -> list[str]:
        return sorted(namespace.keys() | modules.keys())

    return load, names
