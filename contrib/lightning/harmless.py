"""Which classes a checkpoint may hold: those that only keep values, and run nothing when they are read."""

from __future__ import annotations

import contextlib
import io
import pathlib
import sys
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from typing import Any

import torch

from camshaft.contrib.lightning.utilities.parsing import AttributeDict

__all__ = ["harmless_classes", "is_harmless"]

_DICTIONARIES: tuple[type, ...] = (dict, AttributeDict, OrderedDict)
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


@contextlib.contextmanager
def harmless_classes() -> Iterator[None]:
    """Within it, ``torch.load(..., weights_only=True)`` also reads what checkpoints of Lightning hold beside weights.

    Example:
        >>> file = io.BytesIO()
        >>> torch.save({"data": pathlib.PurePosixPath("data"), "options": Namespace(lr=0.1)}, file)
        >>> _ = file.seek(0)
        >>> with harmless_classes():
        ...     torch.load(file, weights_only=True)
        {'data': PurePosixPath('data'), 'options': Namespace(lr=0.1)}
    """
    with torch.serialization.safe_globals(_harmless()):
        yield


def is_harmless(value: Any) -> bool:
    """Whether a value can be written to a checkpoint and read again without running code from it.

    Example:
        >>> is_harmless({"lr": 0.1, "layers": [1, 2]}), is_harmless(pathlib.Path("data"))
        (True, True)
        >>> is_harmless(lambda: 1), is_harmless(torch.nn.ReLU)
        (False, False)
    """
    if type(value) in _PLAIN:
        return True
    if type(value) in {list, tuple, set}:
        return all(map(is_harmless, value))
    if type(value) in _DICTIONARIES:
        return all(is_harmless(part) for entry in value.items() for part in entry)
    if isinstance(value, torch.nn.Module):
        return False
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        with harmless_classes(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(file, weights_only=True)
    except Exception:  # noqa: BLE001 - whatever `__reduce__` or the reader raise, it cannot be kept
        return False
    return True


def _harmless() -> list[Any]:
    """Classes, and pairs of a class and the name under which other programs have written it."""
    classes: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        Namespace,
        timedelta,
        timezone,
        date,
        datetime,
        time,
        # `set` and the likes, which `weights_only` does not know in every version of torch
        set,
        frozenset,
        slice,
        range,
        complex,
    ]
    # torch's reader fills no dictionaries but its own three kinds.
    for package in ("lightning.fabric", "lightning_fabric", "lightning.pytorch", "pytorch_lightning"):
        classes += [(OrderedDict, f"{package}.utilities.{module}.AttributeDict") for module in ("data", "parsing")]
    # A path is read as one of this system, whichever wrote it, and Python 3.13 gave its classes another module.
    for module in ("pathlib", "pathlib._local"):
        classes += [(pathlib.Path, f"{module}.{name}") for name in ("PosixPath", "WindowsPath", "Path")]
        pure = (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PurePath)
        classes += [(kind, f"{module}.{kind.__name__}") for kind in pure]
    classes += _of_numpy()
    return classes


def _of_numpy() -> Iterator[Any]:
    """What makes NumPy's arrays and scalars."""
    numpy = sys.modules.get("numpy")  # torch loads it where it is installed
    if numpy is None:
        return
    yield from (numpy.ndarray, numpy.dtype)
    yield from {type(numpy.dtype(code)) for code in numpy.typecodes["All"]}
    makers = {numpy.float64(0).__reduce__()[0], numpy.zeros(1).__reduce__()[0]}
    for maker in makers:
        yield maker
        for package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
            yield (maker, f"{package}.multiarray.{maker.__name__}")
