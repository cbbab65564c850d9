"""Every Camshaft handler works on Ignite's engine, and on one of ``create_supervised_trainer`` or says why not."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from typing import Any

import pytest
import torch
from ignite.engine import Engine as IgniteEngine
from ignite.engine import create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy, Average
from torch import nn
from torch.nn import functional as F

import camshaft.handlers
from camshaft.engine import Engine, Events, Phase
from camshaft.handlers import (
    AMP,
    EMA,
    BatchSizeFinder,
    Checkpoint,
    Compile,
    CSVLogger,
    CUDAGraph,
    DataParallel,
    Device,
    DistributedSampling,
    EarlyStopping,
    Evaluate,
    FastDevRun,
    Freeze,
    FullySharded,
    GradientAccumulation,
    GradientClipping,
    GradientMonitor,
    Handler,
    JSONLinesLogger,
    LivePlot,
    Logger,
    LRFinder,
    LRScheduler,
    Metrics,
    On,
    OptimizerStep,
    Overfit,
    Preemption,
    Prefetch,
    Profiler,
    ProgressBar,
    RichProgress,
    RunRecord,
    SanityCheck,
    TensorBoardLogger,
    TerminateOnNaN,
    TimeLimit,
    Trace,
)
from tests.interop.test_ignite_handlers_on_our_engine import scalars_in
from tests.interop.training import batches

row = pytest.mark.row

ALL = ["camshaft", "ignite", "supervised"]
WITH_OPTIMIZER_STEP, WITH_ITS_OWN_BACKWARD = ALL[:2], ALL[2:]


def test_every_handler_has_a_row() -> None:
    """A new handler needs at least one test here."""
    marks = [mark for test in globals().values() for mark in getattr(test, "pytestmark", []) if mark.name == "row"]
    rows = {name.split("(")[0] for mark in marks for name in mark.args[1:]}
    assert set(camshaft.handlers.__all__) <= rows


class Training:
    """A linear model and its trainer: an engine whose step returns the loss, or Ignite's supervised trainer."""

    def __init__(self, column: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.trainer: Any
        if column == "supervised":
            self.trainer = create_supervised_trainer(self.model, self.optimizer, F.cross_entropy)
            self.evaluator = create_supervised_evaluator(self.model)
        else:
            engine_class = {"camshaft": Engine, "ignite": IgniteEngine}[column]
            self.trainer = engine_class(self.training_step)
            self.evaluator = engine_class(lambda engine, batch: (self.model(batch[0]), batch[1]))
            OptimizerStep(self.optimizer).attach(self.trainer)

    def training_step(self, engine: Any, batch: Any) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def attach(self, *handlers: Any) -> Training:
        for handler in handlers:
            handler.attach(self.trainer)
        return self

    def run(self, max_epochs: int = 1) -> Any:
        return self.trainer.run(batches(), max_epochs=max_epochs)


@pytest.fixture(params=ALL)
def column(request) -> str:
    """The kind of engine that a test runs on."""
    return request.param


@pytest.fixture
def training(column) -> Training:
    return Training(column)


@pytest.fixture
def refused(training, record_property):
    """Expects a run with this handler to be refused in a sentence that names OptimizerStep."""

    def expect(handler: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="OptimizerStep") as error:
            training.attach(handler).run()
        record_property("refused", f"{handler!r}: {error.value}")

    return expect


def weights_of_a_loop(max_epochs: int = 1, after_step: Any = None) -> torch.Tensor:
    """The same training written by hand."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(max_epochs):
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if after_step is not None:
                after_step(model.weight.detach())
    return model.weight.detach()


on_their_own_backward = pytest.mark.parametrize("column", WITH_ITS_OWN_BACKWARD)
with_optimizer_step = pytest.mark.parametrize("column", WITH_OPTIMIZER_STEP)


# --------------------------------------------------------------------------------------------------------- the step


@row("camshaft", "OptimizerStep")
@with_optimizer_step
def test_optimizer_step_trains_as_a_loop_written_by_hand(training) -> None:
    state = training.run(max_epochs=2)
    assert state.optimizer_step == 12
    assert torch.equal(training.model.weight, weights_of_a_loop(max_epochs=2))


@row("camshaft", "OptimizerStep")
@on_their_own_backward
def test_optimizer_step_is_refused_where_the_step_does_its_own_backward(training, refused) -> None:
    refused(OptimizerStep(training.optimizer))


@row("camshaft", "GradientAccumulation")
@with_optimizer_step
def test_gradient_accumulation_steps_once_a_group(training) -> None:
    assert training.attach(GradientAccumulation(4)).run().optimizer_step == 2


@row("camshaft", "GradientAccumulation")
@on_their_own_backward
def test_gradient_accumulation_is_refused_where_the_step_does_its_own_backward(refused) -> None:
    refused(GradientAccumulation(4))


@row("camshaft", "GradientClipping")
@with_optimizer_step
def test_gradient_clipping_bounds_each_step(training) -> None:
    before = training.model.weight.detach().clone()
    state = training.attach(GradientClipping(0.01)).run()
    assert (training.model.weight - before).norm() <= 6 * 0.1 * 0.01
    assert state.metrics["gradient_norm"] > 0.01


@row("camshaft", "GradientClipping")
@on_their_own_backward
def test_gradient_clipping_is_refused_where_the_step_does_its_own_backward(refused) -> None:
    refused(GradientClipping(0.01))


@row("camshaft", 'AMP("bf16")')
def test_amp_in_bf16_goes_around_any_step(training) -> None:
    types = []
    training.model.register_forward_hook(lambda module, inputs, logits: types.append(logits.dtype))
    training.attach(AMP("bf16")).run()
    assert set(types) == {torch.bfloat16}
    assert training.model.weight.dtype == torch.float32
    assert not torch.equal(training.model.weight, weights_of_a_loop())


@row("camshaft", 'AMP("fp16")')
@with_optimizer_step
def test_amp_in_fp16_scales_the_loss(training) -> None:
    amp = AMP("fp16")
    training.attach(amp).run(max_epochs=3)
    assert amp.scalers[0].get_scale() > 1
    assert training.trainer.state.optimizer_step > 0


@row("camshaft", 'AMP("fp16")')
@on_their_own_backward
def test_amp_in_fp16_is_refused_where_the_step_does_its_own_backward(refused) -> None:
    refused(AMP("fp16"))


@row("camshaft", "Device")
def test_device_moves_the_modules_that_the_step_uses_and_each_batch(training) -> None:
    Device("meta").attach(training.evaluator)
    logits, targets = training.evaluator.run(batches(1)).output
    assert logits.device.type == targets.device.type == training.model.weight.device.type == "meta"


@row("camshaft", "EMA")
def test_ema_averages_the_weights_after_each_step(training) -> None:
    ema = EMA(training.model, decay=0.5)
    averages = [training.model.weight.detach().clone()]
    weights_of_a_loop(after_step=lambda weight: averages.append(averages[-1].lerp(weight, 0.5)))
    training.attach(ema).run()
    assert ema.updates == 6
    torch.testing.assert_close(ema.module.weight.detach(), averages[-1])


@row("camshaft", "Freeze")
def test_freeze_lets_parameters_be_until_an_epoch_is_over(training) -> None:
    weights: list[torch.Tensor] = []
    training.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: weights.append(training.model.weight.detach().clone())
    )
    before = training.model.weight.detach().clone()
    head = nn.Linear(3, 3)  # without another trained part the loss would have no graph
    training.optimizer.add_param_group({"params": head.parameters()})
    training.model.register_forward_hook(lambda module, inputs, logits: head(logits))
    training.attach(Freeze(training.model, until_epoch=1)).run(max_epochs=2)
    assert torch.equal(weights[0], before)
    assert not torch.equal(weights[1], before)


@row("camshaft", "LRScheduler")
@pytest.mark.parametrize(("per", "rate"), [("epoch", 0.1 * 0.5**2), ("step", 0.1 * 0.5**12)])
def test_lr_scheduler_counts_epochs_or_optimizer_steps(training, per, rate) -> None:
    schedule = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.5)
    training.attach(LRScheduler(schedule, per)).run(max_epochs=2)
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


# -------------------------------------------------------------------------------------------- measuring and deciding


@row("camshaft", "Metrics")
def test_metrics_measure_what_the_step_returns(training) -> None:
    losses = []
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: losses.append(float(training.trainer.state.output))
    )
    state = training.attach(Metrics(mean_loss=Average())).run()
    assert float(state.metrics["mean_loss"]) == pytest.approx(sum(losses) / 6)


@row("camshaft", "Evaluate")
def test_evaluate_measures_after_each_epoch_in_evaluation_mode(training) -> None:
    modes = []
    Metrics(accuracy=Accuracy()).attach(training.evaluator)
    training.evaluator.add_event_handler(Events.EPOCH_STARTED, lambda: modes.append(training.model.training))
    state = training.attach(Evaluate(training.evaluator, batches(2, seed=2))).run(max_epochs=10)
    assert state.metrics["val_accuracy"] > 0.6
    assert (modes, training.model.training) == ([False] * 10, True)


@row("camshaft", "EarlyStopping")
def test_early_stopping_ends_a_run_that_learns_no_more(training) -> None:
    training.optimizer.param_groups[0]["lr"] = 0.0
    stopping = EarlyStopping("loss", patience=2)
    assert training.attach(stopping).run(max_epochs=10).epoch == 3
    assert stopping.counter == 2


@row("camshaft", "TerminateOnNaN")
def test_terminate_on_nan_ends_a_run_that_diverges(training) -> None:
    guard = TerminateOnNaN()
    training.attach(guard)

    @training.trainer.on(Events.ITERATION_STARTED(once=3))
    def spoil() -> None:
        training.model.weight.data.fill_(torch.nan)

    assert training.run().iteration == 3
    assert guard.found[:2] == (3, "loss")


@row("camshaft", "TimeLimit")
def test_time_limit_ends_a_run(training) -> None:
    limit = TimeLimit("1h")
    training.attach(limit)
    an_hour_later = {"used": 3600.0}
    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=3), limit.load_state_dict, an_hour_later)
    assert training.run().iteration == 3


@row("camshaft", "GradientMonitor")
def test_gradient_monitor_measures_each_layer_or_asks_for_an_optimizer_step(training, column, refused) -> None:
    if column == "supervised":
        refused(GradientMonitor())
    else:
        assert float(training.attach(GradientMonitor()).run().metrics["gradient_norm/model"]) > 0


@row("camshaft", "SanityCheck")
def test_sanity_check_tries_validation_out_before_training(training) -> None:
    seen: list[int] = []
    training.evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: seen.append(training.trainer.state.iteration)
    )
    training.attach(Evaluate(training.evaluator, batches(), epoch_length=1), SanityCheck()).run()
    assert seen == [0, 6]


@row("camshaft", "Overfit")
def test_overfit_trains_on_the_same_batch(training) -> None:
    seen: list[Any] = []
    training.trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: seen.append(engine.state.batch[0]))
    training.attach(Overfit()).run(3)
    assert len(seen) == 3
    assert all(torch.equal(batch, seen[0]) for batch in seen)


@row("camshaft", "FastDevRun")
def test_fast_dev_run_trains_on_one_batch_and_writes_nothing(training, tmp_path) -> None:
    training.attach(CSVLogger(tmp_path / "log.csv"), FastDevRun())
    assert training.run(5).iteration == 1
    assert list(tmp_path.iterdir()) == []


@row("camshaft", "LRFinder")
def test_lr_finder_leaves_the_model_as_it_was(training) -> None:
    weight = training.model.weight.detach().clone()
    curve = LRFinder(steps=20, max_lr=0.1).run(training.trainer, batches())
    assert curve.suggestion() is not None
    assert torch.equal(training.model.weight, weight)


@row("camshaft", "BatchSizeFinder")
def test_batch_size_finder_tries_sizes_out(training) -> None:
    def data(size: int) -> list[Any]:
        return [(torch.ones(size, 4), torch.zeros(size, dtype=torch.long))]

    assert BatchSizeFinder(largest=16).run(training.trainer, data) == 16
    assert training.trainer.state.iteration == 0


@row("camshaft", "Trace")
def test_trace_tells_what_happens(training, column) -> None:
    lines = io.StringIO()
    training.attach(Trace(file=lines)).run()
    assert "iteration 1 ITERATION_STARTED" in lines.getvalue()
    if column == "camshaft":
        assert "OPTIMIZER_STEP_STARTED" in lines.getvalue()


@row("camshaft", "Prefetch")
def test_prefetch_loads_the_same_batches_ahead(column) -> None:
    def run(*handlers: Any) -> Training:
        training = Training(column)
        training.attach(*handlers).run(3)
        return training

    ahead, on_time = run(Prefetch()), run()
    assert ahead.trainer.state.iteration == on_time.trainer.state.iteration == 18
    assert torch.equal(ahead.model.weight, on_time.model.weight)


# ------------------------------------------------------------------------------------------------------------ speed


@row("camshaft", "Compile")
def test_compile_compiles_the_model_that_the_step_calls(training) -> None:
    compiling = Compile(backend="eager")
    training.attach(compiling).run()
    assert compiling.graphs == 1
    torch.testing.assert_close(training.model.weight.detach(), weights_of_a_loop())


@row("camshaft", "CUDAGraph")
@with_optimizer_step
def test_cuda_graph_refuses_to_record_on_the_cpu(training) -> None:
    with pytest.raises(ValueError, match="the engine computes on cpu"):
        training.attach(CUDAGraph()).run()


@row("camshaft", "CUDAGraph")
@on_their_own_backward
def test_cuda_graph_needs_to_own_the_backward(refused, monkeypatch) -> None:
    monkeypatch.setattr("camshaft.handlers.cuda_graph.DEVICES", ("cpu", "cuda"))
    refused(CUDAGraph())


# --------------------------------------------------------------------------------------------------- telling, keeping


@row("camshaft", "CSVLogger")
def test_csv_logger_writes_the_loss_and_the_learning_rate(training, tmp_path) -> None:
    logger = CSVLogger(tmp_path, every=2)
    training.attach(logger).run()
    with logger.path.open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["iteration"]) for line in lines] == [2, 4, 6]
    assert all(float(line["loss"]) > 0 and float(line["learning_rate"]) == 0.1 for line in lines)


@row("camshaft", "JSONLinesLogger")
def test_json_lines_logger_writes_the_loss_and_the_learning_rate(training, tmp_path) -> None:
    logger = JSONLinesLogger(tmp_path, every=2)
    training.attach(logger).run()
    lines = [json.loads(line) for line in logger.path.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    assert all(line["loss"] > 0 and line["learning_rate"] == 0.1 for line in lines)


@row("camshaft", "TensorBoardLogger")
def test_tensorboard_logger_writes_the_loss_and_the_learning_rate(training, tmp_path) -> None:
    training.attach(TensorBoardLogger(tmp_path, every=2)).run()
    scalars = scalars_in(tmp_path)
    assert [step for step, tag, _ in scalars if tag == "loss"] == [2, 4, 6]
    assert [value for _, tag, value in scalars if tag == "learning_rate"] == pytest.approx([0.1] * 3)


@row("camshaft", "ProgressBar")
def test_progress_bar_shows_each_epoch_and_its_loss(training) -> None:
    shown = io.StringIO()
    training.attach(ProgressBar(file=shown)).run(max_epochs=2)
    first, second = shown.getvalue().splitlines()
    assert first.startswith("epoch 1/2: 6 iterations")
    assert "loss=" in second


@row("camshaft", "Profiler")
def test_profiler_tells_where_the_time_went(training, tmp_path, capsys) -> None:
    profiler = Profiler(tmp_path, wait=1, warmup=1, active=2)
    training.attach(profiler).run()
    assert [path.name for path in tmp_path.iterdir()] == ["iterations=3-4.json"]
    assert min(profiler.shares[part] for part in ("data loading", "backward", "optimizer step", "step")) > 0
    assert "iterations 3 to 4" in capsys.readouterr().out


@row("camshaft", "RichProgress")
def test_rich_progress_shows_each_epoch_and_its_loss(training) -> None:
    shown = io.StringIO()
    training.attach(RichProgress(file=shown)).run(max_epochs=2)
    first, second = shown.getvalue().splitlines()
    assert first.startswith("epoch 1/2: 6 iterations")
    assert "loss=" in second


@row("camshaft", "LivePlot")
def test_live_plot_draws_each_epoch(training) -> None:
    figures: list[Any] = []
    training.attach(LivePlot(every=2, show=figures.append)).run(max_epochs=2)
    assert [panel.get_ylabel() for panel in figures[-1].axes] == ["loss", "learning rate"]
    assert len(figures) == 2


@row("camshaft", "RunRecord")
def test_run_record_notes_how_the_run_was_started(training, tmp_path) -> None:
    training.attach(RunRecord(tmp_path)).run()
    assert json.loads((tmp_path / "run.json").read_text())["pid"] == os.getpid()


@row("camshaft", "Logger")
def test_a_logger_of_ones_own_gets_the_records(training) -> None:
    class Keep(Logger):
        kept: list[Any]

        def write(self, records):
            self.kept = [*getattr(self, "kept", []), *records]

    logger = Keep(every=3)
    training.attach(logger).run()
    assert [record.iteration for record in logger.kept] == [3, 6]


@row("camshaft", "Handler", "On")
def test_a_handler_of_ones_own_is_attached_and_detached(training) -> None:
    class Count(Handler):
        listens = (On(Events.ITERATION_COMPLETED(every=2), Phase.MEASURE, "count"),)
        counted = 0

        def count(self, engine):
            self.counted += 1

    handler = Count()
    training.attach(handler).run()
    handler.detach(training.trainer)
    training.run()
    assert handler.counted == 3


@row("camshaft", "Checkpoint")
def test_checkpoint_goes_on_to_the_same_bits(column, tmp_path) -> None:
    def run(max_epochs: int, directory: Any) -> Training:
        training = Training(column)
        training.attach(Checkpoint(directory, model=training.model, optimizer=training.optimizer)).run(max_epochs)
        return training

    run(2, tmp_path / "in parts")
    went_on, whole = run(4, tmp_path / "in parts"), run(4, tmp_path / "whole")
    assert went_on.trainer.state.iteration == whole.trainer.state.iteration == 24
    assert torch.equal(went_on.model.weight, whole.model.weight)


@row("camshaft", "Preemption")
def test_preemption_saves_where_a_signal_came(column, tmp_path) -> None:
    def run(told_at: int | None) -> Any:
        training = Training(column)
        checkpoint = Checkpoint(tmp_path, model=training.model, optimizer=training.optimizer)
        training.attach(checkpoint, Preemption([signal.SIGUSR1]))
        iterations = []
        training.trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda: iterations.append(training.trainer.state.iteration)
        )
        if told_at is not None:
            tell = Events.ITERATION_STARTED(once=told_at)
            training.trainer.add_event_handler(tell, lambda: os.kill(os.getpid(), signal.SIGUSR1))
            with pytest.raises(SystemExit) as left:
                training.run(max_epochs=2)
            assert left.value.code == 75
        else:
            training.run(max_epochs=2)
        return iterations, training.model.weight

    told, _ = run(told_at=4)
    rest, weight = run(told_at=None)
    assert (told, rest) == (list(range(1, 5)), list(range(5, 13)))
    assert torch.equal(weight, weights_of_a_loop(max_epochs=2))


# --------------------------------------------------------------------------------------------------------- processes


@pytest.mark.distributed
@pytest.mark.slow
@row("camshaft", "DistributedSampling", "DataParallel")
@pytest.mark.parametrize("column", ALL)
def test_two_processes_share_the_data_and_train_one_model(parallel, column) -> None:
    first, second = parallel[f"ours on {column}"]
    assert sorted(first["seen"] + second["seen"]) == list(range(32))
    assert first["weights"] == second["weights"]
    for ours, by_hand in zip(first["weights"], first["by hand"], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(by_hand))


@row("camshaft", "DistributedSampling", "DataParallel")
def test_on_one_process_the_data_is_not_shared_nor_the_model_wrapped(training) -> None:
    data = batches()
    training.attach(DistributedSampling(), DataParallel(training.model))
    assert training.trainer.run(data).dataloader is data
    assert type(training.model) is nn.Linear
    assert torch.equal(training.model.weight, weights_of_a_loop())


@row("camshaft", "FullySharded")
def test_on_one_process_the_model_is_not_sharded(training) -> None:
    training.attach(FullySharded(training.model)).run()
    assert type(training.model) is nn.Linear
    assert torch.equal(training.model.weight, weights_of_a_loop())
