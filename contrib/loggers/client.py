"""Finds the client of a vendor's service, or says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["client"]


def client(module: str, package: str, logger: object) -> ModuleType:
    """The module of a service's client.

    Args:
        module: its name.
        package: what to install.
        logger: who needs it.

    Raises:
        ModuleNotFoundError: it is not installed.

    Example:
        >>> client("json", "json", object()).loads("1")
        1
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        raise ModuleNotFoundError(
            f"{type(logger).__name__} needs the package {package}, which is not installed: pip install {package}",
            name=error.name,
        ) from None
