from datetime import timedelta

import pytest

from camshaft.engine import Events
from camshaft.handlers import TimeLimit, time_limit
from camshaft.handlers.time_limit import in_seconds


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time_limit, "monotonic", clock)
    return clock


@pytest.fixture
def ten_seconds(clock):
    """A step that takes ten seconds."""

    def step(engine, batch):
        clock.now += 10

    return step


class TestInSeconds:
    @pytest.mark.parametrize(
        ("time", "seconds"),
        [
            (90, 90),
            (0.5, 0.5),
            (timedelta(hours=1, seconds=1), 3601),
            ("1h30m", 5400),
            ("90s", 90),
            ("1.5h", 5400),
            ("2d", 172800),
            ("1d 2h 3m 4s", 93784),
            ("01:30:00", 5400),
            ("100:00:01", 360001),
        ],
    )
    def test_reads_numbers_spans_and_strings(self, time, seconds):
        assert in_seconds(time) == seconds

    @pytest.mark.parametrize(
        "time", [0, -1, float("nan"), float("inf"), True, "", "1", "1x", "1.2.3s", "1:70:00", "soon"]
    )
    def test_refuses_what_is_no_time(self, time):
        with pytest.raises(ValueError, match=r"A time is a positive number of seconds, .* but got "):
            in_seconds(time)


class TestTimeLimit:
    def test_ends_the_run_after_the_first_iteration_that_ends_later(self, engine_of, ten_seconds):
        assert engine_of(ten_seconds, TimeLimit(35)).run([0] * 10).iteration == 4

    def test_leaves_a_shorter_run_alone(self, engine_of, ten_seconds):
        assert engine_of(ten_seconds, TimeLimit("1h")).run([0] * 10).iteration == 10

    def test_counts_all_that_happens_between_iterations(self, engine_of, ten_seconds, clock):
        engine = engine_of(ten_seconds, TimeLimit(100))

        @engine.on(Events.EPOCH_STARTED)
        def load():
            clock.now += 30

        assert engine.run([0] * 2, max_epochs=5).iteration == 4

    def test_counts_on_in_a_resumed_run(self, engine_of, ten_seconds, clock):
        first = TimeLimit(75)
        engine = engine_of(ten_seconds, first)
        state = {}
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: state.update(first.state_dict()))
        engine.run([0] * 5)
        assert state == {"used": 50.0}
        clock.now += 1000  # until the second process starts

        second = TimeLimit(75)
        second.load_state_dict(state)
        engine = engine_of(ten_seconds, second)
        engine.load_state_dict({"iteration": 5, "epoch_length": 5, "max_epochs": 10})
        assert engine.run([0] * 5).iteration == 8

    def test_ends_a_resumed_run_that_has_no_time_left_before_its_first_iteration(self, engine_of, ten_seconds):
        limit = TimeLimit(75)
        limit.load_state_dict({"used": 80.0})
        engine = engine_of(ten_seconds, limit)
        engine.load_state_dict({"iteration": 5, "epoch_length": 5, "max_epochs": 10})
        assert engine.run([0] * 5).iteration == 5

    def test_counts_time_that_was_loaded_for_a_run_that_begins_at_its_beginning(self, engine_of, ten_seconds):
        limit = TimeLimit(75)
        limit.load_state_dict({"used": 50.0})
        assert engine_of(ten_seconds, limit).run([0] * 5).iteration == 3

    def test_gives_a_new_run_of_the_same_engine_the_whole_time(self, engine_of, ten_seconds):
        engine = engine_of(ten_seconds, TimeLimit(75))
        engine.run([0] * 5)
        assert engine.run([0] * 5).iteration == 5

    def test_does_not_count_the_pause_of_an_interrupted_run(self, engine_of, ten_seconds, clock):
        limit = TimeLimit(75)
        engine = engine_of(ten_seconds, limit)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.interrupt())
        engine.run([0] * 10)
        clock.now += 1000
        assert limit.used == 30
        engine.run([0] * 10)
        assert engine.state.iteration == 9  # the first iteration after the pause starts the clock
        assert limit.used == 80

    def test_shows_its_limit(self):
        assert repr(TimeLimit(60)) == "TimeLimit(seconds=60)"
        assert TimeLimit("1h30m").limit == 5400
