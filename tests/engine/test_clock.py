from camshaft.engine import Engine, Events
from camshaft.engine.clock import COMPILATION, compilation_seconds, training_clock


def compile_for_a_thousand_seconds(engine):
    """Says so, without taking them: what is measured then lacks them."""
    engine.state.times[COMPILATION] = compilation_seconds(engine.state) + 1000


def test_the_clock_stands_still_for_what_was_compiled():
    engine = Engine(lambda engine, batch: None)
    before = training_clock(engine.state)
    compile_for_a_thousand_seconds(engine)
    assert training_clock(engine.state) < before - 900


def test_the_time_of_an_epoch_leaves_out_compilation_wherever_it_was_done():
    engine = Engine(lambda engine, batch: None)
    for event in (Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
        engine.add_event_handler(event, compile_for_a_thousand_seconds)
    assert -3000 < engine.run([0]).times["EPOCH_COMPLETED"] < -2900


def test_the_time_of_the_run_includes_it():
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.ITERATION_COMPLETED, compile_for_a_thousand_seconds)
    assert engine.run([0]).times["COMPLETED"] > 0
