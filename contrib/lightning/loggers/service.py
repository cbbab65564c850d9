"""What the loggers of services elsewhere have in common: what fails there is told once, and the training goes on."""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from camshaft.contrib.lightning.loggers.checkpoints import Checkpoint, new_checkpoints
from camshaft.contrib.lightning.loggers.logger import DummyExperiment, Logger
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only
from camshaft.contrib.loggers.client import client

__all__ = ["ServiceLogger", "client"]

_REST_AFTER_FAILURE = 60.0  # seconds in which nothing is sent, because a client may try for long before it gives up


class ServiceLogger(Logger):
    """A logger whose numbers go to a service; a subclass says in ``_start`` how a run begins there.

    When the service cannot be reached, there is one warning, and nothing is sent for a minute at a time; at the end it
    is said how much is missing. When no run can be begun, ``experiment`` takes every call and does nothing.

    Args:
        log_model: ``"all"`` to upload checkpoints when they are saved, True when the run is over, or False.

    Raises:
        ValueError: ``log_model`` is something else.
    """

    def __init__(self, log_model: Any = False) -> None:
        if log_model not in {True, False, "all"}:
            raise ValueError(f"{type(self).__name__}'s log_model is True, False or 'all', but got {log_model!r}.")
        self._log_model = log_model
        self._experiment: Any = None
        self._rest_until = 0.0
        self._failures = 0
        self._checkpoint_callbacks: dict[int, Any] = {}
        self._uploaded: dict[str, float] = {}

    @abstractmethod
    def _start(self) -> Any:
        """Begin a run and return what it is recorded with."""

    def _upload(self, experiment: Any, checkpoint: Checkpoint, about: dict[str, Any]) -> None:
        """Send a checkpoint; ``about`` describes it."""

    def _begun(self) -> Any:
        """What ``_start`` gave, or something that does nothing where that failed."""
        if self._experiment is None:
            try:
                self._experiment = self._start()
            except (TypeError, ValueError):  # arguments that are wrong are the program's, not the service's
                raise
            except Exception as error:  # noqa: BLE001 - clients do not say what they raise
                self._experiment = DummyExperiment()
                warnings.warn(
                    f"{type(self).__name__} could not begin a run, so nothing of this one is recorded there: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=3,
                )
        return self._experiment

    def _send(self, call: Callable[[Any], object]) -> None:
        """Call the client, unless that has failed just now."""
        experiment = self._begun()
        if time.monotonic() < self._rest_until:
            self._failures += 1
            return
        try:
            call(experiment)
        except Exception as error:  # noqa: BLE001 - clients do not say what they raise
            self._rest_until = time.monotonic() + _REST_AFTER_FAILURE
            self._failures += 1
            if self._failures == 1:
                warnings.warn(
                    f"{type(self).__name__} could not send a record, and the training goes on without: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=4,
                )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is None:
            return  # nothing was recorded in this process
        if status == "success":
            for callback in self._checkpoint_callbacks.values():
                self._upload_new(callback)
        self._finish(status)
        if self._failures:
            warnings.warn(f"{type(self).__name__} could not send {self._failures} records.", stacklevel=2)
            self._failures = 0

    def _finish(self, status: str) -> None:
        """Tell the service how the run has ended."""

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        if self._log_model == "all" or (self._log_model and checkpoint_callback.save_top_k == -1):
            self._upload_new(checkpoint_callback)
        elif self._log_model:
            self._checkpoint_callbacks[id(checkpoint_callback)] = checkpoint_callback

    def _upload_new(self, callback: Any) -> None:
        for checkpoint in new_checkpoints(callback, self._uploaded):
            about = {
                "score": checkpoint.score,
                "original_filename": checkpoint.path.name,
                type(callback).__name__: {
                    name: getattr(callback, name)
                    for name in ("monitor", "mode", "save_last", "save_top_k", "save_weights_only")
                    if hasattr(callback, name)
                },
            }
            self._send(partial(self._upload, checkpoint=checkpoint, about=about))
            self._uploaded[str(checkpoint.path)] = checkpoint.saved_at
