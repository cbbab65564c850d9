"""Several may stand around one engine, and leave it as it was."""

import itertools

import pytest
from ignite.engine import Engine as IgniteEngine

from camshaft.engine import Engine, Events
from camshaft.engine.around import Around


class Told(Around):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def begin(self, kind, name, engine):
        self.told.append(name)
        return name

    def end(self, begun):
        self.told.append(f"{begun} ends")


def note(engine):
    """A function that is listed by its name."""


def called_of(engine):
    lists = engine._event_handlers.items()
    if isinstance(engine, Engine):
        return [(event, one.function) for event, all_of in lists for one in (*all_of.prompt, *all_of.late)]
    return [(event, entry[0]) for event, entries in lists for entry in entries]


@pytest.fixture(params=[Engine, IgniteEngine], ids=["camshaft", "ignite"])
def engine(request):
    engine = request.param(lambda engine, batch: None)
    engine.add_event_handler(Events.ITERATION_COMPLETED, note)
    return engine


def test_a_handler_is_a_range_within_its_event(engine):
    around = Told()
    around.stand_around(engine)
    engine.run([0])

    first = around.told.index("ITERATION_COMPLETED")
    assert around.told[first : first + 4] == ["ITERATION_COMPLETED", "note", "note ends", "ITERATION_COMPLETED ends"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_several_come_and_go_in_any_order_and_the_engine_is_as_it_was(engine, order):
    before, several = called_of(engine), [Told() for _ in range(3)]
    for around in several:
        around.stand_around(engine)
    engine.run([0])
    for left, number in enumerate(order, start=1):
        several[number].step_aside()
        for around in several:
            around.told.clear()
        engine.run([0, 1], max_epochs=left + 1)
        assert [bool(around.told) for around in several] == [index not in order[:left] for index in range(3)]

    assert called_of(engine) == before
    assert "_fire_event" not in vars(engine)


def test_what_stands_around_an_engine_is_not_told_of_another(engine):
    first, second = Told(), Told()
    first.stand_around(engine)
    second.stand_around(engine)
    engine.run([0])

    assert first.told == second.told
