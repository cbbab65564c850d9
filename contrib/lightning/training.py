"""The training of a module: an engine, and what its events mean to the module and the callbacks.

Per epoch::

    EPOCH_STARTED          on_train_epoch_start
    ITERATION_STARTED      on_train_batch_start
    (the step)             training_step · the hooks of optimization, see optimization.py
    ITERATION_COMPLETED    schedules of the interval "step" · on_train_batch_end · logging
                           a validation within the epoch
    EPOCH_COMPLETED        a validation · on_train_epoch_end · schedules that monitor a value · logging
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import torch

from camshaft.contrib.lightning import old_style
from camshaft.contrib.lightning.data import LookingAhead, Source, batches_in, batches_to_train, set_epoch
from camshaft.contrib.lightning.defaults import monitors, silent
from camshaft.contrib.lightning.hooks import Hooks, is_overridden, takes
from camshaft.contrib.lightning.optimization import Configured, LightningOptimizer, ManualOptimization, ModuleStep
from camshaft.contrib.lightning.results import Results
from camshaft.contrib.lightning.schedules import step_schedules
from camshaft.contrib.lightning.trainer.states import RunningStage
from camshaft.engine.engine import Engine
from camshaft.engine.events import Events, StepEvents
from camshaft.engine.generators import set_generator_states
from camshaft.engine.phases import Phase, subscribe
from camshaft.engine.resumable_data import ResumableData
from camshaft.engine.training_step import TrainingStep, without_graph
from camshaft.handlers.gradient_accumulation import GradientAccumulation
from camshaft.handlers.gradient_clipping import GradientClipping

__all__ = ["EpochEnd", "Training"]


class EpochEnd(IntEnum):
    """How far the end of an epoch is: what comes after it is still to be done when a run is resumed there."""

    BATCHES = 0  # all batches are done
    VALIDATION = 1
    HOOKS = 2  # on_train_epoch_end


class Training:
    """What ``Trainer.fit`` runs.

    Args:
        trainer: whose flags and callbacks are used.
        hooks: of the module and the callbacks.
        configured: what ``configure_optimizers`` returned.

    Attributes:
        engine: that trains.
        results: what was logged in this epoch.
        batch_idx: of the batch under way, or done last, within its epoch.
        batches_stepped: how many batches ended with an optimizer's step.
        logging_step: the same as loggers are told: that of a batch counts once all that belongs to it is done.
        epoch_end: how far the end of the epoch is, None while its batches are under way.
    """

    def __init__(self, trainer: Any, hooks: Hooks, configured: Configured) -> None:
        self.trainer = trainer
        self.hooks = hooks
        self.module = hooks.module
        self.configured = configured
        self.results = Results(training=True)
        self.batch_idx = -1
        self.total_batches = 0
        self.batches_stepped = 0
        self.logging_step = 0
        self.batches_before_epoch = 0
        self.iterations_before_epoch = 0
        self.epochs_completed = 0
        self.num_batches: float = 0
        self.val_check_batch: float | None = None
        self.epoch_end: EpochEnd | None = None
        self.loaders: Any = None
        self.at: int | None = None  # the position in the epoch from which a resumed run goes on
        self.pending_epoch_end: EpochEnd | None = None
        self.generators: Any = None  # the states that a resumed run takes back
        self.scaler: torch.amp.GradScaler | None = None
        self.manual: ManualOptimization | None = None
        self.optimizers = [LightningOptimizer(optimizer) for optimizer in configured.optimizers]
        self.steps: list[ModuleStep] = []
        self._went_before: tuple[int, int] | None = None  # epochs and iterations of an earlier fit
        self._made_in_epoch = -1
        self._validated_at = -1
        self._last_validation = time.monotonic()
        self._skipped = False
        self._stepped = True
        self._outputs: list[Any] | None = None
        self.engine = Engine(self._step_function())
        self.engine.logger = silent  # what is raised is told once, by who catches it
        self.data = ResumableData(self.engine)
        trainer.strategy.prepare_engine(self.engine)
        self._prepare_optimization()
        trainer.strategy.prepare_training(self.engine)
        self._subscribe()

    # ------------------------------------------------------------------------------------------------ the step

    def _step_function(self) -> Callable[[Any, Any], Any]:
        """What the engine calls: no more than the module's own step, wherever that is all there is."""
        trainer, module = self.trainer, self.module
        step = trainer.profiled(trainer.strategy.step("training_step"), "training_step")
        several = takes(module.training_step, "optimizer_idx")
        if len(self.optimizers) > 1 and module.automatic_optimization and not several:
            raise ValueError(
                f"{type(module).__name__} has {len(self.optimizers)} optimizers: set self.automatic_optimization = "
                "False and step them in training_step, or take optimizer_idx: training_step(batch, batch_idx, "
                "optimizer_idx)."
            )
        needed = [
            one
            for one in inspect.signature(module.training_step).parameters.values()
            if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        if needed and needed[0].name == "dataloader_iter":
            raise ValueError("training_step(dataloader_iter) is not supported: take (batch, batch_idx).")
        with_index = len(needed) != 1
        results = self.results

        def plain(engine: Any, batch: Any) -> Any:
            self.batch_idx = index = self.batch_idx + 1
            results.begin_batch(batch)
            results.hook = "training_step"
            output = step(batch, index) if with_index else step(batch)
            if type(output) is dict and len(output) > 1:
                old_style.take_logs(output, results)
            return output

        def call(batch: Any, *more: Any) -> Any:
            return step(batch, self.batch_idx, *more) if with_index else step(batch)

        self._call: Callable[..., Any] = call
        # Whether the loss is computed from within the step of an optimizer.
        self._steps_from_within = is_overridden("optimizer_step", module) or reevaluates(self.configured)
        if several and module.automatic_optimization:
            return self._with_several_optimizers
        ended = self._with_its_end if is_overridden("training_step_end", module) else plain
        if not module.automatic_optimization or not self.optimizers:
            return self._by_hand(ended)
        return self._with_closure if self._steps_from_within else ended

    def _by_hand(self, plain: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def step(engine: Any, batch: Any) -> Any:
            return without_graph(plain(engine, batch))

        return step

    def _begin(self, batch: Any) -> None:
        self.batch_idx += 1
        self.results.begin_batch(batch)
        self.results.hook = "training_step"

    def _with_its_end(self, engine: Any, batch: Any) -> Any:
        """Where the module has a ``training_step_end``, whose result counts."""
        self._begin(batch)
        return old_style.loss_of_step(self.module, self._call(batch), self.results)

    def _with_closure(self, engine: Any, batch: Any) -> Any:
        """Where the module has an ``optimizer_step`` of its own: training_step is called from within it."""
        self._begin(batch)
        return self._step_from_within(engine, batch, self.steps[0])

    def _step_from_within(self, engine: Any, batch: Any, step: ModuleStep, *index: int) -> Any:
        """The step of one optimizer; returns what ``training_step`` returned."""
        outputs: list[Any] = []

        def evaluate() -> Any:
            self.results.hook = "training_step"
            output = old_style.loss_of_step(self.module, self._call(batch, *index), self.results)
            outputs[:] = [without_graph(output)]
            if output is None:
                return None
            if index:  # of several optimizers, each of which is called by hand
                return output["loss"] if isinstance(output, Mapping) else output
            return TrainingStep.of(engine)._loss_of(output)[0]

        step.step_with_closure(engine, evaluate)
        return outputs[0] if outputs else None

    def _with_several_optimizers(self, engine: Any, batch: Any) -> Any:
        """A training_step that takes ``optimizer_idx`` is called for each optimizer whose turn it is."""
        self._begin(batch)
        outputs = []
        for index in self._turns():
            self.results.hook = "training_step"
            with self.module.toggled_optimizer(self.optimizers[index]):
                if self._steps_from_within:
                    outputs.append(self._step_from_within(engine, batch, self.steps[index], index))
                    continue
                output = old_style.loss_of_step(self.module, self._call(batch, index), self.results)
                if output is not None:
                    self.steps[index](output["loss"] if isinstance(output, Mapping) else output)
            outputs.append(without_graph(output))
        return outputs[0] if len(outputs) == 1 else outputs

    def _turns(self) -> list[int]:
        frequencies = self.configured.frequencies
        if not frequencies:
            return list(range(len(self.optimizers)))
        place = self.batch_idx % sum(frequencies)
        for index, frequency in enumerate(frequencies):
            if place < frequency:
                return [index]
            place -= frequency
        raise AssertionError

    def _prepare_optimization(self) -> None:
        """Attach what makes the steps, clips and accumulates."""
        trainer, module, engine = self.trainer, self.module, self.engine
        for optimizer in self.optimizers:
            optimizer._module = module
        if not module.automatic_optimization:
            self._prepare_steps_by_hand()
            return
        for index, optimizer in enumerate(self.optimizers):
            step = ModuleStep(trainer, self.hooks, optimizer, index)
            step.divides_by_all = trainer.lightning_way
            self.steps.append(step)
            step.attach(engine)
        if not self.optimizers:
            return
        if trainer.accumulate_grad_batches > 1:
            engine.attach(GradientAccumulation(trainer.accumulate_grad_batches))
        self._prepare_clipping()

    def _prepare_steps_by_hand(self) -> None:
        trainer, engine, amp = self.trainer, self.engine, self.trainer.precision_settings.amp
        for name, value in (
            ("accumulate_grad_batches", trainer.accumulate_grad_batches > 1),
            ("gradient_clip_val", trainer.gradient_clip_val),
        ):
            if value:
                raise ValueError(
                    f"Trainer({name}=...) does nothing where the module makes its steps itself "
                    "(automatic_optimization = False): do it there, by self.clip_gradients or every so many batches."
                )
        device = trainer.strategy.root_device.type
        if amp == "fp16":
            self.scaler = torch.amp.GradScaler(device)
        if amp is not None:
            dtype = torch.float16 if amp == "fp16" else torch.bfloat16
            TrainingStep.of(engine).forward_context = torch.autocast(device, dtype=dtype)
        self.manual = ManualOptimization(self.hooks, engine, self.scaler)
        for optimizer in self.optimizers:
            optimizer.make_step = self.manual.make_step

    def _prepare_clipping(self) -> None:
        trainer, module, engine = self.trainer, self.module, self.engine
        before_step = self.hooks.of("on_before_optimizer_step")
        if before_step:

            def call_before_step(engine: Any) -> None:
                stepping: Any = TrainingStep.of(engine).stepping
                for hook in before_step:
                    hook(stepping.optimizers[0])

            subscribe(engine, StepEvents.OPTIMIZER_STEP_STARTED, call_before_step, Phase.CHECK)
        value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm or "norm"
        if is_overridden("configure_gradient_clipping", module) or (value and reevaluates(self.configured)):

            def clip(engine: Any) -> None:
                stepping: Any = TrainingStep.of(engine).stepping
                module.configure_gradient_clipping(stepping.optimizers[0], value, trainer.gradient_clip_algorithm)

            subscribe(engine, StepEvents.OPTIMIZER_STEP_STARTED, clip, Phase.PREPARE)
        elif value:
            engine.attach(GradientClipping(value) if algorithm == "norm" else GradientClipping(max_value=value))

    def set_accumulation(self, batches: int) -> None:
        """Change how many batches make one step."""
        TrainingStep.of(self.engine).group_size = batches
        for step in self.steps:
            step._last_seed = None

    # ------------------------------------------------------------------------------------------------ the data

    def setup_data(self, source: Source) -> None:
        """Make the loaders, and find out how much of them is used and when to validate."""
        trainer = self.trainer
        self._source = source
        self._made_in_epoch = self.epochs_completed
        self.loaders = source.request()
        batches = batches_to_train(self.loaders, trainer.limit_train_batches, trainer.strategy.prepared_to_train)
        self.loader, self.num_batches, self.has_length, self._loaders = batches
        self._ends_early = batches_in(self.loader) > self.num_batches
        keeps_its_position = self.num_batches == float("inf") and hasattr(self.loader, "load_state_dict")
        if not self.has_length and not keeps_its_position:  # which a batch that is fetched ahead would falsify
            self.loader = LookingAhead(self.loader, self.num_batches, self._note_last_batch)
        self.val_check_batch = self._val_check_batch()

    def _val_check_batch(self) -> float | None:
        trainer, interval, number = self.trainer, self.trainer.val_check_interval, self.num_batches
        if trainer.val_check_seconds is not None:
            return None
        if isinstance(interval, int):
            if trainer.check_val_every_n_epoch is not None and interval > number and trainer.limit_val_batches != 0:
                raise ValueError(
                    f"Trainer(val_check_interval={interval}) is more than the {number} batches of an epoch, so nothing "
                    "would ever be validated: choose a smaller one, or check_val_every_n_epoch=None to count over "
                    "epochs."
                )
            return interval
        if number == float("inf"):
            if interval != 1.0:
                raise ValueError(
                    f"Trainer(val_check_interval={interval}) is a share of data without length: give a number of "
                    "batches."
                )
            return float("inf")
        return max(1, int(number * interval))

    def _reload_data(self) -> None:
        every = self.trainer.reload_dataloaders_every_n_epochs
        if every and self.epochs_completed - self._made_in_epoch >= every:
            self.make_loaders_anew()
        elif self._ends_early or not self.has_length:
            self._begin_data_anew()
        self.engine.state.epoch_length = int(self.num_batches) if self.has_length else None

    def _begin_data_anew(self) -> None:
        """Let the epoch that is about to begin begin with the first batch."""
        self.engine._dataloader_iter = None
        self.engine._init_iter = 0

    def _note_last_batch(self, number: int) -> None:
        self.engine.state.epoch_length = number

    def make_loaders_anew(self) -> None:
        """Ask for the loaders again, when an epoch begins."""
        self.setup_data(self._source)
        self.engine.set_data(self.loader)
        self.engine.state.epoch_length = int(self.num_batches) if self.has_length else None
        self._begin_data_anew()

    @property
    def total_batch_idx(self) -> int:
        """Of the batch under way, or done last, counted over all epochs."""
        return self.batches_before_epoch + self.batch_idx

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch under way is the last of its epoch, as far as that is known before it has ended."""
        return self.batch_idx + 1 == self.engine.state.epoch_length

    # ------------------------------------------------------------------------------------------------ the run

    def _subscribe(self) -> None:
        engine, hooks, trainer = self.engine, self.hooks, self.trainer
        subscribe(engine, Events.STARTED, self._start, Phase.USER)
        subscribe(engine, Events.EPOCH_STARTED, self._begin_epoch, Phase.USER)
        self._batch_start = hooks.of_callbacks("on_train_batch_start"), hooks.of_module("on_train_batch_start")
        if any(self._batch_start):
            subscribe(engine, Events.ITERATION_STARTED, self._begin_batch, Phase.USER)
        self._batch_end = hooks.of("on_train_batch_end")
        self._outputs_are_read = any(map(_reads_outputs, (self.module, *trainer.callbacks)))
        # The list itself: StochasticWeightAveraging puts another schedule into it.
        self._step_schedules = self.configured.schedules if self.module.automatic_optimization else []
        subscribe(engine, Events.ITERATION_COMPLETED, self._finish_batch, Phase.MEASURE)
        subscribe(engine, Events.EPOCH_COMPLETED, self._finish_epoch, Phase.EVALUATE)
        self._ends_by_steps = trainer.max_steps != -1
        self._logs = trainer.log_every_n_steps if trainer.loggers else 0

    def go_on_after(self, before: Training) -> None:
        """Count on from an earlier fit of the same trainer."""
        self.epochs_completed = before.epochs_completed
        self._went_before = before.epochs_completed, before.engine.state.iteration
        self.batch_idx, self.batches_before_epoch = before.batch_idx, before.batches_before_epoch
        self.total_batches = before.total_batches
        self.batches_stepped = self.logging_step = before.batches_stepped
        steps = max((optimizer.steps for optimizer in before.optimizers), default=0)
        for index, optimizer in enumerate(self.optimizers):
            optimizer.steps = before.optimizers[index].steps if index < len(before.optimizers) else steps
        for step, optimizer in zip(self.steps, self.optimizers, strict=False):
            step.steps = optimizer.steps

    def is_done(self, max_epochs: int) -> bool:
        """Whether there is nothing to train."""
        trainer = self.trainer
        enough_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        is_over = self.epochs_completed >= max_epochs or enough_steps
        # A checkpoint is taken back when the run starts, and it may be told then that its time is over.
        return bool(self.num_batches == 0 or is_over or (trainer._loaded is None and trainer.can_stop()))

    def run(self, max_epochs: int) -> None:
        """Train."""
        length = int(self.num_batches) if self.has_length else None
        self.trainer.results = self.module._results = self.results
        self.engine.run(self.loader, max_epochs=max_epochs, epoch_length=length)

    def _start(self, engine: Any) -> None:
        if self._went_before is not None:  # a run begins with nothing, so this is the moment to say otherwise
            engine.state.epoch, engine.state.iteration = self._went_before
            engine._init_iter = 0
        self.trainer.restore_training(self)
        if self.trainer.can_stop():  # before it has begun, as where a resumed run has no time left
            engine.terminate()
            return
        self.hooks.call("on_train_start")
        if self.trainer.can_stop():
            engine.terminate()
            return
        if self.at is None:
            self._bring_back_generators()
        if self.pending_epoch_end is not None:
            stage, self.pending_epoch_end = self.pending_epoch_end, None
            self._finish_epoch(engine, stage)

    def _begin_epoch(self, engine: Any) -> None:
        if self.at is None:
            self._reload_data()
        set_epoch(self._loaders, engine.state.epoch - 1)
        self.epoch_end = None
        self.logging_step = self.batches_stepped
        self._outputs = [] if is_overridden("training_epoch_end", self.module) else None
        self.trainer.training = True
        self.batches_before_epoch = self.total_batches - (self.at or 0)
        self.iterations_before_epoch = engine.state.iteration - (self.at or 0)
        self.hooks.call("on_train_epoch_start")
        self.batch_idx = -1 if self.at is None else self.at - 1
        self.results.in_batches = True
        if self.at is not None:
            self.at = None
            self._bring_back_generators()
        elif self.trainer.can_stop():  # an epoch without a batch
            self._skipped = True
            self._finish_epoch(engine)
            engine.terminate()

    def _bring_back_generators(self) -> None:
        states, self.generators = self.generators, None
        if states is not None:
            set_generator_states({"own": {}, **states})

    def _begin_batch(self, engine: Any) -> None:
        batch = engine.state.batch
        self.batch_idx = index = self.batch_idx + 1  # as the hooks are to find it; the step counts it for good
        skips = False
        of_callbacks, of_module = self._batch_start
        self.results.begin_batch(batch)
        for hook in of_callbacks:
            hook(batch, index)
        for hook in of_module:
            skips = hook(batch, index) == -1
        if not skips:
            self.batch_idx -= 1
        else:
            self._skipped = True
            self.total_batches += 1
            engine.terminate_epoch()

    def _finish_batch(self, engine: Any) -> None:
        state = engine.state
        self.total_batches += 1
        steps = self.steps
        self._stepped = not steps or any(step._micro_batches == 0 for step in steps)
        self.logging_step = self.batches_stepped
        self.batches_stepped += self._stepped
        is_last = state.epoch_length == self.batch_idx + 1
        if self._step_schedules:
            self._step_schedules_of_batch(is_last=is_last)
        if self._batch_end:
            if is_last:
                self.epoch_end = EpochEnd.BATCHES
            outputs = _as_outputs(state.output, self.trainer.accumulate_grad_batches if self._outputs_are_read else 1)
            for hook in self._batch_end:
                hook(outputs, state.batch, self.batch_idx)
        if self._outputs is not None:
            self._outputs.append(_as_outputs(state.output))
        if self._logs and self._stepped and (self.batches_stepped % self._logs == 0 or self.trainer.should_stop):
            self._log_step()
        if not is_last:
            if self._is_time_to_validate():
                self._validate()
            self._end_batch()
        if self._ends_by_steps or self.trainer.should_stop:
            self._stop_if_due(engine)

    def _stop_if_due(self, engine: Any) -> None:
        if self._ends_by_steps and self.trainer.global_step >= self.trainer.max_steps:
            engine.terminate_epoch()
        elif self.trainer.should_stop:
            self.trainer.stop_if_possible()

    def _step_schedules_of_batch(self, *, is_last: bool) -> None:
        if self._stepped:
            step_schedules(self.trainer, self._step_schedules, "step", on_plateau=False)
        if is_last:
            step_schedules(self.trainer, self._step_schedules, "epoch", on_plateau=False)
            self._epoch_schedules_stepped = True

    def _log_step(self) -> None:
        metrics = self.results.metrics()
        self.trainer.take_metrics(metrics)
        self.trainer.log_to_loggers(metrics.logged)

    def _end_batch(self) -> None:
        """What comes after the validation that a batch may end with."""
        if self._step_schedules and self._stepped:
            step_schedules(self.trainer, self._step_schedules, "step", on_plateau=True)
        self.logging_step = self.batches_stepped

    def _finish_epoch(self, engine: Any, done: EpochEnd | None = None) -> None:
        """The end of an epoch, from the part on that is still to be done."""
        trainer = self.trainer
        if done is None:
            done = EpochEnd.BATCHES
            if self._step_schedules and not self.__dict__.pop("_epoch_schedules_stepped", False):
                step_schedules(trainer, self._step_schedules, "epoch", on_plateau=False)
        self.epoch_end = done
        self.logging_step = max(0, self.batches_stepped - 1)
        if done < EpochEnd.VALIDATION:
            self._end_last_batch()
            self.epoch_end = EpochEnd.VALIDATION
        if self.results.in_batches:
            trainer.take_metrics(self.results.metrics())
            self.results.in_batches = False
        if done < EpochEnd.HOOKS:
            self.results.close_epoch()
            if self._outputs is not None:
                old_style.end_epoch(self.module.training_epoch_end, self._outputs, self.results, "training")
            self.epoch_end = EpochEnd.HOOKS
            self._call_epoch_end()
        if self._step_schedules:
            step_schedules(trainer, self._step_schedules, "epoch", on_plateau=True)
        self._close_epoch(engine.state)
        ended_by_steps = self._ends_by_steps and trainer.global_step >= trainer.max_steps
        if ended_by_steps or trainer.can_stop():
            engine.terminate()

    def _end_last_batch(self) -> None:
        """The validation that an epoch ends with, and what comes after the validation of any batch."""
        if not self._skipped and self._is_time_to_validate(at_end=True):
            self._validate()
        self._skipped = False
        if self.is_last_batch:
            self._end_batch()
            self.logging_step = max(0, self.batches_stepped - 1)

    def _close_epoch(self, state: Any) -> None:
        """Log what the epoch came to, and count it."""
        trainer = self.trainer
        self.results.close_epoch()
        metrics = self.results.metrics()
        trainer.take_metrics(metrics)
        trainer.log_to_loggers(metrics.logged)
        self.results.end_epoch()
        self.logging_step = self.batches_stepped
        self.epoch_end = None
        self.epochs_completed = state.epoch
        trainer.training = True
        if state.epoch < state.max_epochs and state.iteration >= (state.epoch_length or 0) * state.max_epochs:
            state.epoch_length = None  # epochs of different lengths: the engine must not count iterations

    def _call_epoch_end(self) -> None:
        """Those who monitor come last, so that they find what the module logs there."""
        monitoring = [one for one in self.trainer.callbacks if monitors(one)]
        others = [one for one in self.trainer.callbacks if one not in monitoring]
        name = "on_train_epoch_end"
        for hook in (
            *self.hooks.of_callbacks(name, others),
            *self.hooks.of_module(name),
            *self.hooks.of_callbacks(name, monitoring),
        ):
            hook()

    # ------------------------------------------------------------------------------------------------ validation

    def _is_time_to_validate(self, *, at_end: bool = False) -> bool:
        trainer = self.trainer
        if not trainer.enable_validation or self._validated_at == self.total_batches:
            return False
        if trainer.val_check_seconds is not None:
            return bool(time.monotonic() - self._last_validation >= trainer.val_check_seconds)
        every_epochs = trainer.check_val_every_n_epoch
        if every_epochs is not None and (self.engine.state.epoch) % every_epochs:
            return False
        if at_end and trainer.should_stop and trainer.can_stop():
            return True
        assert self.val_check_batch is not None
        if self.val_check_batch == float("inf"):
            return at_end and self.is_last_batch
        batches = self.total_batches if every_epochs is None else self.batch_idx + 1
        return batches > 0 and batches % self.val_check_batch == 0

    def _validate(self) -> None:
        self._validated_at = self.total_batches
        trainer = self.trainer
        trainer.take_metrics(self.results.metrics())
        stage = trainer.state.stage
        trainer.state.stage = RunningStage.VALIDATING
        if self._stepped:
            self.module.on_validation_model_zero_grad()
        trainer.validation.run()
        trainer.state.stage = stage
        self._last_validation = time.monotonic()


def _reads_outputs(owner: Any) -> bool:
    """Whether ``on_train_batch_end`` may look at the loss: of ours only ``SpikeDetection`` does."""
    if not is_overridden("on_train_batch_end", owner):
        return False
    where = getattr(owner.on_train_batch_end, "__module__", "")
    return not where.startswith(f"{__package__}.callbacks.") or where.endswith(".spike")


def _as_outputs(output: Any, group_size: int = 1) -> Any:
    """What a step returned, as ``on_train_batch_end`` gets it: the loss is divided by the size of its group."""
    if output is None:
        return {}
    if isinstance(output, torch.Tensor):
        return {"loss": output if group_size == 1 else output / group_size}
    if group_size > 1 and isinstance(output, Mapping) and "loss" in output:
        return {**output, "loss": output["loss"] / group_size}
    return output


def reevaluates(configured: Configured) -> bool:
    """Whether an optimizer evaluates the loss several times in one step, as LBFGS does."""
    return any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in configured.optimizers)
