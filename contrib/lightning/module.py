"""The research: a module that says what one batch does, and what else is its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from camshaft.contrib.lightning.data_hooks import DataHooks
from camshaft.contrib.lightning.hyperparameters import HyperparametersMixin, load_module
from camshaft.engine.distributed import world_size
from camshaft.handlers.device import moved

if TYPE_CHECKING:
    from typing_extensions import Self

    from camshaft.contrib.lightning.trainer import Trainer

__all__ = ["LightningModule"]


class LightningModule(DataHooks, HyperparametersMixin, nn.Module):
    """A module with its losses, optimizers and, if it likes, data; a :class:`Trainer` does the rest.

    A subclass overrides ``training_step`` and ``configure_optimizers``, and any of the other methods below; those that
    it does not override are never called. Public programs for Lightning 2.x, and for its releases of early 2020, run
    with their imports changed.

    Example:
        >>> from camshaft.contrib.lightning import Trainer
        >>> class Model(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(2, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         loss = self.layer(batch).square().mean()
        ...         self.log("train_loss", loss)
        ...         return loss
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> trainer = Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> trainer.fit(Model(), [torch.ones(4, 2)] * 3)
        >>> trainer.global_step, sorted(trainer.callback_metrics)
        (6, ['train_loss'])
    """

    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "hparams_type"

    _trainer: Trainer | None = None
    _results: Any = None  # what self.log() writes to while a Trainer runs the module
    _automatic_optimization = True
    _strict_loading: bool | None = None
    _example_input_array: Any = None
    allow_zero_length_dataloader_with_multiple_devices = False

    # -------------------------------------------------------------------------------------------- what it is part of

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this module.

        Raises:
            RuntimeError: none does.
        """
        if self._trainer is None:
            raise RuntimeError(f"{type(self).__name__} is not attached to a Trainer: call trainer.fit(module) first.")
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        for module in self.modules():
            if isinstance(module, LightningModule):
                module.__dict__["_trainer"] = trainer

    @property
    def current_epoch(self) -> int:
        """The epochs completed, 0 without a trainer."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """The optimizer steps made, 0 without a trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """The number of this process among all."""
        return self._trainer.global_rank if self._trainer is not None else 0

    @property
    def local_rank(self) -> int:
        """The number of this process on its machine."""
        return self._trainer.local_rank if self._trainer is not None else 0

    @property
    def logger(self) -> Any:
        """The trainer's first logger, or None."""
        return self._trainer.logger if self._trainer is not None else None

    @property
    def loggers(self) -> list[Any]:
        """All loggers of the trainer."""
        return self._trainer.loggers if self._trainer is not None else []

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return self._trainer.strategy.root_device if self._trainer is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
        return torch.get_default_dtype()

    @property
    def on_gpu(self) -> bool:
        """Whether its parameters are on a CUDA device."""
        return self.device.type == "cuda"

    @property
    def automatic_optimization(self) -> bool:
        """Whether the loss that ``training_step`` returns is minimised; set it to False to do that by hand."""
        return self._automatic_optimization

    @automatic_optimization.setter
    def automatic_optimization(self, automatic: bool) -> None:
        self._automatic_optimization = automatic

    @property
    def strict_loading(self) -> bool:
        """Whether loading a checkpoint needs all weights to be in it, and no others."""
        return self._strict_loading is None or self._strict_loading

    @strict_loading.setter
    def strict_loading(self, strict: bool) -> None:
        self._strict_loading = strict

    @property
    def example_input_array(self) -> Any:
        """An input of ``forward``, for summaries and graphs."""
        return self._example_input_array

    @example_input_array.setter
    def example_input_array(self, example: Any) -> None:
        self._example_input_array = example

    # ------------------------------------------------------------------------------------------------ the research

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """What one batch does: ``training_step(batch, batch_idx)`` returns the loss, a mapping with it, or None."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot be trained: it has no training_step(batch, batch_idx)."
        )

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """What one batch of validation does: ``validation_step(batch, batch_idx, dataloader_idx=0)``."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """What one batch of a test does: ``test_step(batch, batch_idx, dataloader_idx=0)``."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """What is predicted for one batch: by default ``forward(batch)``."""
        return self(args[0] if args else kwargs["batch"])

    def configure_optimizers(self) -> Any:
        """An optimizer, several, mappings of ``"optimizer"`` and ``"lr_scheduler"``, two lists of them, or None."""
        raise NotImplementedError(f"{type(self).__name__} cannot be trained: it has no configure_optimizers().")

    def configure_callbacks(self) -> Any:
        """Callbacks to add to the trainer's; one of a class that is there takes its place."""
        return []

    def configure_model(self) -> None:
        """Make large layers once the trainer is known; called for each of its functions."""

    # ------------------------------------------------------------------------------------------------ moments of a run

    def on_fit_start(self) -> None:
        """At the beginning of ``fit``, when all is set up."""

    def on_fit_end(self) -> None:
        """At its end."""

    def on_train_start(self) -> None:
        """Before the first epoch, after the check of the validation."""

    def on_train_end(self) -> None:
        """After the last epoch."""

    def on_train_epoch_start(self) -> None:
        """Before an epoch."""

    def on_train_epoch_end(self) -> None:
        """After an epoch and its validation."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Before a step; returning -1 skips the rest of the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a step; ``outputs`` is what it returned, as a mapping with ``"loss"``."""

    def on_validation_start(self) -> None:
        """Before a validation."""

    def on_validation_end(self) -> None:
        """After it."""

    def on_validation_epoch_start(self) -> None:
        """Before its first batch."""

    def on_validation_epoch_end(self) -> None:
        """After its last batch: the place to log what it came to."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before one of its steps."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After one of its steps."""

    def on_validation_model_zero_grad(self) -> None:
        """Before a validation within a fit, to free the memory of gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def on_validation_model_eval(self) -> None:
        """Puts the module into evaluation mode."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """Puts it back; where it is not overridden, each part gets the mode that it had."""
        self.train()

    def on_test_start(self) -> None:
        """Before a test."""

    def on_test_end(self) -> None:
        """After it."""

    def on_test_epoch_start(self) -> None:
        """Before its first batch."""

    def on_test_epoch_end(self) -> None:
        """After its last batch."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before one of its steps."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After one of its steps."""

    def on_test_model_eval(self) -> None:
        """Puts the module into evaluation mode."""
        self.eval()

    def on_test_model_train(self) -> None:
        """Puts it back."""
        self.train()

    def on_predict_start(self) -> None:
        """Before a prediction."""

    def on_predict_end(self) -> None:
        """After it."""

    def on_predict_epoch_start(self) -> None:
        """Before its first batch."""

    def on_predict_epoch_end(self) -> None:
        """After its last batch."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before one of its steps."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """After one of its steps."""

    def on_predict_model_eval(self) -> None:
        """Puts the module into evaluation mode."""
        self.eval()

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Before gradients are dropped."""

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Before backward."""

    def on_after_backward(self) -> None:
        """After backward."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Before gradients are clipped and the optimizer makes its step."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds to a checkpoint."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes from a checkpoint what was added to it."""

    # ------------------------------------------------------------------------------------------------ optimization

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass, to be overridden where ``loss.backward()`` is not what is wanted."""
        loss.backward(*args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
        *of_2020: Any,
    ) -> None:
        """Makes the optimizer's step; an override must call ``optimizer.step(closure=optimizer_closure)``.

        An override of the style of 2020, ``(epoch, batch_idx, optimizer, optimizer_idx, closure)``, is called after
        backward, and may pass these five on.
        """
        optimizer.step(closure=of_2020[0] if of_2020 else optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Drops the gradients of the step before."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps a scheduler; ``metric`` is None where it monitors nothing."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients of one optimizer; an override may call :meth:`clip_gradients`."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of one optimizer.

        Args:
            optimizer: whose parameters' gradients.
            gradient_clip_val: the largest norm or value; by default the trainer's.
            gradient_clip_algorithm: ``"norm"`` (the default) or ``"value"``.

        Raises:
            ValueError: another algorithm.
        """
        value = self.trainer.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        algorithm = gradient_clip_algorithm or self.trainer.gradient_clip_algorithm or "norm"
        if not value:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if str(algorithm) == "norm":
            torch.nn.utils.clip_grad_norm_(parameters, value)
        elif str(algorithm) == "value":
            torch.nn.utils.clip_grad_value_(parameters, value)
        else:
            raise ValueError(f"gradient_clip_algorithm is 'norm' or 'value', not {algorithm!r}.")

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward, where ``automatic_optimization`` is False: with the scaling that 16-bit precision needs."""
        self.trainer.manual_optimization.backward(loss, *args, **kwargs)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizer, or the list of them: each with ``step``, ``zero_grad`` and ``toggle_model``.

        Args:
            use_pl_optimizer: False for torch's own objects.
        """
        optimizers = self.trainer.lightning_optimizers if use_pl_optimizer else self.trainer.optimizers
        return optimizers[0] if len(optimizers) == 1 else list(optimizers)

    def lr_schedulers(self) -> Any:
        """The scheduler, the list of them, or None."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if not schedulers:
            return None
        return schedulers[0] if len(schedulers) == 1 else schedulers

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Let only the parameters of one optimizer require gradients, until :meth:`untoggle_optimizer`."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        states: dict[Any, bool] = {}
        for other in self.trainer.optimizers:
            for group in other.param_groups:
                for parameter in group["params"]:
                    states.setdefault(parameter, parameter.requires_grad)
                    parameter.requires_grad = states[parameter] and id(parameter) in own
        self.__dict__["_requires_grad_before_toggle"] = states

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Give back what :meth:`toggle_optimizer` has switched off."""
        for parameter, required in self.__dict__.pop("_requires_grad_before_toggle", {}).items():
            parameter.requires_grad = required

    @contextlib.contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Iterator[None]:
        """Within this context only the parameters of one optimizer require gradients."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    # ------------------------------------------------------------------------------------------------ logging

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log a number: for loggers, progress bar, callbacks that monitor it, and schedules.

        Nothing is fetched from the device before it is read.

        Args:
            name: of the number.
            value: a number, a tensor of one element, or a metric of torchmetrics.
            prog_bar: show it in the progress bar.
            logger: give it to the loggers; True by default.
            on_step: the value of each step; the default where steps are trained.
            on_epoch: its mean over the epoch; the default elsewhere. With both it has two names, ``name_step`` and
                ``name_epoch``.
            reduce_fx: ``"mean"`` (weighted by the batch size), ``"sum"``, ``"min"``, ``"max"``, or a function of all
                values.
            enable_graph: keep the autograd graph.
            sync_dist: reduce over all processes, too.
            sync_dist_group: not supported: all processes take part.
            add_dataloader_idx: where there are several loaders, append ``/dataloader_idx_N``.
            batch_size: the weight of this value; the first dimension of the batch's tensors by default.
            metric_attribute: accepted; metrics need no name here.
            rank_zero_only: log on the first process alone.

        Raises:
            ValueError: no number; called where nothing can be logged, or twice with other arguments.
        """
        results = self._results
        if results is None:
            if self._trainer is None:
                return  # used without a trainer, as in a unit test of a step
            results = self._trainer.results
        if sync_dist_group is not None:
            raise ValueError("self.log(sync_dist_group=...) is not supported: values are reduced over all processes.")
        if rank_zero_only and self._trainer is not None and self._trainer.global_rank != 0:
            return
        results.add(
            name,
            value,
            (prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, add_dataloader_idx),
            batch_size,
        )

    def log_dict(self, dictionary: Mapping[str, Any], prog_bar: bool = False, **how: Any) -> None:
        """Log several numbers alike.

        Args:
            dictionary: the numbers by name, or a ``MetricCollection`` of torchmetrics.
            prog_bar: show them in the progress bar.
            how: :meth:`log`'s other arguments.
        """
        metrics: Any = dictionary
        for name, value in metrics.items(keep_base=False) if hasattr(metrics, "keep_base") else metrics.items():
            self.log(name, value, prog_bar, **how)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process alone, without breaking a progress bar."""
        self.trainer.print(*args, **kwargs)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """The tensors of all processes, stacked along a new first dimension; as they are on one process.

        Args:
            data: a tensor, or a nested container of them.
            group: not supported.
            sync_grads: keep the graph.
        """
        return self.trainer.strategy.all_gather(data, sync_grads=sync_grads) if world_size() > 1 else data

    # ------------------------------------------------------------------------------------------------ deployment

    def freeze(self) -> None:
        """No parameter requires a gradient, and the module is in evaluation mode: ready to predict."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        self.eval()

    def unfreeze(self) -> None:
        """Every parameter requires a gradient, and the module is in training mode."""
        for parameter in self.parameters():
            parameter.requires_grad = True
        self.train()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A module with the hyperparameters and weights of a checkpoint, ours or Lightning's.

        Args:
            checkpoint_path: the file.
            map_location: where to load it to; the CPU by default.
            hparams_file: a YAML or CSV file of hyperparameters, for a checkpoint without.
            strict: whether all weights must be in the checkpoint, and no others; True by default.
            weights_only: accepted; nothing but tensors and plain values is ever read.
            kwargs: hyperparameters that override those of the checkpoint, or are missing there.

        Raises:
            TypeError: ``__init__`` needs arguments that are neither in the checkpoint nor given.
            RuntimeError: the weights do not fit.
        """
        return load_module(cls, checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs)

    @torch.no_grad()
    def to_onnx(self, file_path: Any = None, input_sample: Any = None, **kwargs: Any) -> Any:
        """Export with ``torch.onnx.export``.

        Args:
            file_path: where to.
            input_sample: an input of ``forward``; by default ``example_input_array``.
            kwargs: for ``torch.onnx.export``.

        Raises:
            ValueError: there is no input.
        """
        sample = self._input_sample(input_sample, "to_onnx(input_sample=...)")
        mode = self.training
        exported = torch.onnx.export(self.eval(), _as_arguments(sample), file_path, **kwargs)
        self.train(mode)
        return exported

    @torch.no_grad()
    def to_torchscript(
        self, file_path: Any = None, method: str | None = "script", example_inputs: Any = None, **kwargs: Any
    ) -> Any:
        """Compile with ``torch.jit``.

        Args:
            file_path: where to save it, if anywhere.
            method: ``"script"`` or ``"trace"``.
            example_inputs: for tracing; by default ``example_input_array``.
            kwargs: for ``torch.jit.script`` or ``torch.jit.trace``.

        Raises:
            ValueError: another method; no input to trace.
        """
        if method not in ("script", "trace"):
            raise ValueError(f"to_torchscript(method=...) is 'script' or 'trace', not {method!r}.")
        mode = self.training
        self.eval()
        sample = self._input_sample(example_inputs, "to_torchscript(example_inputs=...)") if method == "trace" else None
        trainer = self._trainer
        self.__dict__["_trainer"] = trainer or object()  # every property is read, and one would ask for a trainer
        try:
            if method == "script":
                compiled = torch.jit.script(self, **kwargs)
            else:
                compiled = torch.jit.trace(self, _as_arguments(sample), **kwargs)
        finally:
            self.__dict__["_trainer"] = trainer
        self.train(mode)
        if file_path is not None:
            torch.jit.save(compiled, file_path)
        return compiled

    def _input_sample(self, given: Any, where: str) -> Any:
        sample = self.example_input_array if given is None else given
        if sample is None:
            raise ValueError(f"{where} needs an input of forward(): pass it, or set example_input_array.")
        return moved(sample, self.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None, "_results": None}


def _as_arguments(sample: Any) -> tuple[Any, ...]:
    return sample if isinstance(sample, tuple) else (sample,)
