"""Averages of a module's weights over training, which validation and the end of training use in their place.

Called at setup, on_train_batch_end, on_train_epoch_end and on_train_end; around validation it exchanges the weights; in
checkpoints the averages are the ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from camshaft.contrib.lightning.callbacks.callback import Callback
from camshaft.contrib.lightning.hooks import is_overridden
from camshaft.contrib.lightning.strategies import FSDPStrategy
from camshaft.contrib.lightning.trainer.states import TrainerFn
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from camshaft.contrib.lightning.module import LightningModule
    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["EMAWeightAveraging", "WeightAveraging"]


class WeightAveraging(Callback):
    """Keeps an average of the weights in a ``torch.optim.swa_utils.AveragedModel``; by default their plain mean.

    Validation sees the averages, and so does the module once training has ended. A subclass says when the average takes
    the weights in by overriding :meth:`should_update`; by default after each optimizer step.

    Args:
        device: where the averages are kept; by default where the module is.
        use_buffers: average the buffers, too, such as the statistics of batch normalisation.
        kwargs: of ``AveragedModel``, such as ``avg_fn``.

    Raises:
        MisconfigurationException: when ``fit`` starts, if the model is sharded.

    Example:
        >>> class FromStep100(WeightAveraging):
        ...     def should_update(self, step_idx=None, epoch_idx=None):
        ...         return step_idx is not None and step_idx >= 100
        >>> FromStep100().should_update(step_idx=99)
        False
    """

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        self._device = torch.device(device) if isinstance(device, str) else device
        self._use_buffers = use_buffers
        self._kwargs = kwargs
        self._average_model: AveragedModel | None = None
        self._latest_update_step = 0
        self._latest_update_epoch = -1
        self._swapped = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the average takes the weights in now.

        Args:
            step_idx: the number of the optimizer step that was made, from 0; None at the end of an epoch.
            epoch_idx: the number of the epoch that has ended; None after a step.
        """
        return step_idx is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != TrainerFn.FITTING:
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            raise MisconfigurationException(f"{type(self).__name__} cannot average a model that is sharded.")
        if is_overridden("configure_model", pl_module):
            pl_module.configure_model()  # so that the average has all layers
        device = trainer.strategy.root_device if self._device is None else self._device
        self._average_model = AveragedModel(pl_module, device=device, use_buffers=self._use_buffers, **self._kwargs)
        self._swapped = False
        self._latest_update_step, self._latest_update_epoch = 0, -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = trainer.global_step
        if steps > self._latest_update_step and self.should_update(step_idx=steps - 1):
            self._average.update_parameters(pl_module)
            self._latest_update_step = steps

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if epoch > self._latest_update_epoch and self.should_update(epoch_idx=epoch):
            self._average.update_parameters(pl_module)
            self._latest_update_epoch = epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for average, current in self._pairs(pl_module):
            current.copy_(average)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average_model is not None and trainer.state.fn == TrainerFn.FITTING:
            self._swap_models(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            self._swap_models(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._swapped:
            self._swap_models(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._latest_update_step, "latest_update_epoch": self._latest_update_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_update_step = state_dict["latest_update_step"]
        self._latest_update_epoch = state_dict.get("latest_update_epoch", -1)  # Lightning does not keep it

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is None:
            rank_zero_info(f"{type(self).__name__} has no averages outside of fit: the checkpoint has the weights.")
            return
        own = checkpoint["state_dict"]
        averages = self._average_model.state_dict()
        checkpoint["current_model_state"] = own
        checkpoint["state_dict"] = {
            name.removeprefix("module."): value for name, value in averages.items() if name.startswith("module.")
        }
        checkpoint["averaging_state"] = {
            name: value for name, value in averages.items() if not name.startswith("module.")
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is None:
            return  # outside of fit the averages, which are the checkpoint's weights, are all that is needed
        weights = checkpoint["state_dict"]
        if "current_model_state" in checkpoint and "averaging_state" in checkpoint:
            averages = {"module." + name: value for name, value in weights.items()}
            self._average_model.load_state_dict({**averages, **checkpoint["averaging_state"]})
            # For whoever loads the weights after this, and where they were loaded before it.
            checkpoint["state_dict"] = checkpoint["current_model_state"]
            pl_module.load_state_dict(checkpoint["state_dict"])
        else:
            rank_zero_warn(
                f"The checkpoint was saved without {type(self).__name__}: its averages start from the weights in it."
            )
            self._average_model.module.load_state_dict(weights, strict=False)

    @property
    def _average(self) -> AveragedModel:
        assert self._average_model is not None  # setup has made it
        return self._average_model

    def _pairs(self, pl_module: LightningModule) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each parameter and buffer: of the average, and of the module."""
        average = self._average.module
        of_average, of_module = (
            (tensor.detach() for tensor in chain(module.parameters(), module.buffers()))
            for module in (average, pl_module)
        )
        return zip(of_average, of_module, strict=True)

    def _swap_models(self, pl_module: LightningModule) -> None:
        for average, current in self._pairs(pl_module):
            kept = average.clone()
            average.copy_(current)
            current.copy_(kept)
        self._swapped = not self._swapped


class EMAWeightAveraging(WeightAveraging):
    """Keeps an exponential moving average of the weights.

    Args:
        device: where the averages are kept; by default where the module is.
        use_buffers: average the buffers, too.
        decay: of the average at each update; it reaches back ``1 / (1 - decay)`` updates.
        update_every_n_steps: how many optimizer steps lie between updates.
        update_starting_at_step: the first step after which there is one.
        update_starting_at_epoch: the first epoch at whose end there is one, besides those after steps.
        kwargs: of ``AveragedModel``.

    Example:
        >>> averaging = EMAWeightAveraging(decay=0.99, update_every_n_steps=10, update_starting_at_step=100)
        >>> [step for step in range(130) if averaging.should_update(step_idx=step)]
        [100, 110, 120]
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(device, use_buffers, **kwargs, avg_fn=get_ema_avg_fn(decay))
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None:
            first, every = self.update_starting_at_step or 0, self.update_every_n_steps
            return step_idx >= first and every > 0 and step_idx % every == 0
        first_epoch = self.update_starting_at_epoch
        return epoch_idx is not None and first_epoch is not None and epoch_idx >= first_epoch
