"""The decorator that methods with loaders had before Lightning 0.7; they need none."""

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["data_loader"]

F = TypeVar("F", bound=Callable[..., Any])


def data_loader(method: F) -> F:
    """The method as it is.

    Example:
        >>> class Data:
        ...     @data_loader
        ...     def train_dataloader(self):
        ...         return [1, 2]
        >>> Data().train_dataloader()
        [1, 2]
    """
    return method
