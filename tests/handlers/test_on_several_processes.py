"""Handlers on real processes that see different losses and clocks: all decide alike, and only the first tells."""

import csv
import io
import math
import time

import pytest
import torch
import torchmetrics
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import Average
from torch import nn

from camshaft.engine import Engine, Events, Phase
from camshaft.engine.distributed import gather, rank
from camshaft.handlers import (
    CSVLogger,
    EarlyStopping,
    Evaluate,
    GradientAccumulation,
    Handler,
    LRScheduler,
    Metrics,
    On,
    OptimizerStep,
    ProgressBar,
    TensorBoardLogger,
    TerminateOnNaN,
    TimeLimit,
)
from tests.ranks import on_ranks, values_of_ranks

pytestmark = pytest.mark.distributed


class Saver(Handler):
    """Notes at which iterations something would be saved, and whether the run was about to end."""

    listens = (On(Events.ITERATION_COMPLETED(every=4), Phase.SAVE, "save"),)

    def __init__(self):
        self.saved = []

    def save(self, engine):
        self.saved.append([engine.state.iteration, bool(engine.should_terminate)])


def losses_of(*by_rank):
    """A step whose loss is the next of this rank's values."""
    values = iter(by_rank[rank()])
    return lambda engine, batch: torch.tensor(next(values))


def stops_early(attached):
    # The mean improves twice, though the first rank's own never does and the second rank's own always.
    stopping = EarlyStopping("loss", patience=2)
    engine = attached(losses_of([1.0, 1.0, 1.0, 3.0, 5.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), stopping)
    return [engine.run([0], max_epochs=6).epoch, stopping.monitor.best]


def steps_on_plateau(attached):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    step = losses_of([4.0, 4.0, 2.0, 2.0], [2.0, 1.0, 4.0, 3.0])  # 3, 2.5, 3, 2.5
    attached(step, LRScheduler(plateau, monitor="loss", at=Events.EPOCH_COMPLETED)).run([0], max_epochs=4)
    return optimizer.param_groups[0]["lr"]


def weighs(attached):
    weight = nn.Parameter(torch.ones(()))
    stopping = EarlyStopping("loss")
    engine = attached(
        lambda engine, batch: {"loss": weight * 0 + 1.0 + rank(), "tokens": [3, 1][rank()]},
        OptimizerStep(torch.optim.SGD([weight], lr=0.1)),
        GradientAccumulation(2, weight="tokens"),
        stopping,
    )
    engine.run([0, 0])
    return stopping.monitor.best


def is_out_of_time(attached):
    limit = TimeLimit([3600, 0.05][rank()])
    engine = attached(lambda engine, batch: time.sleep(0.001), limit)
    iteration = engine.run(range(5000)).iteration
    resumed = TimeLimit([3600, 60][rank()])
    resumed.load_state_dict({"used": 100.0})
    again = attached(lambda engine, batch: None, resumed).run(range(50)).iteration
    return [iteration, limit.ends_run_for_now, again]


def meets_nan(attached):
    ends = []
    for options, more in (({"every": 10}, []), ({"every": 100}, []), ({"every": 100}, [Saver()])):
        guard = TerminateOnNaN(**options)
        step = losses_of([1.0] * 60, [1.0, 1.0, math.nan] + [1.0] * 57)
        engine = attached(step, guard, *more)
        engine.logger.disabled = True
        iteration = engine.run(range(20), max_epochs=3).iteration
        ends.append([iteration, guard.found and guard.found[0], [saver.saved for saver in more]])
    skips = attached(lambda engine, batch: torch.tensor(1.0) if rank() else None, TerminateOnNaN(every=4))
    return [*ends, skips.run(range(10)).iteration]


def measures(attached):
    model = nn.Linear(1, 1)

    def evaluation_step(engine, batch):
        model(torch.ones(1, 1))
        return torch.tensor([float(batch)]), torch.tensor([0.0])

    evaluator = attached(
        evaluation_step,
        Metrics(
            of_ignite=Average(output_transform=lambda output: output[0]),
            of_torchmetrics=torchmetrics.MeanAbsoluteError(),
            collection=torchmetrics.MetricCollection({"mse": torchmetrics.MeanSquaredError()}),
        ),
    )
    trainer = attached(lambda engine, batch: None, Evaluate(evaluator, [[1, 2, 3], [4]][rank()]))
    return {name: float(value) for name, value in trainer.run([0]).metrics.items()}


def logs(attached, folder):
    folder = folder / attached.__name__
    losses = iter([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 5.0, 5.0]][rank()])
    parameter = nn.Parameter(torch.ones(()))

    def step(engine, batch):
        return {"loss": parameter * next(losses), "tokens": torch.tensor([3, 1][rank()]), "none": "x"}

    bar = io.StringIO()
    table, board = CSVLogger(folder, every=2), TensorBoardLogger(folder / "board", every=2)
    handlers = [table, board, ProgressBar(file=bar), OptimizerStep(torch.optim.SGD([parameter], lr=0.0))]
    engine = attached(step, GradientAccumulation(2, weight="tokens"), *handlers)
    engine.run([0, 0], max_epochs=2)
    gather("all have written")
    return [table.state_dict()["records_written"], bar.getvalue(), (folder / "metrics.csv").read_text()]


