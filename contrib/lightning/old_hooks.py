"""Hooks of Lightning's releases of 2020 whose names or arguments were others: they are called as they were written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn

__all__ = [
    "backward_with",
    "called_as_then",
    "former_hook",
    "makes_step_after_backward",
    "step_with",
    "tell_of_trainer",
    "warn_of_uncalled",
    "zero_grad_with",
]

# Under which names today's moments were known, in modules and callbacks alike.
_FORMER = {
    "on_train_epoch_start": "on_epoch_start",
    "on_train_epoch_end": "on_epoch_end",
    "on_train_batch_start": "on_batch_start",
    "on_train_batch_end": "on_batch_end",
    "on_validation_start": "on_pre_performance_check",
    "on_validation_end": "on_post_performance_check",
    "on_test_start": "on_pre_performance_check",
    "on_test_end": "on_post_performance_check",
}

# Methods of releases up to 1.9 that nothing calls, and what does their work.
_UNCALLED = {
    "configure_apex": "precision=16 is torch's own",
    "configure_ddp": "pass a DDPStrategy with its options to the Trainer",
    "configure_sync_batchnorm": "use Trainer(sync_batchnorm=True)",
    "get_progress_bar_dict": "override get_metrics() of a TQDMProgressBar",
    "get_tqdm_dict": "override get_metrics() of a TQDMProgressBar",
    "init_ddp_connection": "a launcher's variables are read, see docs/distributed.md",
    "on_before_accelerator_backend_setup": "use setup()",
    "on_configure_sharded_model": "use configure_model() of the module",
    "on_hpc_load": "use on_load_checkpoint()",
    "on_hpc_save": "use on_save_checkpoint()",
    "on_keyboard_interrupt": "use on_exception()",
    "on_predict_dataloader": "override predict_dataloader()",
    "on_pretrain_routine_end": "use on_fit_start()",
    "on_pretrain_routine_start": "use on_fit_start()",
    "on_test_dataloader": "override test_dataloader()",
    "on_train_dataloader": "override train_dataloader()",
    "on_val_dataloader": "override val_dataloader()",
    "tbptt_split_batch": "split the batch in training_step, with self.automatic_optimization = False",
    "tng_dataloader": "name it train_dataloader()",
}


def tell_of_trainer(trainer: Any, callbacks: Iterable[Any]) -> None:
    """Call ``on_init_start`` and ``on_init_end`` of callbacks: a Trainer has been made."""
    for name in ("on_init_start", "on_init_end"):
        for callback in callbacks:
            if callable(getattr(callback, name, None)):
                getattr(callback, name)(trainer)


def warn_of_uncalled(module: Any, callbacks: Iterable[Any]) -> None:
    """Tell of methods that were called in releases up to 1.9 and are not any more."""
    for owner in (module, *callbacks):
        for name, instead in _UNCALLED.items():
            if callable(getattr(owner, name, None)):
                rank_zero_warn(f"{type(owner).__name__}.{name}() is not called any more: {instead}.")


def former_hook(name: str, owner: Any) -> Callable[..., Any] | None:
    """The hook that a module or a callback has for a moment under its name of 2020.

    Args:
        name: of today.
        owner: a module or a callback.

    Example:
        >>> class Model:
        ...     def on_batch_start(self, batch):
        ...         return -1
        >>> former_hook("on_train_batch_start", Model())("batch", 0)
        -1
    """
    former = _FORMER.get(name)
    hook = getattr(owner, former, None) if former is not None else None
    return called_as_then(hook) if callable(hook) else None


def called_as_then(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that is given only as many arguments as it takes.

    Example:
        >>> called_as_then(lambda trainer, module: (trainer, module))("trainer", "module", "batch", 0)
        ('trainer', 'module')
    """
    most = _most_arguments(hook)
    return hook if most is None else lambda *arguments: hook(*arguments[:most])


def makes_step_after_backward(optimizer_step: Callable[..., Any]) -> bool:
    """Whether an ``optimizer_step`` is of 2020: called after backward, and told the optimizer's index.

    Example:
        >>> makes_step_after_backward(lambda epoch, batch_idx, optimizer, optimizer_idx, closure=None: None)
        True
        >>> makes_step_after_backward(lambda epoch, batch_idx, optimizer, optimizer_closure=None: None)
        False
    """
    names = _positional(optimizer_step)
    return "optimizer_idx" in names or (len(names) > 3 and "closure" not in names[3])


def step_with(optimizer_step: Callable[..., Any], index: int) -> Callable[..., Any]:
    """An ``optimizer_step`` of 2020, to be called with today's arguments.

    Args:
        optimizer_step: takes ``(epoch, batch_idx, optimizer, optimizer_idx, closure)``, later also ``on_tpu``,
            ``using_native_amp`` and ``using_lbfgs``, which are False.
        index: of the optimizer.
    """

    def call(epoch: int, batch_idx: int, optimizer: Any, closure: Callable[[], Any]) -> Any:
        most = _most_arguments(optimizer_step)
        arguments = (epoch, batch_idx, optimizer, index, closure, False, False, False)
        return optimizer_step(*arguments[:most])

    return call


def zero_grad_with(zero_grad: Callable[..., Any], index: int) -> Callable[..., Any]:
    """An ``optimizer_zero_grad`` that may take ``optimizer_idx``, to be called with today's arguments."""
    if len(_positional(zero_grad)) < 4:
        return zero_grad
    return lambda epoch, batch_idx, optimizer: zero_grad(epoch, batch_idx, optimizer, index)


def backward_with(backward: Callable[..., Any], trainer: Any, optimizer: Any, index: int) -> Callable[[Any], Any]:
    """A module's ``backward``, to be called with the loss alone.

    Args:
        backward: takes ``(loss)``, or as in 2020 ``(trainer, loss, optimizer, optimizer_idx)``, ``(use_amp, loss,
            optimizer)`` or ``(loss, optimizer, optimizer_idx)``.
        trainer: that trains.
        optimizer: whose step comes next.
        index: of the optimizer.

    Example:
        >>> backward_with(lambda trainer, loss, optimizer, optimizer_idx: loss, None, None, 0)("loss")
        'loss'
    """
    known = {"trainer": trainer, "use_amp": False, "optimizer": optimizer, "optimizer_idx": index}
    names = _positional(backward)
    if not any(name in known for name in names):
        return backward
    return lambda loss: backward(*(known.get(name, loss) for name in names))


def _most_arguments(function: Callable[..., Any]) -> int | None:
    """How many positional arguments a function takes at most; None if there is no limit."""
    parameters = inspect.signature(function).parameters.values()
    return None if any(one.kind is one.VAR_POSITIONAL for one in parameters) else len(_positional(function))


def _positional(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that can be given by position."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
