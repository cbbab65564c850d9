"""Lets the public names of a package load when they are first asked for, so that importing the package is cheap."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` (PEP 562) of a package whose public names live in its sub-modules.

    Args:
        package: the package's `__name__`.
        modules: for each public name, the sub-module that defines it, relative to the package.
    """
    namespace = vars(sys.modules[package])

    def load(name: str) -> object:
        if name not in modules:
            # Python proposes the nearest name of `obj` to whoever mistyped one.
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        value: object = getattr(import_module(f"{package}.{modules[name]}"), name)
        namespace[name] = value  # from now on Python finds it without asking
        return value

    def names() -> list[str]:
        return sorted(namespace.keys() | modules.keys())

    return load, names