def logs_slowly(attached, folder):
    """The second process alone finds that it is time to write."""
    path = folder / f"slow_{attached.__name__}.csv"
    logger = CSVLogger(path, every=1)
    if rank() == 1:
        logger._has_waited_long = lambda: 1
    lines = []

    def step(engine, batch):
        time.sleep(0.02)
        lines.append(len(path.read_text().splitlines()))
        return 1.0

    attached(step, logger).run(range(25))
    return lines[-1]


def ours(step, *handlers):
    return Engine(step).attach(*handlers)


def ignites(step, *handlers):
    engine = IgniteEngine(step)
    for handler in handlers:
        handler.attach(engine)
    return engine


def scenarios(folder):
    functions = (stops_early, steps_on_plateau, weighs, is_out_of_time, meets_nan, measures)
    results = {(function.__name__, on.__name__): function(on) for function in functions for on in (ours, ignites)}
    for function in (logs, logs_slowly):
        results |= {(function.__name__, on.__name__): function(on, folder) for on in (ours, ignites)}
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def two(folder):
    return values_of_ranks(scenarios, folder)


@pytest.fixture(params=["ours", "ignites"])
def kind(request):
    return request.param


def same_on_both(two, *name):
    assert two[0][name] == two[1][name]
    return two[0][name]


class TestAllDecideAlike:
    def test_early_stopping_by_the_mean_of_their_losses(self, two, kind):
        assert same_on_both(two, "stops_early", kind) == [5, 2.0]

    def test_a_plateau_is_one_of_the_mean(self, two, kind):
        assert same_on_both(two, "steps_on_plateau", kind) == 0.25

    def test_the_mean_is_weighted_as_the_gradients_are(self, two, kind):
        assert same_on_both(two, "weighs", kind) == 1.25

    def test_a_time_limit_holds_when_the_first_clock_says_so(self, two, kind):
        iteration, for_now, _ = same_on_both(two, "is_out_of_time", kind)
        assert iteration < 1000
        assert for_now

    def test_a_run_without_time_left_is_ended_at_its_start(self, two, kind):
        assert same_on_both(two, "is_out_of_time", kind)[2] == 0

    def test_a_loss_that_is_no_number_ends_the_run_where_they_look_together(self, two, kind):
        assert [result["meets_nan", kind][0][:2] for result in two] == [[10, None], [10, 3]]

    def test_or_at_the_end_of_the_epoch(self, two, kind):
        assert [result["meets_nan", kind][1][0] for result in two] == [20, 20]

    def test_or_before_anything_is_saved(self, two, kind):
        assert [result["meets_nan", kind][2][0] for result in two] == [4, 4]
        assert [result["meets_nan", kind][2][2] for result in two] == [[[[4, True]]]] * 2

    def test_a_batch_that_one_skips_does_not_separate_them(self, two, kind):
        assert [result["meets_nan", kind][3] for result in two] == [10, 10]


class TestMetrics:
    def test_are_those_of_all_samples_however_many_batches_each_has(self, two, kind):
        expected = {"val_of_ignite": 2.5, "val_of_torchmetrics": 2.5, "val_mse": 7.5}
        assert same_on_both(two, "measures", kind) == expected


class TestOnlyTheFirstTells:
    def test_the_table_has_the_means(self, two, kind):
        rows = list(csv.DictReader(io.StringIO(two[0]["logs", kind][2])))
        assert [row["loss"] for row in rows if row["loss"]] == ["2.0", "4.25"]

    def test_all_know_how_much_was_written(self, two, kind):
        assert two[0]["logs", kind][0] == two[1]["logs", kind][0]

    def test_there_is_one_event_file(self, two, kind, folder):
        assert len(list((folder / kind / "board").iterdir())) == 1

    def test_the_others_show_no_progress(self, two, kind):
        assert "epoch 1/2: 2 iterations" in two[0]["logs", kind][1]
        assert two[1]["logs", kind][1] == ""

    def test_records_that_have_waited_long_are_written_within_an_epoch(self, two, kind):
        assert two[0]["logs_slowly", kind] > 1


def fails(folder):
    def step(engine, batch):
        if rank() == 1 and engine.state.iteration == 5:
            raise ValueError("boom")
        if engine.state.iteration > 5:
            gather("both")
        return float(rank())

    Engine(step).attach(CSVLogger(folder, every=2), TimeLimit("1h"), TerminateOnNaN()).run(range(10))


def test_what_was_recorded_before_an_error_on_another_process_is_written(tmp_path):
    first, second = on_ranks(fails, tmp_path, timeout=30)
    assert "boom" in second.error
    assert [first.status, second.status] == [1, 1]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == ["2,1,0,0.0", "4,1,0,0.0"]
