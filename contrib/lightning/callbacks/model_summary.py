"""Shows what the model consists of when a fit begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.model_summary import ModelSummary as Summary
from camshaft.contrib.lightning.model_summary import as_table, summarize
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["ModelSummary"]


class ModelSummary(Callback):
    """Logs a table of the layers when a fit begins; a subclass may show it in another way.

    Args:
        max_depth: how deep layers are within others; -1 for all of them, 0 for no table.
        summarize_kwargs: passed on to :meth:`summarize`.

    Raises:
        ValueError: ``max_depth`` is less than -1.

    Example:
        >>> ModelSummary(max_depth=2).state_key
        'ModelSummary'
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        if max_depth < -1:
            raise ValueError(f"ModelSummary's max_depth is -1 for all layers, 0 or more, but got {max_depth!r}.")
        self._max_depth = max_depth
        self._summarize_kwargs = summarize_kwargs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._max_depth == 0:
            return
        summary = self._summary(trainer, pl_module)
        if trainer.is_global_zero:
            self.summarize(
                summary._get_summary_data(),
                summary.total_parameters,
                summary.trainable_parameters,
                summary.model_size,
                summary.total_training_modes,
                total_flops=summary.total_flops,
                **self._summarize_kwargs,
            )

    def _summary(self, trainer: Trainer, pl_module: LightningModule) -> Summary:
        return summarize(pl_module, max_depth=self._max_depth)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Show a summary.

        Args:
            summary_data: the columns of the table, each with its title.
            total_parameters: numbers of all parameters.
            trainable_parameters: how many of these are trained.
            model_size: megabytes.
            total_training_modes: layers in training and in evaluation mode.
            total_flops: operations of one call.
            summarize_kwargs: those of the callback.
        """
        table = as_table(
            summary_data, total_parameters, trainable_parameters, model_size, total_training_modes, total_flops
        )
        rank_zero_info("\n" + table)
