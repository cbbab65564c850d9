"""A callback made of functions.

Called at the hooks that it is given functions for, and no others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from camshaft.contrib.lightning.callbacks.callback import Callback

__all__ = ["LambdaCallback"]

_HOOKS = [name for name in vars(Callback) if name in ("setup", "teardown") or name.startswith("on_")]


class LambdaCallback(Callback):
    """Calls functions at hooks, for what is too short for a class.

    Args:
        hooks: functions by the names of hooks, each with the arguments of that hook of ``Callback``.

    Raises:
        TypeError: there is no hook of that name.

    Example:
        >>> callback = LambdaCallback(on_train_end=lambda trainer, pl_module: print("trained"))
        >>> callback.on_train_end(None, None)
        trained
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        unknown = hooks.keys() - set(_HOOKS)
        if unknown:
            raise TypeError(
                f"LambdaCallback takes functions for hooks, and {', '.join(sorted(unknown))} is none of them: "
                f"{', '.join(_HOOKS)}."
            )
        vars(self).update({name: function for name, function in hooks.items() if function is not None})


# What help(), editors and command lines show.
LambdaCallback.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    + [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _HOOKS]
)
