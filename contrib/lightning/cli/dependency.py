"""What is used of jsonargparse; without it only the use of a command line fails, in a sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

__all__ = [
    "ActionConfigFile",
    "ArgumentParser",
    "Namespace",
    "as_dict",
    "class_from_function",
    "parser_mode",
    "require",
    "with_our_names",
]

_LIGHTNINGS = re.compile(r"^(?:lightning\.pytorch|pytorch_lightning)(?=(?:\.\w+)+$)")

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from jsonargparse._actions import ActionConfigFile
    from jsonargparse.typing import class_from_function

    missing: ImportError | None = None
else:
    try:
        from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, class_from_function

        missing = None
    except ImportError as error:
        ActionConfigFile = class_from_function = None
        ArgumentParser = Namespace = type("Missing", (), {})
        missing = error


def require(what: str) -> None:
    """Fail with a sentence where jsonargparse is missing.

    Args:
        what: that which needs it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if missing is not None:
        raise ModuleNotFoundError(
            f"{what} needs jsonargparse, which is not installed: pip install 'camshaft[lightning]', or "
            "pip install 'jsonargparse[signatures]>=4.53'."
        ) from missing


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries."""
    if isinstance(config, Namespace):
        return dict(config.as_dict())
    return dict(config or {})


def parser_mode() -> str:
    """The way in which configurations are read: as YAML, in which what Lightning's classes are called is ours."""
    from jsonargparse import get_loader, set_loader  # noqa: PLC0415 - may be missing
    from yaml import YAMLError  # type: ignore[import-untyped]  # noqa: PLC0415

    read = get_loader("yaml")
    set_loader("yaml_of_lightning", lambda text: with_our_names(read(text)), (YAMLError,))
    return "yaml_of_lightning"


def with_our_names(config: Any) -> Any:
    """A configuration with our classes in the place of Lightning's.

    Example:
        >>> with_our_names([{"class_path": "pytorch_lightning.callbacks.Timer"}, "lightning.pytorch"])
        [{'class_path': 'camshaft.contrib.lightning.callbacks.Timer'}, 'lightning.pytorch']
    """
    if isinstance(config, str):
        return _LIGHTNINGS.sub("camshaft.contrib.lightning", config)
    if isinstance(config, dict):
        return {name: with_our_names(value) for name, value in config.items()}
    if isinstance(config, list):
        return [with_our_names(value) for value in config]
    return config
