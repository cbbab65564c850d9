"""A class method that an object of the class cannot be asked for: it makes another object, which would be lost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["class_method"]

T = TypeVar("T")


class _ClassMethod(classmethod):  # type: ignore[type-arg]
    """The decorator :data:`class_method`."""

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        if instance is None:
            bound: Callable[..., Any] = super().__get__(instance, owner)
            return bound
        kind, function = type(instance).__name__, self.__func__

        @functools.wraps(function)
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise TypeError(
                f"{kind}.{function.__name__} makes a new object and leaves the one that it is called on as it is. Call "
                f"it on the class, and keep what it returns: loaded = {kind}.{function.__name__}(...)."
            )

        return refuse


if TYPE_CHECKING:
    class_method = classmethod
else:
    class_method = _ClassMethod
"""Like ``classmethod``, but called on an object it raises a ``TypeError``.

Example:
    >>> class Number:
    ...     @class_method
    ...     def parse(cls, text: str):
    ...         return int(text)
    >>> Number.parse("1")
    1
    >>> Number().parse("1")
    Traceback (most recent call last):
    TypeError: Number.parse makes a new object and leaves the one that it is called on as it is. ...
"""
