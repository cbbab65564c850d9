"""What a Trainer has without being told: callbacks, a logger; and what its flags for them mean."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from camshaft.handlers.handler import Handler
from camshaft.handlers.logger import Logger as LoggingHandler

__all__ = ["loggers_of", "monitors", "profiler_of", "saves", "show_infos", "silent", "with_defaults"]


def with_defaults(
    callbacks: list[Any],
    *,
    checkpointing: bool | None,
    progress_bar: bool | None,
    summary: bool | None,
    max_time: Any,
    may_save: bool,
) -> list[Any]:
    """The callbacks, and those that a Trainer adds where there is none of their kind; checkpoints come last.

    Args:
        callbacks: of the user.
        checkpointing: whether there is to be a ``ModelCheckpoint``.
        progress_bar: whether there is to be a ``TQDMProgressBar``.
        summary: whether there is to be a ``ModelSummary``.
        max_time: for a ``Timer``, or None.
        may_save: whether this run saves anything at all.

    Raises:
        ValueError: checkpoints are both wanted and not.
    """
    from camshaft.contrib.lightning.callbacks.checkpoint import Checkpoint  # noqa: PLC0415 - they import the Trainer
    from camshaft.contrib.lightning.callbacks.model_checkpoint import ModelCheckpoint  # noqa: PLC0415
    from camshaft.contrib.lightning.callbacks.model_summary import ModelSummary  # noqa: PLC0415
    from camshaft.contrib.lightning.callbacks.progress import ProgressBar, TQDMProgressBar  # noqa: PLC0415
    from camshaft.contrib.lightning.callbacks.timer import Timer  # noqa: PLC0415

    def lacks(kind: type) -> bool:
        return not any(isinstance(callback, kind) for callback in callbacks)

    added: list[Any] = []
    if checkpointing is False and not lacks(Checkpoint) and may_save:
        raise ValueError("Trainer(enable_checkpointing=False) contradicts the ModelCheckpoint among its callbacks.")
    if checkpointing is not False and lacks(Checkpoint) and may_save:
        added.append(ModelCheckpoint())
    if max_time is not None and lacks(Timer):
        added.append(Timer(max_time))
    if progress_bar is not False and lacks(ProgressBar):
        added.append(TQDMProgressBar())
    if summary is not False and lacks(ModelSummary):
        added.append(ModelSummary())
    return sorted([*callbacks, *added], key=saves)


def saves(callback: Any) -> bool:
    """Whether a callback writes checkpoints, so that it comes after those whose work it saves."""
    from camshaft.contrib.lightning.callbacks.checkpoint import Checkpoint  # noqa: PLC0415 - it imports the Trainer

    return isinstance(callback, Checkpoint)


def monitors(callback: Any) -> bool:
    """Whether a callback reads metrics at the end of an epoch, so that it comes after those who write them."""
    from camshaft.contrib.lightning.callbacks.early_stopping import EarlyStopping  # noqa: PLC0415 - as above

    return saves(callback) or isinstance(callback, EarlyStopping)


def loggers_of(logger: Any, directory: Path, *, is_dry: bool = False) -> tuple[list[Any], list[Handler]]:
    """The loggers that ``logger=`` means, and the handlers among them, which are attached to the engine.

    Args:
        logger: one, several, False for none, True or None for TensorBoard's.
        directory: where that writes to.
        is_dry: whether nothing is to be written: loggers that do nothing take their place.

    Example:
        >>> loggers_of(False, Path("runs"))
        ([], [])
    """
    if logger is False:
        return [], []
    if is_dry:
        from camshaft.contrib.lightning.loggers import DummyLogger  # noqa: PLC0415 - rarely needed

        return [DummyLogger()], []
    if logger is True or logger is None:
        from camshaft.contrib.lightning.loggers import TensorBoardLogger  # noqa: PLC0415 - imports a writer

        return [TensorBoardLogger(save_dir=directory)], []
    given = list(logger) if isinstance(logger, (list, tuple)) else [logger]
    handlers: list[Handler] = [one for one in given if isinstance(one, LoggingHandler)]
    return [one for one in given if not isinstance(one, LoggingHandler)], handlers


silent = logging.getLogger("camshaft.contrib.lightning.engine")
silent.setLevel(logging.CRITICAL + 1)
"""The logger of a Trainer's engines; that of other engines is one for all of them."""


def show_infos() -> None:
    """Show what callbacks tell by logging, unless the program has configured logging itself."""
    logger = logging.getLogger("camshaft.contrib.lightning")
    if not logging.getLogger().handlers and not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def profiler_of(profiler: Any) -> Any:
    """The profiler that ``profiler=`` means, or None.

    Raises:
        ValueError: an unknown name.
    """
    if profiler is None or profiler is False:
        return None
    if not isinstance(profiler, (str, bool)):
        return profiler
    from camshaft.contrib.lightning import profilers  # noqa: PLC0415 - only where one is wanted

    names = {
        "simple": profilers.SimpleProfiler,
        "advanced": profilers.AdvancedProfiler,
        "pytorch": profilers.PyTorchProfiler,
    }
    name = "simple" if profiler is True else profiler
    if name not in names:
        raise ValueError(f"Trainer(profiler={profiler!r}): it is {', '.join(map(repr, names))}, or a profiler.")
    return names[name]()
