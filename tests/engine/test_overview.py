from __future__ import annotations

import html
import re
import time
from typing import Any

from ignite.handlers import TerminateOnNan

from camshaft.engine import Engine, Events, Phase, StepEvents
from camshaft.engine.overview import describe_event
from camshaft.engine.phases import subscribe
from camshaft.handlers import Handler, On, TimeLimit


def training_step(engine: Any, batch: Any) -> None:
    pass


class Plotter:
    def draw(self, engine: Any) -> None:
        pass


def rows_of(engine: Engine) -> list[list[str]]:
    """The table as printed: event, phase, handler, time."""
    return [re.split(r"\s{2,}", line) for line in str(engine).splitlines()[3:]]


def test_rows_stand_in_firing_order_with_the_event_named_once() -> None:
    engine = Engine(training_step)
    subscribe(engine, Events.EPOCH_COMPLETED, Plotter().draw, Phase.REPORT)
    engine.add_event_handler(Events.EPOCH_COMPLETED, training_step, None)
    engine.add_event_handler(Events.STARTED, training_step, None)
    engine.register_events("of my own")
    engine.add_event_handler("of my own", training_step, None)
    engine.add_event_handler(StepEvents.FORWARD_STARTED, training_step, None)
    assert rows_of(engine) == [
        ["STARTED", "USER", "training_step"],
        ["FORWARD_STARTED", "USER", "training_step"],
        ["EPOCH_COMPLETED", "USER", "training_step"],
        ["", "REPORT", "Plotter.draw"],
        ["of my own", "USER", "training_step"],
    ]


def test_the_order_shown_is_the_order_in_which_the_events_of_a_run_fire() -> None:
    engine, fired = Engine(training_step), []
    events = [event for event in (*StepEvents, *Events) if event is not Events.EXCEPTION_RAISED]
    for event in events:
        engine.add_event_handler(event, lambda *_, name=event.name, **__: fired.append(name))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch())
    engine.run(range(1), epoch_length=3, max_epochs=2)
    shown = [row[0] for row in rows_of(engine) if row[0]]
    first_fired = list(dict.fromkeys(fired))
    once_data_ended = ["DATALOADER_STOP_ITERATION", "TERMINATE_SINGLE_EPOCH"]
    assert [name for name in shown if name in fired and name not in once_data_ended] == [
        name for name in first_fired if name not in once_data_ended
    ]
    assert shown.index("GET_BATCH_STARTED") < shown.index(once_data_ended[0]) < shown.index("GET_BATCH_COMPLETED")
    assert shown.index("ITERATION_COMPLETED") < shown.index(once_data_ended[1]) < shown.index("EPOCH_COMPLETED")


def test_filters_are_shown_as_they_were_written() -> None:
    engine = Engine(training_step)

    def even(engine: Any, count: int) -> bool:
        return count % 2 == 0

    for event_filter in (
        {"every": 100},
        {"once": 3},
        {"before": 5},
        {"after": 2, "every": 3},
        {"event_filter": even},
        {"every": 1},
    ):
        engine.add_event_handler(Events.ITERATION_COMPLETED(**event_filter), training_step, None)
    shown = [re.findall(r"\[(.*)\]", line) for line in str(engine).splitlines()[3:]]
    name = "test_filters_are_shown_as_they_were_written.even"
    assert shown == [["every=100"], ["once=[3]"], ["after=0, before=5"], ["every=3, after=2"], [name], []]


def test_a_handler_is_shown_with_its_arguments() -> None:
    engine = Engine(training_step).attach(TimeLimit(60))
    assert any(row[2].startswith("TimeLimit(seconds=60).") for row in rows_of(engine))


def test_an_object_that_is_called_is_shown_by_its_class() -> None:
    engine = Engine(training_step)
    engine.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    assert [row[2] for row in rows_of(engine)] == ["TerminateOnNan"]


def test_the_table_is_at_most_120_wide_and_cuts_a_handler_after_a_whole_argument() -> None:
    class Keeper(Handler):
        listens = (
            On(StepEvents.OPTIMIZER_STEP_COMPLETED(every=1000), Phase.SAVE, "save_what_is_to_be_kept"),
            On(Events.COMPLETED, Phase.SAVE, "save"),
        )

        def __init__(self, directory: str, **kept: Any) -> None:
            pass

        def save(self) -> None:
            pass

        def save_what_is_to_be_kept(self) -> None:
            pass

    names = dict.fromkeys(("model", "ema_model", "optimizer", "schedule", "scaler", "discriminator"), 1)
    engine = Engine(training_step).attach(Keeper("runs/digits-1", **names))
    engine.state.times[Events.COMPLETED.name] = 1.0
    engine.state.iteration = 10_000_000
    assert max(map(len, str(engine).splitlines())) <= 120
    shown = [row[2] for row in rows_of(engine)]
    assert "Keeper(directory='runs/digits-1', model=1, ema_model=1, …).save" in shown


def test_a_single_long_argument_is_cut_in_the_middle() -> None:
    class Plain(Handler):
        listens = (On(Events.STARTED, Phase.USER, "act"),)

        def __init__(self, text: str) -> None:
            pass

        def act(self) -> None:
            pass

    (row,) = (row for row in rows_of(Engine(training_step).attach(Plain("x" * 90))) if row[2].startswith("Plain"))
    assert row[2] == "Plain(text='" + "x" * 46 + "…).act"


def test_html_which_wraps_its_lines_shows_handlers_in_full() -> None:
    limit = TimeLimit(" " * 60 + "10s")
    assert html.escape(repr(limit)) in Engine(training_step).attach(limit)._repr_html_()


def test_events_are_described_as_they_are_written() -> None:
    assert describe_event(StepEvents.FORWARD_STARTED) == "StepEvents.FORWARD_STARTED"
    assert describe_event(Events.STARTED(every=3)) == "Events.STARTED(every=3)"


def test_shares_of_the_time_are_shown_after_a_run() -> None:
    engine = Engine(training_step)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: time.sleep(0.01))
    engine.add_event_handler(Events.COMPLETED, training_step, None)
    assert str(engine).splitlines()[0] == "Engine of training_step"
    engine.run(range(3))
    headline = str(engine).splitlines()[0]
    assert headline.startswith("Engine of training_step; it ran for 0.0")
    assert headline.endswith(" s, to iteration 3")
    slow, quick = (float(row[3].rstrip("%")) for row in rows_of(engine))
    assert 100 >= slow > quick >= 0


def test_a_notebook_gets_the_same_table_as_html_with_its_text_escaped() -> None:
    engine = Engine(training_step)
    engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=lambda engine, count: True), lambda: None)
    engine.run([0])
    shown = engine._repr_html_()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", shown)
    assert [html.unescape(cell) for cell in cells[:2]] == ["ITERATION_COMPLETED", "USER"]
    assert "&lt;lambda&gt;" in cells[2]
    assert re.fullmatch(r"\d+\.\d\d%", cells[3])


def test_the_representation_is_one_line() -> None:
    engine = Engine(training_step)
    engine.add_event_handler(Events.STARTED, training_step, None)
    assert repr(engine) == "<Engine of training_step, 1 subscribers>"
