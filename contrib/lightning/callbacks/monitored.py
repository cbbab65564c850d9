"""What the callbacks that monitor a value share."""

from __future__ import annotations

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.handlers.monitor import Monitor

__all__ = ["mode_of"]


def mode_of(callback: Callback, monitor: str | None, mode: str) -> str:
    """Whether the "min" or the "max" of a value is best.

    Args:
        callback: who asks, to be named in an error.
        monitor: the value's name, from which "auto" concludes.
        mode: "min", "max" or, as in Lightning before 1.0, "auto".

    Raises:
        MisconfigurationException: another mode.

    Example:
        >>> mode_of(Callback(), "val_loss", "min"), mode_of(Callback(), "val_acc", "auto")
        ('min', 'max')
    """
    if mode in ("min", "max"):
        return mode
    if mode == "auto":
        return Monitor(monitor or "", "auto").mode
    raise MisconfigurationException(f"The mode of {type(callback).__name__} is 'min', 'max' or 'auto', not {mode!r}.")
