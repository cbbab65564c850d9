"""The names of checkpoint files, made of a template and the values at hand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["filled_in", "split_filepath"]

_PLACE = re.compile(r"\{(?P<name>[^{}:]+)(?P<form>:[^{}]*)?\}")


def filled_in(template: str, values: Mapping[str, Any], *, equals: str | None = "=") -> str:
    """A template with values in the places of their names.

    Args:
        template: such as ``"{epoch}-{val_loss:.2f}"``, with Python's format after a colon.
        values: numbers or tensors of one element, by name; one that is not there counts as 0.
        equals: what stands between a name and its value; None leaves the names out.

    Example:
        >>> filled_in("{epoch:02d}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.1234})
        'epoch=03-val/loss=0.12'
        >>> filled_in("epoch{epoch}-loss{val/loss:.2f}", {"epoch": 3, "val/loss": 0.1234}, equals=None)
        'epoch3-loss0.12'
    """

    def value_at(place: re.Match[str]) -> str:
        name, form = place["name"], place["form"] or ":"
        value = format(values.get(name, 0), form[1:])
        return value if equals is None else f"{name}{equals}{value}"

    return _PLACE.sub(value_at, template)


def split_filepath(filepath: str | os.PathLike[str], prefix: str = "") -> tuple[str | None, str | None]:
    """The directory and the template in a path, as ``ModelCheckpoint(filepath=...)`` took one before Lightning 1.0.

    Args:
        filepath: a directory, if there is one of that name or if it ends in a slash; else its last part is a template.
        prefix: what the names of files begin with.

    Example:
        >>> split_filepath("runs/{epoch}-{val_loss:.2f}"), split_filepath("runs/", prefix="digits-")
        (('runs', '{epoch}-{val_loss:.2f}'), ('runs', 'digits-{epoch}'))
    """
    path = os.fspath(filepath)
    if path.endswith(os.sep) or os.path.isdir(path):  # noqa: PTH112 - a Path drops the slash at the end
        return path.rstrip(os.sep) or os.sep, prefix + "{epoch}" if prefix else None
    directory, template = os.path.split(path)
    return directory or os.curdir, prefix + template
