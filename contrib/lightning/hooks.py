"""Which hooks a module, a data module and callbacks override: only those are called, so that others cost nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from camshaft.contrib.lightning.old_hooks import former_hook

__all__ = ["Hooks", "is_overridden", "takes"]

# Where the hooks that do nothing, or the usual thing, are defined: ours, and those of the real Lightning, whose modules
# and callbacks are taken as well.
_CLASSES = {
    "Callback",
    "Checkpoint",
    "CheckpointHooks",
    "DataHooks",
    "LightningDataModule",
    "LightningModule",
    "ModelHooks",
}
_DEFAULTS = {
    f"{package}.{module}"
    for package in ("lightning.pytorch", "pytorch_lightning")
    for module in ("core.module", "core.hooks", "core.datamodule", "callbacks.callback", "callbacks.checkpoint")
} | {
    f"camshaft.contrib.lightning.{module}"
    for module in ("module", "data_hooks", "datamodule", "callbacks.callback", "callbacks.checkpoint")
}


def is_overridden(name: str, owner: Any) -> bool:
    """Whether the class of ``owner``, or ``owner`` itself, has a hook of its own.

    Args:
        name: of the hook.
        owner: a module, a data module or a callback; None has none.

    Example:
        >>> from camshaft.contrib.lightning import Callback
        >>> class Count(Callback):
        ...     def on_train_start(self, trainer, pl_module): ...
        >>> is_overridden("on_train_start", Count()), is_overridden("on_train_end", Count())
        (True, False)
    """
    hook = getattr(owner, name, None)
    if not callable(hook):
        return False
    function = inspect.unwrap(hook.func if isinstance(hook, functools.partial) else hook)
    is_default = getattr(function, "__module__", None) in _DEFAULTS
    return not (is_default and function.__qualname__.partition(".")[0] in _CLASSES)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether ``function`` has a parameter of this name.

    Example:
        >>> takes(lambda batch, batch_idx: None, "batch_idx")
        True
    """
    return name in inspect.signature(function).parameters


class Hooks:
    """The hooks of a run, by name: what its callbacks and its module override, in the order in which they are called.

    Args:
        trainer: passed to the callbacks.
        module: whose hooks come after those of the callbacks.

    Example:
        >>> from camshaft.contrib.lightning import LightningModule, Trainer
        >>> class Model(LightningModule):
        ...     def on_train_start(self):
        ...         print("begins")
        >>> hooks = Hooks(Trainer(logger=False), Model())
        >>> hooks.call("on_train_start"), hooks.of("on_fit_end")
        begins
        (None, [])
    """

    def __init__(self, trainer: Any, module: Any) -> None:
        self.trainer = trainer
        self.module = module

    def of_callbacks(self, name: str, callbacks: Iterable[Any] | None = None) -> list[Callable[..., Any]]:
        """Those of the callbacks, to be called with what the module's hook would be called with."""
        return [
            self._during(name, functools.partial(hook, self.trainer, self.module))
            for callback in (self.trainer.callbacks if callbacks is None else callbacks)
            if (hook := _hook(name, callback)) is not None
        ]

    def of_module(self, name: str) -> list[Callable[..., Any]]:
        """The module's, if it has one."""
        hook = _hook(name, self.module)
        return [self._during(name, hook)] if hook is not None else []

    def of(self, name: str) -> list[Callable[..., Any]]:
        """All of them."""
        return [*self.of_callbacks(name), *self.of_module(name)]

    def call(self, name: str, *args: Any) -> Any:
        """Call all of them; returns what the module's returned."""
        result = None
        for hook in self.of(name):
            result = hook(*args)
        return result

    def _during(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook, which the results know the name of while it is called: where ``self.log`` is called matters."""
        trainer = self.trainer

        def named(*args: Any) -> Any:
            results = trainer.results
            before, results.hook = results.hook, name
            try:
                return hook(*args)
            finally:
                results.hook = before

        return named


def _hook(name: str, owner: Any) -> Callable[..., Any] | None:
    """What a module or callback has for a moment, under its name of today or of 2020."""
    if is_overridden(name, owner):
        hook: Callable[..., Any] = getattr(owner, name)
        return hook
    return former_hook(name, owner)
