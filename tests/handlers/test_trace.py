import io
import re

import pytest
from ignite.engine import Engine as IgniteEngine

from camshaft.engine import Engine, Events
from camshaft.handlers import TimeLimit, Trace


def traced(*handlers, first=1, iterations=1, batches=3, step=lambda engine, batch: None):
    """The lines that a run writes, without the moment at which each begins."""
    file = io.StringIO()
    engine = Engine(step).attach(Trace(first, iterations, file=file), *handlers)
    try:
        engine.run(range(batches))
    finally:
        traced.lines = [re.sub(r"^ +[0-9.]+ ms ", "", line) for line in file.getvalue().splitlines()]
    return traced.lines


def without_times(lines):
    return [re.sub(r"  [0-9.]+ ms$", "", line) for line in lines]


def test_every_event_and_handler_of_the_iterations_is_told():
    lines = without_times(traced(TimeLimit(100), first=2, iterations=1))
    assert [line for line in lines if "TimeLimit" in line] == ["iteration 2   TimeLimit(seconds=100).decide"]
    assert "iteration 2 step" in lines
    assert not [line for line in lines if line.startswith("iteration 3")]


def test_each_line_ends_with_its_time():
    lines = traced(TimeLimit(100))
    ended = [line for line in lines if re.search(r"  [0-9]+\.[0-9]{3} ms$", line)]
    begun = [line for line in lines if line not in ended]
    assert "iteration 1 ITERATION_COMPLETED" in begun  # within which a handler ran
    assert {f"{line} ends" for line in begun} <= set(without_times(ended))


def test_what_hangs_or_fails_is_the_last_line():
    def fail(engine, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        traced(step=fail)
    assert traced.lines[-1] == "iteration 1 step"


def test_after_its_iterations_it_costs_nothing():
    file = io.StringIO()
    engine = Engine(lambda engine, batch: None).attach(Trace(file=file))
    engine.run(range(5))
    written = len(file.getvalue())
    assert not any(engine._event_handlers[event] for event in Events if event is not Events.STARTED)
    engine.run(range(5))
    assert len(file.getvalue()) == written


def test_it_writes_to_the_standard_error_by_default(capsys):
    Engine(lambda engine, batch: None).attach(Trace()).run([0])
    assert "iteration 1 step" in capsys.readouterr().err


def test_detached_before_its_time_it_writes_nothing():
    file = io.StringIO()
    trace = Trace(2, file=file)
    engine = Engine(lambda engine, batch: None).attach(trace)
    trace.detach(engine)
    engine.run(range(5))
    assert file.getvalue() == ""


def test_on_ignites_engine_it_tells_the_same():
    lines = {}
    for engine_class in (Engine, IgniteEngine):
        file = io.StringIO()
        engine = engine_class(lambda engine, batch: None)
        for handler in (Trace(2, file=file), TimeLimit(100)):
            handler.attach(engine)
        engine.run(range(3))
        lines[engine_class] = [
            re.sub(r"^ +[0-9.]+ ms |  [0-9.]+ ms$", "", line) for line in file.getvalue().splitlines()
        ]
        assert "_fire_event" not in vars(engine)
    assert lines[Engine] == lines[IgniteEngine]


@pytest.mark.parametrize("arguments", [{"first": 0}, {"iterations": 0}, {"first": 1.5}], ids=str)
def test_numbers_must_be_whole_and_positive(arguments):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        Trace(**arguments)
