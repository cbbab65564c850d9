from __future__ import annotations

import numpy as np
import pytest

from camshaft.engine import Engine, Events, StepEvents
from camshaft.engine import events as documented
from camshaft.engine.events import STEP_EVENT_ATTRIBUTES, every_of


@pytest.mark.parametrize("every", [2, 100, np.int64(7)])
def test_every_is_read_from_a_filter_of_ignites_making(every) -> None:
    assert every_of(Events.ITERATION_COMPLETED(every=every)) == every


@pytest.mark.parametrize(
    "event",
    [
        None,
        "started",
        Events.STARTED,
        Events.ITERATION_COMPLETED(every=1),  # is the event itself
        Events.ITERATION_COMPLETED(once=2),
        Events.ITERATION_COMPLETED(once=[2, 4]),
        Events.ITERATION_COMPLETED(before=2),
        Events.ITERATION_COMPLETED(every=2, after=3),
        Events.ITERATION_COMPLETED(event_filter=lambda engine, every: every % 2 == 0),
    ],
    ids=["None", "string", "event", "every=1", "once=2", "once=[2, 4]", "before", "every and after", "function"],
)
def test_no_every_is_read_from_anything_else(event) -> None:
    assert every_of(event) == 0


def test_every_moment_of_a_step_has_something_for_filters_to_count() -> None:
    engine = Engine(lambda engine, batch: None)
    assert set(STEP_EVENT_ATTRIBUTES) == set(StepEvents)
    for event, attribute in STEP_EVENT_ATTRIBUTES.items():
        assert engine.has_registered_events(event)
        assert engine.state.get_event_attrib_value(event) == getattr(engine.state, attribute) == 0


@pytest.mark.parametrize("event", [*Events, *StepEvents], ids=lambda event: event.name)
def test_the_drawing_shows_every_event(event) -> None:
    assert event.name in documented.__doc__
