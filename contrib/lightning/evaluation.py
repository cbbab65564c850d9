"""Validation, test and prediction: an engine that runs a module's step over one loader after the other."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from camshaft.contrib.lightning import old_style
from camshaft.contrib.lightning.data import Batches, Limited, Source, batches_to_evaluate, set_epoch
from camshaft.contrib.lightning.defaults import silent
from camshaft.contrib.lightning.hooks import Hooks, is_overridden
from camshaft.contrib.lightning.results import Results, as_numbers
from camshaft.contrib.lightning.trainer.states import RunningStage, TrainerFn
from camshaft.engine.engine import Engine
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase, subscribe
from camshaft.handlers.evaluate import evaluation_mode

__all__ = ["Evaluation", "arguments_of_step"]


class Evaluation:
    """Runs one stage of a module: its validation, test or prediction.

    Args:
        trainer: whose callbacks and limits are used.
        stage: which one.

    Attributes:
        engine: that runs; any handler can be attached to it once the trainer has the module.
        predictions: what ``predict_step`` returned, a list for each loader.
        max_batches: how many batches of each loader are used.
        loaders: as they were given.
    """

    def __init__(self, trainer: Any, stage: RunningStage) -> None:
        self.trainer = trainer
        self.stage = stage
        self.results = Results()
        self.engine: Engine | None = None
        self.exists = False
        self.loaders: Any = None
        self.max_batches: list[float] = []
        self.predictions: list[list[Any]] = []
        self.return_predictions = True
        self.batch_idx = -1
        self.dataloader_idx = 0
        self._loaders: list[Batches] = []
        self._made_in_epoch = -1
        self._batches_logged: list[int] = []  # of each loader
        self._outputs: list[Any] | None = None

    # ------------------------------------------------------------------------------------------------ before it runs

    def connect(self, source: Source, hooks: Hooks, epoch_end: Callable[[list[Any]], None] | None = None) -> None:
        """Take a module and its data.

        Args:
            source: of the loaders.
            hooks: of the module and the callbacks.
            epoch_end: called with what the steps of all batches returned, where a module wants that.
        """
        self.source = source
        self.hooks = hooks
        self.loaders = None
        self._epoch_end = epoch_end
        module, name = hooks.module, self.stage.hook_name
        self._step_name = f"{name}_step"
        self.exists = source.exists and (
            self.stage is RunningStage.PREDICTING or is_overridden(self._step_name, module)
        )
        self._batch_start = hooks.of(f"on_{name}_batch_start")
        self._batch_end = hooks.of(f"on_{name}_batch_end")
        self.engine = Engine(self._run_step)
        self.engine.logger = silent  # what is raised is told once, by who catches it
        self.trainer.strategy.prepare_engine(self.engine, self)
        if self._batch_start:
            subscribe(self.engine, Events.ITERATION_STARTED, self._start_batch, Phase.USER)
        subscribe(self.engine, Events.ITERATION_COMPLETED, self._end_batch, Phase.USER)

    def setup_data(self) -> None:
        """Make the loaders, if that is still to be done or it is time to make them anew."""
        every = self.trainer.reload_dataloaders_every_n_epochs if self.trainer.state.fn == "fit" else 0
        is_old = every and self.trainer.current_epoch - self._made_in_epoch >= every
        if self.loaders is not None and not is_old:
            return
        self._made_in_epoch = self.trainer.current_epoch
        self.loaders = self.source.request()
        prefix = self.stage.dataloader_prefix
        limit = getattr(self.trainer, f"limit_{prefix}_batches")
        prepared = self.trainer.strategy.prepared_to_evaluate
        self._loaders = batches_to_evaluate(self.loaders, prefix, limit, prepared)
        self.max_batches = [batches.number for batches in self._loaders]
        step = arguments_of_step(self.trainer.strategy.step(self._step_name), len(self._loaders))
        self._batches_logged = [0] * len(self._loaders)
        step = old_style.with_step_end(self.hooks.module, self.stage.hook_name, step)
        self._step = self.trainer.profiled(step, self._step_name)

    # ------------------------------------------------------------------------------------------------ the run

    def run(self, most_batches: int | None = None) -> list[dict[str, Any]]:
        """Run over all loaders.

        Args:
            most_batches: of each loader; all by default.

        Returns:
            What was logged, a mapping for each loader.
        """
        if not self.exists:
            return []
        self.setup_data()
        if not sum(self._numbers(most_batches)):
            return []
        name = self.stage.hook_name
        before = self.trainer.results
        self.trainer.results = self.results = self.hooks.module._results = Results()
        try:
            # A module that was compiled or sharded may not bear inference tensors.
            # Nor may one that keeps some of them, such as a cache, be trained with them afterwards.
            is_alone = self.trainer.state.fn != TrainerFn.FITTING
            no_grad = torch.inference_mode if self.trainer.inference_mode and is_alone else torch.no_grad
            with no_grad(), self._evaluation_mode():
                self.hooks.call(f"on_{name}_start")
                self.hooks.call(f"on_{name}_epoch_start")
                self._run_loaders(self._numbers(most_batches))
                return self._finish()
        finally:
            self.trainer.results = self.hooks.module._results = before

    def _numbers(self, most_batches: int | None) -> list[float]:
        """How many batches of each loader to run over."""
        return [number if most_batches is None else min(number, most_batches) for number in self.max_batches]

    def _run_loaders(self, numbers: list[float]) -> None:
        assert self.engine is not None
        self._outputs = [] if self._epoch_end is not None else None
        self._logged: list[dict[str, Any]] = []
        self.predictions = [[] for _ in self._loaders]
        for index, (batches, number) in enumerate(zip(self._loaders, numbers, strict=True)):
            self._logged.append({})
            if number == 0:
                continue
            self.dataloader_idx = index
            self.results.dataloader_idx = index if len(self._loaders) > 1 else None
            self.results.in_batches = True
            self.batch_idx = -1
            state = self.engine.state
            state.max_epochs = state.max_iters = state.epoch_length = None  # a run of its own each time
            if self.trainer.state.fn == TrainerFn.FITTING:
                set_epoch(batches.loaders, self.trainer.current_epoch)
            if number == float("inf"):
                self.engine.run(batches.iterable, max_epochs=1)
            elif batches.has_length:
                self.engine.run(batches.iterable, max_epochs=1, epoch_length=int(number))
            else:
                self.engine.run(Limited(batches.iterable, int(number)), max_epochs=1)
            self._finish_loader()
            if self._outputs is not None and len(self._loaders) > 1:
                self._outputs[index:] = [self._outputs[index:]]
        self.results.dataloader_idx = None

    def _finish_loader(self) -> None:
        """What the batches of a loader came to."""
        results, trainer = self.results, self.trainer
        if results.has_steps:
            trainer.take_metrics(results.metrics())
        results.in_batches = False
        results.close_epoch()
        if self.stage is not RunningStage.PREDICTING and not trainer.sanity_checking:
            metrics = results.metrics()
            trainer.take_metrics(metrics)
            self._logged[-1] = metrics.logged

    def _run_step(self, engine: Any, batch: Any) -> Any:
        self.batch_idx += 1
        results = self.results
        results.begin_batch(batch)
        results.hook = self._step_name
        output = self._step(batch, self.batch_idx, self.dataloader_idx)
        if self._outputs is not None:
            self._outputs.append(output)
        return output

    def _start_batch(self, engine: Any) -> None:
        for hook in self._batch_start:
            hook(engine.state.batch, self.batch_idx + 1, *self._several())

    def _end_batch(self, engine: Any) -> None:
        output = engine.state.output
        if self._batch_end:
            for hook in self._batch_end:
                hook(output, engine.state.batch, self.batch_idx, *self._several())
        if self.stage is RunningStage.PREDICTING:
            if self.return_predictions:
                self.predictions[self.dataloader_idx].append(output)
        elif self.results.has_steps and self.trainer.loggers and not self.trainer.sanity_checking:
            metrics = self.results.metrics()
            self.trainer.take_metrics(metrics)
            self.trainer.log_to_loggers(metrics.logged, self._batches_logged[self.dataloader_idx])
            self._batches_logged[self.dataloader_idx] += 1

    def _several(self) -> tuple[int, ...]:
        return (self.dataloader_idx,) if len(self._loaders) > 1 else ()

    def _finish(self) -> list[dict[str, Any]]:
        trainer, name = self.trainer, self.stage.hook_name
        results = self.results
        if self._epoch_end is not None and self._outputs is not None:
            results.hook = f"{name}_epoch_end"
            self._epoch_end(self._outputs)
        self.hooks.call(f"on_{name}_epoch_end")
        results.close_epoch()
        metrics = results.metrics()
        trainer.take_metrics(metrics)
        by_loader = [{**own, **metrics.logged} for own in self._logged]
        if not trainer.sanity_checking and self.stage is not RunningStage.PREDICTING:
            trainer.log_to_loggers({name: value for logged in by_loader for name, value in logged.items()})
        self.hooks.call(f"on_{name}_end")
        results.end_epoch()
        if self._epoch_end is not None:  # in early 2020 everything that it returned was told
            by_loader = [{**values, **metrics.callback} for values in by_loader]
        return [as_numbers(values) for values in by_loader]

    @contextlib.contextmanager
    def _evaluation_mode(self) -> Any:
        """The module in evaluation mode, and afterwards each of its parts in the mode that it had."""
        module, name = self.hooks.module, self.stage.hook_name
        if not is_overridden(f"on_{name}_model_eval", module) and not is_overridden(f"on_{name}_model_train", module):
            with evaluation_mode([module]):
                yield
            return
        getattr(module, f"on_{name}_model_eval")()
        try:
            yield
        finally:
            getattr(module, f"on_{name}_model_train", module.train)()


def arguments_of_step(step: Callable[..., Any], loaders: int) -> Callable[[Any, int, int], Any]:
    """``step`` to be called with batch, batch index and loader index, of which it is given those that it takes.

    Args:
        step: of a module.
        loaders: how many there are; the index is needed from two on.

    Raises:
        ValueError: there are several loaders, but it does not take the index.

    Example:
        >>> arguments_of_step(lambda batch: batch, 1)("batch", 0, 0)
        'batch'
    """
    parameters = list(inspect.signature(step).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    most = 3 if any(one.kind is one.VAR_POSITIONAL for one in parameters) else len(positional)
    needed = sum(one.default is one.empty for one in positional)
    if loaders > 1 and most < 3:
        raise ValueError(
            f"There are {loaders} loaders, so {getattr(step, '__name__', 'the step')}() must take dataloader_idx as "
            "its third argument: (self, batch, batch_idx, dataloader_idx=0)."
        )
    if needed > 3:
        raise ValueError(
            f"{getattr(step, '__name__', 'The step')}{inspect.signature(step)} has more arguments than batch, "
            "batch_idx and dataloader_idx."
        )
    if loaders > 1 or needed == 3:
        return step
    if "batch_idx" not in inspect.signature(step).parameters and needed < 2 and most < 2:
        return lambda batch, batch_idx, dataloader_idx: step(batch)
    return lambda batch, batch_idx, dataloader_idx: step(batch, batch_idx)
