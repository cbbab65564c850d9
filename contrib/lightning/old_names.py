"""What a Trainer was asked for in 2020, by the names of then."""

from __future__ import annotations

from typing import Any

__all__ = ["FormerNames"]


class FormerNames:
    """Properties of a Trainer that have another name today.

    Example:
        >>> from camshaft.contrib.lightning import Trainer
        >>> trainer = Trainer(accelerator="cpu", max_epochs=3, logger=False)
        >>> trainer.proc_rank, trainer.on_gpu, trainer.get_model()
        (0, False, None)
    """

    def get_model(self: Any) -> Any:
        """``lightning_module``."""
        return self.lightning_module

    @property
    def proc_rank(self: Any) -> int:
        """``global_rank``."""
        return int(self.global_rank)

    @property
    def on_gpu(self: Any) -> bool:
        """Whether it computes on a GPU."""
        return bool(self.strategy.root_device.type == "cuda")

    @property
    def on_tpu(self: Any) -> bool:
        """Whether it computes on a TPU."""
        return bool(self.strategy.root_device.type == "xla")

    @property
    def num_gpus(self: Any) -> int:
        """How many GPUs of this machine are used."""
        return len(self.strategy.device_ids) if self.on_gpu else 0

    @property
    def root_gpu(self: Any) -> int | None:
        """The number of this process's GPU."""
        return int(self.strategy.root_device.index) if self.on_gpu else None

    @property
    def use_ddp(self: Any) -> bool:
        """Whether several processes exchange gradients."""
        return bool(self.strategy.strategy_name == "ddp")

    @property
    def use_amp(self: Any) -> bool:
        """Whether it computes in mixed precision."""
        return bool(self.precision_settings.amp is not None)

    @property
    def early_stop_callback(self: Any) -> Any:
        """``early_stopping_callback``."""
        return self.early_stopping_callback

    @property
    def progress_bar_dict(self: Any) -> dict[str, float]:
        """``progress_bar_metrics``."""
        return dict(self.progress_bar_metrics)

    @property
    def row_log_interval(self: Any) -> int:
        """``log_every_n_steps``."""
        return int(self.log_every_n_steps)

    @property
    def default_save_path(self: Any) -> Any:
        """``default_root_dir``."""
        return self._default_root_dir
