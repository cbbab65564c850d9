"""The engineering: a Trainer makes engines, attaches what its flags ask for, and tells the module what happens."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from camshaft.contrib.lightning import old_style
from camshaft.contrib.lightning.checkpoint_file import read
from camshaft.contrib.lightning.data import Source
from camshaft.contrib.lightning.defaults import loggers_of, profiler_of, saves, show_infos, with_defaults
from camshaft.contrib.lightning.devices import device_ids, kind_of
from camshaft.contrib.lightning.evaluation import Evaluation
from camshaft.contrib.lightning.flags import check, from_old_flags, seconds_of
from camshaft.contrib.lightning.hooks import Hooks, is_overridden
from camshaft.contrib.lightning.old_hooks import tell_of_trainer, warn_of_uncalled
from camshaft.contrib.lightning.optimization import configured
from camshaft.contrib.lightning.precision import precision_of
from camshaft.contrib.lightning.results import Results, as_table
from camshaft.contrib.lightning.schedules import check_schedulers
from camshaft.contrib.lightning.snapshot import restore_callbacks, restore_module
from camshaft.contrib.lightning.strategies import refuse, strategy_of
from camshaft.contrib.lightning.trainer.checkpoints import TrainerCheckpoints
from camshaft.contrib.lightning.trainer.interruption import Interruption
from camshaft.contrib.lightning.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from camshaft.contrib.lightning.training import Training
from camshaft.contrib.lightning.utilities.seed import isolate_rng
from camshaft.engine.distributed import world_size
from camshaft.engine.engine import Engine
from camshaft.handlers.handler import Handler

if TYPE_CHECKING:  # the command line finds these types here, too
    from camshaft.contrib.lightning.callbacks.callback import Callback
    from camshaft.contrib.lightning.loggers.logger import Logger
    from camshaft.contrib.lightning.profilers.profiler import Profiler
    from camshaft.contrib.lightning.strategies import Strategy
    from camshaft.handlers.logger import Logger as LoggingHandler

__all__ = ["Trainer"]


class Trainer(TrainerCheckpoints):
    """Fits, validates, tests and predicts with a ``LightningModule``.

    Every flag is an engineering concern; what a flag means is what it means in Lightning 2.x, and the flags of early
    2020 (``gpus``, ``distributed_backend``, ``overfit_pct``, …) are understood, too.

    Args:
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"`` or ``"tpu"``.
        strategy: ``"auto"``, ``"ddp"``, ``"fsdp"`` or an object of :mod:`camshaft.contrib.lightning.strategies`.
        devices: how many (an int), which (a list), -1 for all, or ``"auto"``: one process each.
        num_nodes: machines; their processes are started by a launcher.
        precision: ``"32-true"``, ``"16-mixed"``, ``"bf16-mixed"``, ``"16-true"``, ``"bf16-true"``, ``"64-true"``.
        logger: a logger or several, False for none, True or None for TensorBoard's in ``default_root_dir``. A logger of
            ``camshaft.handlers`` is attached to the engine.
        callbacks: a callback or several; handlers of ``camshaft.handlers`` are attached to the engine that trains.
        fast_dev_run: run so many batches (True: one) of everything, without loggers and checkpoints.
        max_epochs: 1000 by default, unless ``max_steps`` or ``max_time`` is given; -1 for no limit.
        min_epochs: before which nothing may stop the training early.
        max_steps: of optimizers; -1 for no limit.
        min_steps: as ``min_epochs``.
        max_time: ``"DD:HH:MM:SS"``, a ``timedelta``, or its arguments as a mapping.
        limit_train_batches: a number of batches (an int) or a share of them (a float) to use; likewise the next three.
        limit_val_batches: of each validation loader.
        limit_test_batches: of each test loader.
        limit_predict_batches: of each loader to predict.
        overfit_batches: train and validate on so many batches only.
        val_check_interval: validate every so many batches (an int), each share of an epoch (a float), or each span of
            time.
        check_val_every_n_epoch: validate in every n-th epoch; None: count batches over epochs.
        num_sanity_val_steps: batches to validate before training begins, 2 by default, to find errors early; -1: all.
        log_every_n_steps: 50 by default.
        enable_checkpointing: whether a ``ModelCheckpoint`` is added if there is none; True by default.
        enable_progress_bar: whether there is one; True by default.
        enable_model_summary: whether the layers are listed before training; True by default.
        accumulate_grad_batches: how many batches make one optimizer step.
        gradient_clip_val: the largest norm, or value, of gradients.
        gradient_clip_algorithm: ``"norm"`` (the default) or ``"value"``.
        deterministic: use deterministic algorithms; ``"warn"`` where there are some.
        benchmark: let cuDNN look for the fastest algorithms.
        inference_mode: evaluate under ``torch.inference_mode`` rather than ``torch.no_grad``.
        use_distributed_sampler: share the data among the processes.
        profiler: ``"simple"``, ``"advanced"``, ``"pytorch"``, or a profiler.
        detect_anomaly: let autograd look for NaN.
        barebones: nothing but the training, to measure it.
        plugins: not supported.
        sync_batchnorm: share BatchNorm's statistics among the processes.
        reload_dataloaders_every_n_epochs: ask for the loaders anew so often.
        default_root_dir: where logs and checkpoints go; the current directory by default.
        enable_autolog_hparams: give the hyperparameters to the loggers.
        model_registry: not supported.
        lightning_way: do as Lightning does where it errs: an incomplete last group of accumulated batches is divided by
            the size of a complete one, and ``global_step`` counts the steps of every optimizer.
        resume_from_checkpoint: what ``fit`` goes on with, if it is given no ``ckpt_path``.
        auto_lr_find: let ``Tuner.lr_find`` set the module's ``lr`` or ``learning_rate``, or the attribute of this name.
        auto_scale_batch_size: let ``Tuner.scale_batch_size`` set its ``batch_size``; ``"power"`` or ``"binsearch"``.
        old_flags: of early 2020: ``gpus``, ``distributed_backend``, ``overfit_pct``, ``early_stop_callback``, ….

    Raises:
        TypeError: an unknown flag.
        ValueError: a flag that makes no sense, or is not supported here.

    Example:
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> trainer.strategy.root_device, trainer.global_step
        (device(type='cpu'), 0)
    """

    def __init__(  # noqa: C901, PLR0912, PLR0915 - as many as Lightning has
        self,
        logger: bool | Logger | Iterable[Logger] | LoggingHandler | None = None,
        *,
        accelerator: str | Any = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int = 1,
        precision: int | str | None = None,
        callbacks: list[Callback | Handler] | Callback | Handler | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int | None = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | Mapping[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | Mapping[str, int] | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: str | bool | Profiler | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Any = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        lightning_way: bool = False,
        resume_from_checkpoint: str | os.PathLike[str] | None = None,
        auto_lr_find: bool | str = False,
        auto_scale_batch_size: bool | str = False,
        **old_flags: Any,
    ) -> None:
        if old_flags or isinstance(accumulate_grad_batches, Mapping):
            given = {name: value for name, value in locals().items() if name not in ("self", "old_flags")}
            self.__init__(**from_old_flags(given, old_flags))  # type: ignore[misc]
            return
        check(locals())
        self.resume_from_checkpoint = resume_from_checkpoint
        self.auto_lr_find, self.auto_scale_batch_size = auto_lr_find, auto_scale_batch_size
        refuse(
            {name: value for name, value in (("plugins", plugins), ("model_registry", model_registry)) if value},
            "Trainer",
        )
        show_infos()
        self.state = TrainerState()
        self.lightning_way = lightning_way
        self.barebones = barebones
        if barebones:
            logger, enable_checkpointing, enable_progress_bar, enable_model_summary = False, False, False, False
            num_sanity_val_steps, log_every_n_steps = 0, 0

        self.fast_dev_run = fast_dev_run
        if fast_dev_run:
            batches = int(fast_dev_run)
            if batches < 0:
                raise ValueError(f"Trainer(fast_dev_run={fast_dev_run!r}): it is True, or a number of batches.")
            limit_train_batches = limit_val_batches = limit_test_batches = limit_predict_batches = batches
            max_epochs, max_steps, num_sanity_val_steps = 1, batches, 0
            val_check_interval, check_val_every_n_epoch = 1.0, 1
            enable_checkpointing = False

        # ---------------------------------------------------------------------------- how long
        max_steps = -1 if max_steps is None else max_steps  # None was the default once
        if max_epochs is None:
            max_epochs = 1000 if max_steps == -1 and max_time is None else -1
        self.max_epochs, self.max_steps = max_epochs, max_steps
        self.min_epochs, self.min_steps = min_epochs, min_steps
        self.max_time = max_time

        # ---------------------------------------------------------------------------- how much data
        if overfit_batches:
            limit_train_batches = limit_val_batches = overfit_batches
        self.overfit_batches = overfit_batches
        self.limit_train_batches = _limit(limit_train_batches, "limit_train_batches")
        self.limit_val_batches = _limit(limit_val_batches, "limit_val_batches")
        self.limit_test_batches = _limit(limit_test_batches, "limit_test_batches")
        self.limit_predict_batches = _limit(limit_predict_batches, "limit_predict_batches")
        self.val_check_interval = 1.0 if val_check_interval is None else val_check_interval
        self.val_check_seconds = (
            seconds_of(val_check_interval) if isinstance(val_check_interval, (str, timedelta, Mapping)) else None
        )
        if isinstance(self.val_check_interval, float) and not 0 <= self.val_check_interval <= 1:
            raise ValueError(
                f"Trainer(val_check_interval={val_check_interval!r}): a float is a share of an epoch, from 0 to 1; "
                "give an int for a number of batches."
            )
        self.check_val_every_n_epoch = check_val_every_n_epoch
        if check_val_every_n_epoch is None and isinstance(self.val_check_interval, float):
            raise ValueError(
                f"Trainer(check_val_every_n_epoch=None) counts batches over epochs, so val_check_interval must be a "
                f"number of batches (an int), not {self.val_check_interval!r}."
            )
        self.num_sanity_val_steps = 2 if num_sanity_val_steps is None else num_sanity_val_steps
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.use_distributed_sampler = use_distributed_sampler

        # ---------------------------------------------------------------------------- how it computes
        self._accumulate_grad_batches = accumulate_grad_batches
        if gradient_clip_algorithm is not None and str(gradient_clip_algorithm) not in ("norm", "value"):
            raise ValueError(f"Trainer(gradient_clip_algorithm={gradient_clip_algorithm!r}): it is 'norm' or 'value'.")
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.inference_mode = inference_mode
        self.detect_anomaly = detect_anomaly
        self.sync_batchnorm = sync_batchnorm
        if deterministic is not None:
            torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        if benchmark is not None:
            torch.backends.cudnn.benchmark = benchmark
        elif deterministic:
            torch.backends.cudnn.benchmark = False
        kind = kind_of(accelerator if isinstance(accelerator, str) else getattr(accelerator, "name", "auto"))
        self.precision_settings = precision_of(precision, kind)
        ids = device_ids(devices, kind)
        self.strategy = strategy_of(strategy, processes=len(ids) * num_nodes)
        self.strategy.accelerator, self.strategy.device_ids = kind, ids
        self.strategy.num_nodes = self.num_nodes = num_nodes
        self.strategy.trainer = self

        # ---------------------------------------------------------------------------- what is told and kept
        self.log_every_n_steps = 50 if log_every_n_steps is None else log_every_n_steps
        self._default_root_dir = Path.cwd() if default_root_dir is None else Path(default_root_dir)
        self.enable_autolog_hparams = enable_autolog_hparams
        self.handlers: list[Handler] = []
        self.callbacks: list[Any] = []
        given_callbacks = (
            [] if callbacks is None else callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
        )
        for callback in given_callbacks:
            if isinstance(callback, Handler):
                self.handlers.append(callback)
            else:
                self.callbacks.append(callback)
        chosen = list(self.callbacks)
        self.callbacks = with_defaults(
            chosen,
            checkpointing=enable_checkpointing,
            progress_bar=enable_progress_bar,
            summary=enable_model_summary,
            max_time=max_time,
            may_save=not fast_dev_run,
        )
        self._own_checkpoints = [one for one in self.checkpoint_callbacks if one not in chosen]
        self.loggers, handlers = loggers_of(logger, self._default_root_dir, is_dry=bool(fast_dev_run))
        self.handlers += handlers
        self.profiler = profiler_of(profiler)

        # ---------------------------------------------------------------------------- the run
        self.datamodule: Any = None
        self.results = Results()
        self.training_loop: Training | None = None
        self.validation = Evaluation(self, RunningStage.VALIDATING)
        self.validate_loop = Evaluation(self, RunningStage.VALIDATING)
        self.test_loop = Evaluation(self, RunningStage.TESTING)
        self.predict_loop = Evaluation(self, RunningStage.PREDICTING)
        self._callback_metrics: dict[str, Any] = {}
        self._logged_metrics: dict[str, Any] = {}
        self._progress_bar_metrics: dict[str, Any] = {}
        self._should_stop = False
        self.interruption = Interruption(self)
        self.ckpt_path: Any = None
        self._loaded: dict[str, Any] | None = None
        self._hooks: Hooks | None = None
        self._train_source: Source | None = None
        self._prepared: Any = None  # the module whose prepare_data() was called last
        tell_of_trainer(self, self.callbacks)

    # -------------------------------------------------------------------------------------------- the four functions

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
        **old: Any,
    ) -> Any:
        """Train a module.

        Args:
            model: a ``LightningModule``.
            train_dataloaders: a loader, or a collection of them; else the module's or data module's.
            val_dataloaders: likewise, to validate on.
            datamodule: a ``LightningDataModule``, which may also be the second argument.
            ckpt_path: go on with this checkpoint: a path, or ``"last"`` for the newest there is.
            weights_only: accepted; nothing but tensors and plain values is ever read.
            old: ``train_dataloader``, as it was called once.

        Raises:
            TypeError: ``model`` is no ``LightningModule``.
            ValueError: both loaders and a data module; nothing to train on.
        """
        if "train_dataloader" in old:
            train_dataloaders = old.pop("train_dataloader")
        refuse(old, "fit()")
        if _is_datamodule(train_dataloaders):
            train_dataloaders, datamodule = None, train_dataloaders
        if datamodule is not None and (train_dataloaders is not None or val_dataloaders is not None):
            raise ValueError("fit() was given both loaders and a data module: which is meant?")
        self._tune(model, train_dataloaders, val_dataloaders, datamodule)
        module = self._begin(TrainerFn.FITTING, RunningStage.TRAINING, model)
        self._should_stop = False
        ckpt_path = self.resume_from_checkpoint if ckpt_path is None else ckpt_path
        with self.interruption.caught(), self._running():
            self._prepare(module, datamodule, ckpt_path)
            self._fit(module, train_dataloaders, val_dataloaders)
        return 1 if old_style.is_old(module) else None

    def validate(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
        **old: Any,
    ) -> list[dict[str, Any]]:
        """Validate.

        Args:
            model: a module; by default the one of the last call.
            dataloaders: a loader, or several; else the module's or data module's.
            ckpt_path: take the weights of this checkpoint: ``"best"``, ``"last"`` or a path. Without it the current
                weights are used where ``model`` is given, else the best, if there is a ``ModelCheckpoint``.
            verbose: print the results.
            datamodule: a ``LightningDataModule``.
            weights_only: accepted, as in :meth:`fit`.
            old: ``val_dataloaders``, as it was called once.

        Returns:
            What was logged: a mapping for each loader.
        """
        dataloaders = old.pop("val_dataloaders", dataloaders)
        return self._evaluate(
            (TrainerFn.VALIDATING, RunningStage.VALIDATING, self.validate_loop),
            (model, dataloaders, datamodule, ckpt_path, old),
            verbose=verbose,
        )

    def test(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
        **old: Any,
    ) -> list[dict[str, Any]]:
        """Test; as :meth:`validate`.

        Without a model the weights are those of now if the module is of the style of early 2020, else those of the best
        checkpoint, if there is one.
        """
        dataloaders = old.pop("test_dataloaders", dataloaders)
        return self._evaluate(
            (TrainerFn.TESTING, RunningStage.TESTING, self.test_loop),
            (model, dataloaders, datamodule, ckpt_path, old),
            verbose=verbose,
        )

    def predict(
        self,
        model: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        return_predictions: bool | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        weights_only: bool | None = None,
    ) -> list[Any] | None:
        """Predict: what ``predict_step`` returns for each batch, as a list; several loaders, a list of lists.

        Args:
            model: a module; by default the one of the last call.
            dataloaders: a loader, or several; else the module's or data module's.
            datamodule: a ``LightningDataModule``.
            return_predictions: False where a callback writes them, to save memory.
            ckpt_path: as in :meth:`validate`.
            weights_only: accepted, as in :meth:`fit`.
        """
        loop = self.predict_loop
        loop.return_predictions = return_predictions is not False
        self._evaluate(
            (TrainerFn.PREDICTING, RunningStage.PREDICTING, loop),
            (model, dataloaders, datamodule, ckpt_path, {}),
            verbose=False,
        )
        if not loop.return_predictions:
            return None
        return loop.predictions[0] if len(loop.predictions) == 1 else loop.predictions

    # ------------------------------------------------------------------------------------------------ how they go

    def _begin(self, fn: TrainerFn, stage: RunningStage, model: Any) -> Any:
        if model is None:
            model = self.lightning_module
            if model is None:
                raise TypeError(f"Trainer.{fn}() needs a LightningModule: none was given, in this call or one before.")
        model = _with_compiled_steps(model) if hasattr(model, "_orig_mod") else model
        if not isinstance(model, nn.Module) or not hasattr(model, "training_step"):
            raise TypeError(f"Trainer.{fn}() takes a LightningModule, but got {model!r}.")
        self.state.fn, self.state.stage, self.state.status = fn, stage, TrainerStatus.RUNNING
        self.strategy.lightning_module = model
        return model

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """A call of one of the functions: whatever ends it, callbacks and loggers are told."""
        grad = torch.is_grad_enabled()
        dtype = torch.get_default_dtype()
        try:
            with torch.autograd.set_detect_anomaly(self.detect_anomaly) if self.detect_anomaly else _nothing():
                yield
            self.state.status = TrainerStatus.FINISHED
            self._finalise_loggers("success")
        except BaseException as error:
            self.state.status = TrainerStatus.INTERRUPTED
            torch.set_grad_enabled(grad)
            if isinstance(error, KeyboardInterrupt) and self.training_loop is not None:
                self.interruption.save_if_possible("interrupted.ckpt")
            self._tell_of(error)
            raise
        finally:
            torch.set_default_dtype(dtype)
            self.state.stage = None
            if self.lightning_module is not None:
                self._let_go(self.lightning_module)
            if self.profiler is not None:
                self.profiler.describe()

    def _let_go(self, module: Any) -> None:
        module._results = None
        if not hasattr(type(module), "_results"):
            from camshaft.contrib.lightning.real import release  # noqa: PLC0415 - as in _prepare()

            release(module)

    def _tell_of(self, error: BaseException) -> None:
        if self._hooks is None:
            return
        for hook in self._hooks.of_callbacks("on_exception"):
            hook(error)
        if self.datamodule is not None and is_overridden("on_exception", self.datamodule):
            self.datamodule.on_exception(error)
        self._finalise_loggers("failed")

    def _finalise_loggers(self, status: str) -> None:
        for logger in self.loggers:
            logger.finalize(status)

    def _prepare(self, module: Any, datamodule: Any, ckpt_path: Any) -> None:
        """What all functions begin with, up to the weights of a checkpoint."""
        fn = str(self.state.fn)
        self.strategy.setup_environment()
        module.trainer = self
        if not hasattr(type(module), "_results"):
            from camshaft.contrib.lightning.real import adopt  # noqa: PLC0415 - only for modules of the real Lightning

            adopt(module, self)
        if datamodule is not None:
            self.datamodule = datamodule
        if self.datamodule is not None:
            self.datamodule.trainer = self
        self._attach_models_callbacks(module)
        for checkpoint in self._own_checkpoints:
            old_style.monitor_as_then(module, checkpoint)
        for callback in self.callbacks:
            callback.log, callback.log_dict = module.log, module.log_dict
        warn_of_uncalled(module, self.callbacks)
        self._hooks = hooks = Hooks(self, module)
        for logger in self.loggers:
            getattr(logger, "experiment", None)  # a directory that cannot be written to is told of now
        if self.profiler is not None:
            self.profiler._lightning_module = module
            self.profiler.setup(stage=fn, local_rank=self.local_rank, log_dir=self.log_dir)
        self._prepare_data(module)
        self._set_up(hooks, fn)
        self._convert(module)
        self._loaded = None
        self.ckpt_path = self._chosen(ckpt_path)
        if self.ckpt_path is not None:
            self._loaded = read(self.ckpt_path)
            restore_module(self, self._loaded)
            if self.state.fn == TrainerFn.FITTING:
                restore_callbacks(self, self._loaded)
        module.to(self.strategy.root_device)

    def _set_up(self, hooks: Hooks, fn: str) -> None:
        if is_overridden("setup", self.datamodule):
            self.datamodule.setup(stage=fn)
        for hook in hooks.of_callbacks("setup"):
            hook(fn)
        for name, args in (("setup", (fn,)), ("configure_sharded_model", ()), ("configure_model", ())):
            if is_overridden(name, hooks.module):
                getattr(hooks.module, name)(*args)

    def _convert(self, module: Any) -> None:
        """Bring the weights to the precision, and BatchNorm to share its statistics."""
        dtype = self.precision_settings.dtype
        if dtype is not None:
            torch.set_default_dtype(dtype)
            module.to(dtype)
        if self.sync_batchnorm and world_size() > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(module)

    def _prepare_data(self, module: Any) -> None:
        """First on one process of each machine, which may download; then on the others, so that all have the same."""
        if self._prepared is module and self.state.fn == TrainerFn.TESTING and old_style.is_old(module):
            return  # test() after fit() went on with what there was, in early 2020
        self._prepared = module
        owners = [owner for owner in (self.datamodule, module) if is_overridden("prepare_data", owner)]
        for turn in (True, False):
            if (self.local_rank == 0) is turn:
                for owner in owners:
                    owner.prepare_data()
            if owners:
                self.strategy.barrier()

    def _fit(self, module: Any, train_dataloaders: Any, val_dataloaders: Any) -> None:
        hooks = self._hooks
        assert hooks is not None
        train = Source(train_dataloaders, self.datamodule, module, "train_dataloader")
        val = Source(val_dataloaders, self.datamodule, module, "val_dataloader")
        for name in ("training_step", "configure_optimizers"):
            if not is_overridden(name, module):
                raise ValueError(f"{type(module).__name__} cannot be trained: it has no {name}().")
        before, self.training_loop, self._train_source = self.training_loop, None, train
        is_old = old_style.is_old(module)
        monitor = old_style.monitored_by_schedules(module)
        setup = configured(module.configure_optimizers(), automatic=module.automatic_optimization, monitor=monitor)
        check_schedulers(setup.schedules, module)
        if not setup.optimizers and module.automatic_optimization:
            warnings.warn("configure_optimizers() returned nothing: this fit changes no weights.", stacklevel=3)
        self._forget_metrics()
        self.training_loop = training = Training(self, hooks, setup)
        if before is not None:
            training.go_on_after(before)
        self._validation_of(hooks, val)
        self._attach_handlers(training.engine)
        hooks.call("on_fit_start")
        self._log_hyperparameters(module)
        if is_old:
            self._set_up_data(training, train)
            self._check_sanity()
        else:
            self._check_sanity()
            self._set_up_data(training, train)
        max_epochs = 10**9 if self.max_epochs == -1 else self.max_epochs
        if not training.is_done(max_epochs):
            _set_mode(module, train=is_old)
            self.training = True
            self.interruption.watch(training.engine)
            training.run(max_epochs)
            self.interruption.leave_if_told()  # before callbacks change the weights for good
            hooks.call("on_train_end")
        self._end_function(hooks, "on_fit_end")

    def _set_up_data(self, training: Training, source: Source) -> None:
        training.setup_data(source)
        if self.enable_validation:
            self.validation.setup_data()

    def _tune(self, model: Any, train_dataloaders: Any, val_dataloaders: Any, datamodule: Any) -> None:
        """What ``auto_lr_find`` and ``auto_scale_batch_size`` ask for, once."""
        find, self.auto_lr_find = self.auto_lr_find, False
        scale, self.auto_scale_batch_size = self.auto_scale_batch_size, False
        if not find and not scale:
            return
        from camshaft.contrib.lightning.tuner import Tuner  # noqa: PLC0415 - it imports this

        data = {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders, "datamodule": datamodule}
        if scale:
            Tuner(self).scale_batch_size(model, mode="power" if scale is True else scale, **data)
        if find:
            name = find if isinstance(find, str) else ""
            Tuner(self).lr_find(model, update_attr=True, attr_name=name, **data)

    def _validation_of(self, hooks: Hooks, source: Source) -> None:
        self.validation.connect(
            source, hooks, old_style.epoch_end_of(hooks.module, "validation", lambda: self.validation.results)
        )
        if self.validation.exists and not source.exists:
            self.validation.exists = False

    def _check_sanity(self) -> None:
        steps = self.num_sanity_val_steps
        if not steps or not self.enable_validation or self.ckpt_path is not None:
            return
        assert self._hooks is not None
        stage, self.state.stage = self.state.stage, RunningStage.SANITY_CHECKING
        self._hooks.call("on_sanity_check_start")
        with isolate_rng():  # so that training draws what it would draw without
            self.validation.run(None if steps == -1 else steps)
        self._hooks.call("on_sanity_check_end")
        self.state.stage = stage
        self._forget_metrics()  # nothing that a callback should see

    def _evaluate(self, what: tuple[Any, ...], given: tuple[Any, ...], *, verbose: bool) -> list[dict[str, Any]]:
        fn, stage, loop = what
        model, dataloaders, datamodule, ckpt_path, old = given
        refuse(old, f"{fn}()")
        if _is_datamodule(dataloaders):
            dataloaders, datamodule = None, dataloaders
        if dataloaders is not None and datamodule is not None:
            raise ValueError(f"{fn}() was given both loaders and a data module: which is meant?")
        module = self._begin(fn, stage, model)
        if ckpt_path is None and model is None and not old_style.is_old(module):
            ckpt_path = "best" if self._best() else None
        name = stage.hook_name
        with self._running():
            self._prepare(module, datamodule, ckpt_path)
            hooks = self._hooks
            assert hooks is not None
            hook = f"{stage.dataloader_prefix}_dataloader"
            source = Source(dataloaders, self.datamodule, module, hook)
            if not source.exists:
                raise ValueError(f"{fn}() has no data: pass a loader, or define {hook}() in the module or data module.")
            if fn != TrainerFn.PREDICTING and not is_overridden(f"{name}_step", module):
                raise ValueError(f"{type(module).__name__} has no {name}_step(batch, batch_idx), which {fn}() calls.")
            loop.connect(source, hooks, old_style.epoch_end_of(module, name, lambda: loop.results))
            self._log_hyperparameters(module)
            self._forget_metrics()
            results: list[dict[str, Any]] = loop.run()
            self._end_function(hooks)
        if verbose and self.is_global_zero:
            sys.stdout.write(as_table(results, str(fn)))
        return results

    def _end_function(self, hooks: Hooks, last_hook: str | None = None) -> None:
        fn = str(self.state.fn)
        if last_hook is not None:
            hooks.call(last_hook)
        if is_overridden("teardown", self.datamodule):
            self.datamodule.teardown(fn)
        for hook in hooks.of_callbacks("teardown"):
            hook(fn)
        if is_overridden("teardown", hooks.module):
            hooks.module.teardown(fn)
        if self.profiler is not None:
            self.profiler.teardown(stage=fn)

    # ------------------------------------------------------------------------------------------------ what is attached

    def _attach_models_callbacks(self, module: Any) -> None:
        if not is_overridden("configure_callbacks", module):
            return
        added = module.configure_callbacks()
        added = list(added) if isinstance(added, (list, tuple)) else [added]
        kinds = {type(callback) for callback in added}
        self.callbacks = [callback for callback in self.callbacks if type(callback) not in kinds] + added
        self.callbacks.sort(key=saves)

    def _attach_handlers(self, engine: Engine) -> None:
        for handler in self.handlers:
            if any(handler is other for other in getattr(handler, "_engines", ())):
                continue
            engine.attach(handler)

    def profiled(self, function: Any, name: str) -> Any:
        """A function of the module, timed if there is a profiler."""
        if self.profiler is None:
            return function
        profiler, action = self.profiler, f"[LightningModule]{type(self.lightning_module).__name__}.{name}"

        def timed(*args: Any) -> Any:
            with profiler.profile(action):
                return function(*args)

        return timed

    # ------------------------------------------------------------------------------------------------ stopping

    @property
    def received_sigterm(self) -> bool:
        """Whether SIGTERM has come in this fit, on several processes to any of them."""
        return self.interruption.received == signal.SIGTERM

    @property
    def should_stop(self) -> bool:
        """Whether training is to stop once ``min_epochs`` and ``min_steps`` are done; set it to stop early."""
        return self._should_stop

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        self._should_stop = stop

    def can_stop(self) -> bool:
        """Whether somebody wants to stop, and nothing is against it."""
        if not self._should_stop:
            return False
        training = self.training_loop
        epochs = training.epochs_completed if training is not None else 0
        enough_epochs = self.min_epochs is None or epochs >= self.min_epochs
        return enough_epochs and (self.min_steps is None or self.global_step >= self.min_steps)

    def stop_if_possible(self) -> None:
        """End the epoch under way, and with it the run, if somebody wants to stop."""
        if self.can_stop() and self.training_loop is not None:
            self.training_loop.engine.terminate_epoch()

    @contextlib.contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Within this context modules are made on the trainer's device and in its precision."""
        before = torch.get_default_dtype()
        if self.precision_settings.dtype is not None:
            torch.set_default_dtype(self.precision_settings.dtype)
        try:
            with torch.device(self.strategy.root_device):
                yield
        finally:
            torch.set_default_dtype(before)

    # ------------------------------------------------------------------------------------------------ command lines

    @classmethod
    def get_init_arguments_and_types(cls) -> list[tuple[str, tuple[type, ...], Any]]:
        """The name, types and default of each flag, those of early 2020 among them."""
        from camshaft.contrib.lightning.flags import arguments_and_types  # noqa: PLC0415 - for command lines only

        return arguments_and_types(cls)

    @classmethod
    def default_attributes(cls) -> dict[str, Any]:
        """The flags and their defaults."""
        return {name: default for name, _, default in cls.get_init_arguments_and_types()}

    @classmethod
    def add_argparse_args(cls, parent_parser: Any, **kwargs: Any) -> Any:
        """A parser of ``argparse`` with an option for each flag, besides those of ``parent_parser``."""
        from camshaft.contrib.lightning.flags import add_arguments  # noqa: PLC0415

        return add_arguments(cls, parent_parser, **kwargs)

    @classmethod
    def from_argparse_args(cls, args: Any, **kwargs: Any) -> Trainer:
        """A trainer with the flags among the parsed arguments.

        Args:
            args: a namespace, or a parser, which then parses the command line.
            kwargs: further flags, which count more.
        """
        from camshaft.contrib.lightning.flags import chosen_arguments  # noqa: PLC0415

        return cls(**{**chosen_arguments(cls, args), **kwargs})


