"""What was logged in a Trainer's runs: for callbacks, for loggers, and for the progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camshaft.contrib.lightning.results import Metrics, Results, as_numbers
from camshaft.contrib.lightning.views import TrainerViews

__all__ = ["TrainerMetrics"]


class TrainerMetrics(TrainerViews):
    """The part of a Trainer that keeps logged values and hands them to loggers."""

    results: Results
    enable_autolog_hparams: bool
    _callback_metrics: dict[str, Any]
    _logged_metrics: dict[str, Any]
    _progress_bar_metrics: dict[str, Any]

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """What was logged, by name, as tensors: the newest values of steps, and the means of epochs that are over."""
        self.take_metrics(self.results.metrics())
        return self._callback_metrics

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """What was logged for loggers, by name, as tensors."""
        self.take_metrics(self.results.metrics())
        return self._logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What a progress bar shows, as numbers."""
        self.take_metrics(self.results.metrics())
        return as_numbers(self._progress_bar_metrics)

    def take_metrics(self, metrics: Metrics) -> None:
        """Keep values for those who read them later."""
        self._callback_metrics.update(metrics.callback)
        self._logged_metrics.update(metrics.logged)
        self._progress_bar_metrics.update(metrics.progress_bar)

    def _forget_metrics(self) -> None:
        for metrics in (self._callback_metrics, self._logged_metrics, self._progress_bar_metrics):
            metrics.clear()

    def take_metric_values(self, values: Mapping[str, Any]) -> None:
        """Take back what a checkpoint kept of :attr:`callback_metrics`."""
        self._callback_metrics.update(values)

    def log_to_loggers(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Give values to all loggers.

        Args:
            values: by name; one that is called ``step`` is the step that they belong to.
            step: that they belong to; otherwise it is that of the training, and the epoch is among the values.
        """
        if not self.loggers or not self.is_global_zero or not values:
            return
        numbers = as_numbers(values)
        if step is None and "step" in numbers:
            step = int(numbers.pop("step"))
        elif step is None:
            numbers.setdefault("epoch", self.current_epoch)
            step = self.training_loop.logging_step if self.training_loop is not None else 0
        for logger in self.loggers:
            logger.log_metrics(metrics=dict(numbers), step=step)
            logger.save()

    def _log_hyperparameters(self, module: Any) -> None:
        if not self.enable_autolog_hparams or not self.loggers:
            return
        values: dict[str, Any] = {}
        for owner in (self.datamodule, module):
            if owner is not None and getattr(owner, "_log_hyperparams", False):
                values.update(dict(owner.hparams_initial))
        for logger in self.loggers:
            if values:
                logger.log_hyperparams(values)
            logger.log_graph(module)
            logger.save()
