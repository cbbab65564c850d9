"""Real processes decide alike, whichever of them knows."""

import math
import time

import pytest
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine

from camshaft.engine import Engine, Events, Phase
from camshaft.engine.agreement import Agreement, any_rank, gather_on_first, mean
from camshaft.engine.distributed import rank
from camshaft.handlers import Handler, On
from tests.ranks import on_ranks, values_of_ranks

pytestmark = pytest.mark.distributed


class TerminateAt(Handler):
    """Asks, on one process, for the end of the run from an iteration on."""

    listens = (On(Events.STARTED, Phase.PREPARE, "ask"), On(Events.ITERATION_COMPLETED, Phase.DECIDE, "decide"))

    def __init__(self, iteration, on_rank):
        self.iteration, self.on_rank = iteration, on_rank

    def ask(self, engine):
        self.agreement = Agreement.of(engine)
        reached = lambda: rank() == self.on_rank and engine.state.iteration >= self.iteration  # noqa: E731
        self.agreement.ask("end", reached)

    def decide(self, engine):
        if self.agreement.agreed("end"):
            engine.terminate()


def runs(iterations, on_rank, seconds=0.0, epochs=1, engine_class=Engine):
    engine = engine_class(lambda engine, batch: time.sleep(seconds))
    TerminateAt(iterations, on_rank).attach(engine)
    return engine.run(range(1000), max_epochs=epochs).iteration


def agreements():
    """All that is looked at below, on two processes that are started once."""
    of_rank = [3.0, math.nan][rank()]
    results = {
        "any": [any_rank(rank() == 1), any_rank(False)],
        "mean": [mean(1.0 + rank()), mean(1.0 + rank(), weight=[3.0, 1.0][rank()]), mean(0.1), mean(None)],
        "mean of one": mean(5.0 if rank() == 1 else None),
        "mean with nan": mean(of_rank),
        "gathered": gather_on_first({"rank": rank()}),
        "ends": [runs(5, 0), runs(300, 1), runs(5, 1, 0.02), runs(3, 1, 0.6)],
        "ends on ignite": runs(5, 1, engine_class=IgniteEngine),
        "at its last iteration": runs(1000, 1),
        "runs to its end": runs(10**6, 1),
    }
    engine = Engine(lambda engine, batch: None)
    TerminateAt(2, 1).attach(engine)
    results["again"] = [engine.run(range(500), max_epochs=1).iteration < 500 for _ in range(2)]
    return results


@pytest.fixture(scope="module")
def two():
    return values_of_ranks(agreements)


def same_on_both(two, name):
    assert two[0][name] == two[1][name]
    return two[0][name]


class TestAtOnce:
    def test_any_rank_is_true_if_it_is_so_on_one(self, two):
        assert same_on_both(two, "any") == [True, False]

    def test_the_mean_is_weighted(self, two):
        assert same_on_both(two, "mean")[:2] == [1.5, 1.25]

    def test_the_mean_of_equal_values_is_that_value(self, two):
        assert same_on_both(two, "mean")[2] == 0.1

    def test_the_mean_of_none_is_none(self, two):
        assert same_on_both(two, "mean")[3] is None

    def test_a_process_without_the_value_is_left_out(self, two):
        assert same_on_both(two, "mean of one") == 5.0

    def test_nan_is_not_lost(self, two):
        assert all(math.isnan(result["mean with nan"]) for result in two)

    def test_only_the_first_process_is_given_what_is_gathered(self, two):
        assert [result["gathered"] for result in two] == [[{"rank": 0}, {"rank": 1}], None]


class TestInIterations:
    def test_all_end_at_the_same_iteration_soon_after_one_of_them_asks(self, two):
        fast, fast_and_late, slow, slower = same_on_both(two, "ends")
        assert 5 <= fast <= 205
        assert 300 <= fast_and_late <= 500
        assert 5 <= slow <= 5 + 2 * 5
        assert 3 <= slower <= 4

    def test_where_an_iteration_takes_long_they_end_with_that_one(self, two):
        assert same_on_both(two, "ends")[3] == 3

    def test_also_on_an_engine_of_ignite(self, two):
        assert 5 <= same_on_both(two, "ends on ignite") <= 205

    def test_what_is_asked_too_late_changes_nothing(self, two):
        assert same_on_both(two, "at its last iteration") == 1000
        assert same_on_both(two, "runs to its end") == 1000

    def test_a_run_that_follows_asks_anew(self, two):
        assert same_on_both(two, "again") == [True, True]


def fails_on_one():
    def step(engine, batch):
        if rank() == 1 and engine.state.iteration == 5:
            raise ValueError("boom")
        dist.barrier()

    engine = Engine(step)
    TerminateAt(10**6, 0).attach(engine)
    engine.run(range(1000))


def test_an_error_on_one_process_ends_the_other_while_they_ask_each_other():
    first, second = on_ranks(fails_on_one, timeout=30)
    assert "boom" in second.error
    assert "Connection closed by peer" in first.error or "Connection reset by peer" in first.error
    assert [first.status, second.status] == [1, 1]
    assert max(first.seconds, second.seconds) < 25
