"""Every handler of Ignite does on our engine what it does on Ignite's: the same files, weights, rates and words."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ignite.handlers
import pytest
import torch
from ignite.engine import Events
from ignite.handlers import (
    BasicTimeProfiler,
    BatchSizeScheduler,
    Checkpoint,
    ConcatScheduler,
    CosineAnnealingScheduler,
    DiskSaver,
    EarlyStopping,
    EMAHandler,
    EpochOutputStore,
    ExpStateScheduler,
    FastaiLRFinder,
    FBResearchLogger,
    HandlersTimeProfiler,
    LambdaStateScheduler,
    LinearCyclicalScheduler,
    LRScheduler,
    ModelCheckpoint,
    MultiStepStateScheduler,
    ParamGroupScheduler,
    PiecewiseLinear,
    PiecewiseLinearStateScheduler,
    ProgressBar,
    ReduceLROnPlateauScheduler,
    StepStateScheduler,
    TensorboardLogger,
    TerminateOnNan,
    TimeLimit,
    Timer,
    create_lr_scheduler_with_warmup,
    global_step_from_engine,
)
from ignite.handlers.param_scheduler import CyclicalScheduler, ParamScheduler
from ignite.handlers.state_param_scheduler import StateParamScheduler
from ignite.handlers.tensorboard_logger import GradsScalarHandler, WeightsScalarHandler
from ignite.metrics import Accuracy, RunningAverage
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from tests.interop.training import Training, batches
from tests.interop.vendors_loggers import LOGGERS, SCALARS

row = pytest.mark.row

# They only have subclasses, which have rows of their own.
ABSTRACT = {"BaseParamScheduler"}


def test_every_handler_of_ignite_has_a_row() -> None:
    marks = [mark for test in globals().values() for mark in _marks_of(test)]
    rows = {name for mark in marks if mark.name == "row" for name in mark.args[1:]}
    assert set(ignite.handlers.__all__) - ABSTRACT <= rows


def _marks_of(test: Any) -> list[pytest.Mark]:
    marks = list(getattr(test, "pytestmark", []))
    parameters = [parameter for mark in marks if mark.name == "parametrize" for parameter in mark.args[1]]
    return marks + [mark for parameter in parameters for mark in getattr(parameter, "marks", [])]


# ------------------------------------------------------------------------------------------------------ checkpoints


def contents_of(directory: Path) -> dict[str, Any]:
    return {path.name: torch.load(path, weights_only=True) for path in sorted(directory.iterdir())}


@row("ignite", "Checkpoint", "DiskSaver")
def test_checkpoint_keeps_the_two_best_and_a_new_program_goes_on_from_the_last(outcome_of) -> None:
    def program(engine_class, directory):
        def build():
            training = Training(engine_class)
            objects = {"model": training.model, "optimizer": training.optimizer, "trainer": training.trainer}
            checkpoint = Checkpoint(
                objects,
                DiskSaver(directory, require_empty=False),
                n_saved=2,
                filename_prefix="best",
                score_function=lambda engine: -engine.state.output,
                score_name="negative_loss",
                global_step_transform=global_step_from_engine(training.trainer),
            )
            training.trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)
            return training, objects, checkpoint

        training, _, checkpoint = build()
        training.trainer.run(batches(), max_epochs=4)
        saved = contents_of(directory)

        again, objects, _ = build()
        content = saved[Path(checkpoint.last_checkpoint).name]
        Checkpoint.load_objects(objects, content)
        iterations = again.note(Events.ITERATION_STARTED, lambda: again.trainer.state.iteration)
        again.trainer.run(batches(), max_epochs=6)
        return saved, content["trainer"]["iteration"], iterations, again.model.state_dict()

    saved, went_on_from, iterations, _ = outcome_of(program)
    assert len(saved) == 2
    assert all(
        name.startswith("best_checkpoint_") and set(saved[name]) == {"model", "optimizer", "trainer"} for name in saved
    )
    assert iterations == list(range(went_on_from + 1, 37))


@row("ignite", "ModelCheckpoint")
def test_model_checkpoint_keeps_the_best_epoch(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        Accuracy().attach(training.evaluator, "accuracy")
        keeper = ModelCheckpoint(
            directory,
            "run",
            n_saved=1,
            score_name="accuracy",
            global_step_transform=global_step_from_engine(training.trainer),
        )
        keeper.score_function = Checkpoint.get_default_score_fn("accuracy")
        training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: training.evaluator.run(batches(2, seed=2)))
        training.evaluator.add_event_handler(Events.COMPLETED, keeper, {"model": training.model})
        scores = training.note(Events.EPOCH_COMPLETED, lambda: training.evaluator.state.metrics["accuracy"])
        training.trainer.run(batches(), max_epochs=4)
        return scores, contents_of(directory)

    scores, saved = outcome_of(program)
    (name,) = saved
    assert name == f"run_model_{scores.index(max(scores)) + 1}_accuracy={max(scores):.4f}.pt"


# ------------------------------------------------------------------------------------------------ ending and timing


@row("ignite", "EarlyStopping")
def test_early_stopping_ends_the_run_after_its_patience(outcome_of) -> None:
    def program(engine_class, directory):
        scores = iter([0.1, 0.4, 0.3, 0.4, 0.5, 0.5, 0.5])
        trainer, evaluator = engine_class(lambda engine, batch: batch), engine_class(lambda engine, batch: next(scores))
        stopping = EarlyStopping(2, lambda engine: engine.state.output, trainer)
        evaluator.add_event_handler(Events.COMPLETED, stopping)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
        state = trainer.run(range(3), max_epochs=10)
        return state.epoch, state.iteration, dict(stopping.state_dict())

    assert outcome_of(program)[:2] == (4, 12)


@row("ignite", "TerminateOnNan")
def test_terminate_on_nan_ends_the_run_at_the_first_output_that_is_no_number(outcome_of) -> None:
    def program(engine_class, directory):
        engine = engine_class(lambda engine, batch: {"loss": torch.tensor(1.0), "losses": [float(batch)]})
        engine.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
        state = engine.run([1, 2, "inf", 4])
        return state.iteration

    assert outcome_of(program) == 3


@row("ignite", "TimeLimit")
def test_time_limit_ends_the_run_after_the_iteration_in_which_it_is_over(outcome_of) -> None:
    def program(engine_class, directory):
        limit = TimeLimit(10)

        def step(engine, batch):
            if engine.state.iteration == 3:
                limit.start_time -= 11  # as if it had taken eleven seconds

        engine = engine_class(step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, limit)
        return engine.run(range(9)).iteration

    assert outcome_of(program) == 3


@row("ignite", "Timer")
def test_timer_counts_its_steps_and_averages_over_them(outcome_of) -> None:
    def program(engine_class, directory):
        engine = engine_class(lambda engine, batch: None)
        timer = Timer(average=True)
        timer.attach(
            engine,
            start=Events.EPOCH_STARTED,
            resume=Events.ITERATION_STARTED,
            pause=Events.ITERATION_COMPLETED,
            step=Events.ITERATION_COMPLETED,
        )
        counted = []

        @engine.on(Events.EPOCH_COMPLETED)
        def look():
            counted.append((timer.step_count, 0 < timer.value() == timer.total / timer.step_count))

        engine.run(range(5), max_epochs=2)
        return counted

    assert outcome_of(program) == [(5.0, True)] * 2


@row("ignite", "BasicTimeProfiler")
def test_basic_time_profiler_measures_each_event_and_lists_its_handlers(outcome_of) -> None:
    def program(engine_class, directory):
        engine = engine_class(lambda engine, batch: None)
        profiler = BasicTimeProfiler()
        profiler.attach(engine)

        @engine.on(Events.ITERATION_COMPLETED)
        def listen(engine):
            """So that there is something to measure."""

        engine.run(range(5), max_epochs=2)
        results = profiler.get_results()
        statistics = {event: of for event, of in results["event_handlers_stats"].items() if event != "total_time"}
        measured = [event for event, times in statistics.items() if times["total"] != "not triggered"]
        steps = profiler.processing_times
        return (
            measured,
            results["event_handlers_names"],
            steps.shape,
            bool((steps > 0).all()),
            len(profiler.dataflow_times),
        )

    measured, names, shape, all_measured, batches_measured = outcome_of(program)
    assert "ITERATION_COMPLETED" in measured
    assert any("listen" in name for name in names["ITERATION_COMPLETED_names"])
    assert (shape, all_measured, batches_measured) == ((10,), True, 10)


@row("ignite", "HandlersTimeProfiler")
def test_handlers_time_profiler_measures_each_handler_each_time_it_fires(outcome_of) -> None:
    def program(engine_class, directory):
        engine = engine_class(lambda engine, batch: None)
        profiler = HandlersTimeProfiler()

        fired = []

        def each_iteration():
            fired.append("each iteration")

        def each_second():
            fired.append("each second")
            time.sleep(0.001)  # behind a filter it takes what is shorter than 0.1 ms for the filter alone

        engine.add_event_handler(Events.ITERATION_COMPLETED, each_iteration)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), each_second)
        profiler.attach(engine)
        engine.run(range(5), max_epochs=2)
        times = {
            name.split(".")[-1]: of for name, of in profiler.event_handlers_times[Events.ITERATION_COMPLETED].items()
        }
        measured = len(times["each_iteration"]), len(times["each_second"]) >= 5, len(profiler.processing_times)
        return fired, measured, [line[:2] for line in profiler.get_results()]

    fired, measured, _ = outcome_of(program)
    assert (fired.count("each iteration"), fired.count("each second")) == (10, 5)
    assert measured == (10, True, 10)


# -------------------------------------------------------------------------------------------------- weights and data


@row("ignite", "EMAHandler")
def test_ema_handler_averages_the_weights_with_its_warmup(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        ema = EMAHandler(training.model, momentum=0.1, momentum_warmup=0.5, warmup_iters=4)
        ema.attach(training.trainer, event=Events.ITERATION_COMPLETED(every=2))
        momenta = training.note(Events.ITERATION_COMPLETED(every=2), lambda: training.trainer.state.ema_momentum)
        training.trainer.run(batches(), max_epochs=2)
        return momenta, ema.ema_model.state_dict(), training.model.state_dict()

    momenta, average, weights = outcome_of(program)
    assert momenta[0] == 0.5
    assert momenta[-1] == 0.1
    assert not torch.equal(average["0.weight"], weights["0.weight"])


@row("ignite", "EpochOutputStore")
def test_epoch_output_store_keeps_the_outputs_of_the_epoch(outcome_of) -> None:
    def program(engine_class, directory):
        engine = engine_class(lambda engine, batch: (batch, engine.state.epoch))
        store = EpochOutputStore(output_transform=lambda output: output[0] * output[1])
        store.attach(engine, "kept")
        kept = []
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: kept.append(list(engine.state.kept)))
        engine.run([1, 2, 3], max_epochs=2)
        return kept

    assert outcome_of(program) == [[1, 2, 3], [2, 4, 6]]


@row("ignite", "FastaiLRFinder")
def test_lr_finder_finds_the_same_rate_and_leaves_model_and_trainer_as_they_were(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class, lr=0.01)
        before = {name: value.clone() for name, value in training.model.state_dict().items()}
        finder = FastaiLRFinder()
        with finder.attach(
            training.trainer,
            {"model": training.model, "optimizer": training.optimizer},
            num_iter=30,
            end_lr=100.0,
            diverge_th=1.5,
        ) as found:
            found.run(batches())
        after = {name: value.clone() for name, value in training.model.state_dict().items()}
        found_at = finder.get_results()
        finder.apply_suggested_lr(training.optimizer)
        training.trainer.run(batches(), max_epochs=1)
        return (
            before,
            after,
            found_at,
            finder.lr_suggestion(),
            training.trainer.state.iteration,
            training.model.state_dict(),
        )

    before, after, found, suggestion, iterations, _ = outcome_of(program)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert 10 < len(found["lr"]) <= 30
    assert 0.01 <= suggestion < 100
    assert iterations == 6


# -------------------------------------------------------------------------------------------------------- schedules


class Halving(ParamScheduler):
    """A schedule as users write them."""

    def get_param(self) -> float:
        return 0.5**self.event_index


class Sawtooth(CyclicalScheduler):
    """A cyclical schedule as users write them."""

    def get_param(self) -> float:
        return self.start_value + self.event_index / self.cycle_size * (self.end_value - self.start_value)


def concatenated(optimizer: Any) -> Any:
    parts = [
        LinearCyclicalScheduler(optimizer, "lr", 1.0, 0.5, 6),
        CosineAnnealingScheduler(optimizer, "lr", 0.5, 0.1, 12),
    ]
    return ConcatScheduler(parts, durations=[4])


def of_a_group(optimizer: Any) -> Any:
    return ParamGroupScheduler(
        [LinearCyclicalScheduler(optimizer, "lr", 1.0, 0.0, 8, save_history=True)], ["linear"], save_history=True
    )


SCHEDULES = {
    "CosineAnnealingScheduler": lambda optimizer: CosineAnnealingScheduler(
        optimizer, "lr", 1.0, 0.1, 8, cycle_mult=2.0, warmup_duration=2
    ),
    "LinearCyclicalScheduler": lambda optimizer: LinearCyclicalScheduler(optimizer, "lr", 0.1, 1.0, 8, monotonic=True),
    "PiecewiseLinear": lambda optimizer: PiecewiseLinear(optimizer, "lr", [(2, 1.0), (6, 0.5), (9, 0.0)]),
    "ConcatScheduler": concatenated,
    "ParamGroupScheduler": of_a_group,
    "LRScheduler": lambda optimizer: LRScheduler(StepLR(optimizer, 4, gamma=0.1), save_history=True),
    "create_lr_scheduler_with_warmup": lambda optimizer: create_lr_scheduler_with_warmup(StepLR(optimizer, 4), 0.0, 3),
    "ParamScheduler": lambda optimizer: Halving(optimizer, "lr", save_history=True),
    "CyclicalScheduler": lambda optimizer: Sawtooth(optimizer, "lr", 0.1, 1.0, 5),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=row("ignite", name)) for name in SCHEDULES])
def test_a_schedule_sets_the_same_rate_in_each_iteration(outcome_of, name) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        training.trainer.add_event_handler(Events.ITERATION_STARTED, SCHEDULES[name](training.optimizer))
        rates = training.note(Events.ITERATION_COMPLETED, training.learning_rate)
        training.trainer.run(batches(), max_epochs=3)
        return rates, getattr(training.trainer.state, "param_history", None), training.model.state_dict()

    rates, _, _ = outcome_of(program)
    assert len(rates) == 18
    assert len(set(rates)) > 2


@row("ignite", "ReduceLROnPlateauScheduler")
def test_reduce_lr_on_plateau_reads_the_evaluators_metric(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        errors = iter([3.0, 2.0, 2.5, 2.5, 2.5, 2.5])
        evaluator = engine_class(lambda engine, batch: next(errors))
        evaluator.add_event_handler(
            Events.COMPLETED, lambda: evaluator.state.metrics.update(error=evaluator.state.output)
        )
        schedule = ReduceLROnPlateauScheduler(
            training.optimizer, metric_name="error", trainer=training.trainer, save_history=True, factor=0.5, patience=1
        )
        evaluator.add_event_handler(Events.COMPLETED, schedule)
        training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
        rates = training.note(Events.EPOCH_COMPLETED, training.learning_rate)
        training.trainer.run(batches(2), max_epochs=6)
        return rates, training.trainer.state.param_history

    assert outcome_of(program)[0] == [0.1, 0.1, 0.1, 0.05, 0.05, 0.025]


@row("ignite", "BatchSizeScheduler")
def test_batch_size_scheduler_changes_the_loader_from_the_next_epoch_on(outcome_of) -> None:
    def program(engine_class, directory):
        loader = DataLoader(torch.arange(24.0), batch_size=2)
        engine = engine_class(lambda engine, batch: len(batch))
        engine.add_event_handler(
            Events.EPOCH_STARTED, BatchSizeScheduler(loader, lambda index: 2 + 2 * index, save_history=True)
        )
        sizes = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: sizes.append(engine.state.output))
        engine.run(loader, max_epochs=3, epoch_length=4)
        return sizes, engine.state.param_history

    sizes, history = outcome_of(program)
    assert history == {"batch_size": [2, 4, 6]}
    assert len(set(sizes)) > 1


class Doubling(StateParamScheduler):
    """A schedule of the state as users write them."""

    def get_param(self) -> float:
        return 2.0**self.event_index


STATE_SCHEDULES = {
    "ExpStateScheduler": (lambda: ExpStateScheduler(2.0, 0.5, "parameter", create_new=True), [1.0, 0.5, 0.25, 0.125]),
    "LambdaStateScheduler": (
        lambda: LambdaStateScheduler(lambda index: 3.0 * index, "parameter", create_new=True),
        [3.0, 6.0, 9.0, 12.0],
    ),
    "MultiStepStateScheduler": (
        lambda: MultiStepStateScheduler(1.0, 0.5, [2, 3], "parameter", create_new=True),
        [1.0, 0.5, 0.25, 0.25],
    ),
    "PiecewiseLinearStateScheduler": (
        lambda: PiecewiseLinearStateScheduler([(1, 1.0), (3, 0.0)], "parameter", create_new=True),
        [1.0, 0.5, 0.0, 0.0],
    ),
    "StateParamScheduler": (lambda: Doubling("parameter", create_new=True), [2.0, 4.0, 8.0, 16.0]),
    "StepStateScheduler": (
        lambda: StepStateScheduler(1.0, 0.5, 2, "parameter", create_new=True),
        [1.0, 0.5, 0.5, 0.25],
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=row("ignite", name)) for name in STATE_SCHEDULES])
def test_a_schedule_of_the_state_sets_the_same_value_in_each_epoch(outcome_of, name) -> None:
    make, values = STATE_SCHEDULES[name]

    def program(engine_class, directory):
        engine = engine_class(lambda engine, batch: None)
        make().attach(engine, Events.EPOCH_COMPLETED)
        seen = []
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(engine.state.parameter))
        engine.run([0, 1], max_epochs=4)
        return seen

    assert outcome_of(program) == values


# ---------------------------------------------------------------------------------------------------------- loggers


@row("ignite", "ProgressBar")
def test_progress_bar_writes_the_same_bars(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        RunningAverage(output_transform=lambda output: output).attach(training.trainer, "loss")
        bar = io.StringIO()
        ProgressBar(file=bar, persist=True, desc="train").attach(training.trainer, ["loss"])
        ProgressBar(file=bar, desc="output").attach(training.trainer, output_transform=lambda output: {"now": output})
        training.trainer.run(batches(), max_epochs=2)
        return re.sub(r"\[\d\d:\d\d<[^,\]]*(, +[\d.?]+(it/s|s/it))?", "[time", bar.getvalue())

    written = outcome_of(program)
    assert "train [1/2]: [6/6]" in written
    assert ", loss=" in written
    assert ", now=" in written


def scalars_in(directory: Path) -> list[tuple[int, str, float]]:
    """The step, tag and value of each scalar in the event files of TensorBoard."""
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401, PLC0415 - says that it is installed
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

    scalars = []
    for path in sorted(directory.rglob("events.*")):
        content = path.read_bytes()
        while content:  # a record is a length, its checksum, an event, and its checksum
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            content = content[12 + length + 4 :]
    return scalars


@row("ignite", "TensorboardLogger", "global_step_from_engine")
def test_tensorboard_logger_writes_the_same_scalars_at_the_same_steps(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        Accuracy().attach(training.evaluator, "accuracy")
        training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: training.evaluator.run(batches(2, seed=2)))
        with TensorboardLogger(log_dir=directory) as logger:
            every_second = Events.ITERATION_COMPLETED(every=2)
            logger.attach_output_handler(
                training.trainer, every_second, tag="training", output_transform=lambda output: {"loss": output}
            )
            logger.attach_opt_params_handler(training.trainer, Events.ITERATION_STARTED, optimizer=training.optimizer)
            logger.attach(training.trainer, WeightsScalarHandler(training.model), every_second)
            logger.attach(training.trainer, GradsScalarHandler(training.model), Events.ITERATION_COMPLETED(once=5))
            logger.attach_output_handler(
                training.evaluator,
                Events.COMPLETED,
                tag="validation",
                metric_names="all",
                global_step_transform=global_step_from_engine(training.trainer),
            )
            training.trainer.run(batches(), max_epochs=2)
        return scalars_in(directory)

    scalars = outcome_of(program)
    assert [step for step, tag, _ in scalars if tag == "training/loss"] == [2, 4, 6, 8, 10, 12]
    assert [step for step, tag, _ in scalars if tag == "validation/accuracy"] == [1, 2]
    assert sum(tag == "lr/group_0" for _, tag, _ in scalars) == 12
    assert {step for step, tag, _ in scalars if tag.startswith("grads")} == {5}


@row("ignite", "FBResearchLogger")
def test_fbresearch_logger_says_the_same(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        logger = logging.getLogger("fbresearch")
        logger.setLevel(logging.INFO)
        log = logging.StreamHandler(io.StringIO())
        logger.addHandler(log)
        words = FBResearchLogger(logger, show_output=True)
        words.attach(
            training.trainer,
            "Train",
            every=3,
            optimizer=training.optimizer,
            output_transform=lambda output: {"loss": output},
        )
        training.trainer.run(batches(), max_epochs=2)
        logger.removeHandler(log)
        return re.sub(r"(\d+:\d\d:\d\d|\d+\.\d+ s)", "time", log.stream.getvalue())

    said = outcome_of(program).splitlines()
    assert said[0] == "Train: start epoch [1/2]"
    assert re.match(r"Epoch \[1/2\]  \[3/6\]:  ETA: time  lr: 0\.10000  loss: \d", said[1])
    assert said[-1].startswith("Train: run completed")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=row("ignite", name)) for name in LOGGERS])
@pytest.mark.parametrize("column", ["camshaft", "ignite"])
def test_a_vendors_logger_writes_the_same_scalars_offline(name, column, tmp_path) -> None:
    """In a process of its own, because these clients start threads and wait for the end of the program."""
    module, _ = LOGGERS[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: `make interop` does so")
    script = Path(__file__).with_name("vendors_loggers.py")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", script, name, column],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / "scalars.json").read_text()) == SCALARS