def _set_mode(module: nn.Module, *, train: bool) -> None:
    """Leave each part in the mode that it has, as Lightning does since 2.2; in 2020 it was set to train."""
    evaluating = [name for name, part in module.named_modules() if not part.training]
    if train:
        module.train()
    elif evaluating:
        warnings.warn(
            f"{len(evaluating)} part(s) of the module are trained in evaluation mode ({evaluating[0] or 'the whole'}, "
            "...): call module.train() if that is not meant.",
            stacklevel=4,
        )


def _limit(limit: float | None, name: str) -> float:
    if limit is None:
        return 1.0
    if isinstance(limit, bool) or limit < 0 or (isinstance(limit, float) and limit > 1 and not limit.is_integer()):
        raise ValueError(
            f"Trainer({name}={limit!r}): it is a number of batches (an int), or a share of them (a float from 0 to 1)."
        )
    return int(limit) if isinstance(limit, float) and limit > 1 else limit


def _with_compiled_steps(compiled: Any) -> Any:
    """The module in what ``torch.compile`` made of it, with its steps compiled the same way."""
    module = compiled._orig_mod
    for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
        if name not in vars(module):  # else it is compiled already
            setattr(module, name, compiled.dynamo_ctx(getattr(module, name)))
    return module


def _is_datamodule(thing: Any) -> bool:
    return thing is not None and hasattr(thing, "train_dataloader") and hasattr(thing, "prepare_data")


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield
