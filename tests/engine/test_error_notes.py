"""An error that ends a run says which handler raised it and where the run was; its traceback stays as it is."""

import sys
import traceback

import pytest
import torch

from camshaft.engine import Engine, Events, Phase
from camshaft.handlers import Evaluate, Handler, On

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has notes of errors from 3.11 on")


class Fails(Handler):
    listens = (On(Events.ITERATION_COMPLETED(every=2), Phase.DECIDE, "decide"),)

    def decide(self, engine):
        raise ZeroDivisionError("too small")


def step(engine, batch):
    return batch


def notes_of(engine, data=range(5), **options):
    try:
        engine.run(data, **options)
    except (LookupError, OSError, ValueError, ZeroDivisionError) as error:
        return error.__notes__
    raise AssertionError("the run ended without an error")


def test_the_handler_is_named_with_its_event_and_phase():
    assert notes_of(Engine(step).attach(Fails()))[0] == (
        "Raised by the handler Fails().decide at ITERATION_COMPLETED, in phase DECIDE."
    )


def test_epoch_iteration_and_batch_are_named():
    engine = Engine(step)

    @engine.on(Events.ITERATION_STARTED(once=8))
    def fail():
        raise KeyError("missing")

    handler, position = notes_of(engine, max_epochs=3)
    assert "fail at ITERATION_STARTED, in phase USER" in handler
    assert position == "The engine of step was in epoch 2, iteration 8, batch 3 of 5 of the epoch."


def test_an_error_of_the_step_names_the_batch_alone():
    def divide(engine, batch):
        return 1 / (3 - batch)

    assert notes_of(Engine(divide)) == ["The engine of divide was in epoch 1, iteration 4, batch 4 of 5 of the epoch."]


def test_an_error_of_the_data_names_the_batch_that_was_fetched():
    def data():
        yield from range(2)
        raise OSError("disk gone")

    assert notes_of(Engine(step), data(), epoch_length=4) == [
        "The engine of step was in epoch 1, iteration 2, while batch 3 of 4 was fetched."
    ]


def test_before_the_first_epoch_no_batch_is_named():
    engine = Engine(step)
    engine.add_event_handler(Events.STARTED, lambda: [].pop())
    assert notes_of(engine)[1] == "The engine of step was in epoch 0, iteration 0."


def test_an_error_in_validation_names_the_places_in_both_engines():
    def validate(engine, batch):
        raise ValueError("wrong shape")

    trainer = Engine(step).attach(Evaluate(Engine(validate), [0, 1], modules=[torch.nn.Linear(1, 1)]))
    inner, handler, outer = notes_of(trainer)
    assert inner == "The engine of validate was in epoch 1, iteration 1, batch 1 of 2 of the epoch."
    assert "Evaluate(" in handler
    assert outer.startswith("The engine of step was in epoch 1, iteration 5")


def test_who_raises_the_error_again_is_not_named():
    engine = Engine(step).attach(Fails())

    @engine.on(Events.EXCEPTION_RAISED)
    def again(engine, error):
        raise error

    assert sum("handler" in note for note in notes_of(engine)) == 1


def test_the_traceback_leads_to_the_line_that_raised():
    with pytest.raises(ZeroDivisionError, match="too small") as caught:
        Engine(step).attach(Fails()).run(range(5))
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "decide"


def test_a_handler_whose_representation_fails_does_not_hide_its_error():
    class Broken:
        def __repr__(self):
            raise RuntimeError("no name")

        def fail(self, engine):
            raise KeyError("the error")

    engine = Engine(step)
    engine.add_event_handler(Events.STARTED, Broken().fail)
    with pytest.raises(KeyError, match="the error") as caught:
        engine.run([0])
    assert "at STARTED" in caught.value.__notes__[0]
