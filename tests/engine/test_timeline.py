"""A timeline tells which event and which handler ran when, and is not there before and after."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from camshaft.engine import Engine, Events
from camshaft.engine.timeline import Timeline
from camshaft.handlers import OptimizerStep, TimeLimit


def training() -> Engine:
    model = nn.Linear(2, 1)
    engine = Engine(lambda engine, batch: model(batch).mean())
    return engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)), TimeLimit("1h"))


def batches(count: int = 4) -> list[torch.Tensor]:
    return [torch.ones(3, 2)] * count


def spans_of(timeline: Timeline, kind: str) -> list[str]:
    return [span.name for span in sorted(timeline.spans, key=lambda span: span.begin) if span.kind == kind]


def test_an_iteration_has_its_parts_in_order() -> None:
    engine = training()
    timeline = engine.timeline(first=2, iterations=1)
    engine.run(batches())
    parts = ["data loading", "step", "forward", "backward", "optimizer step"]
    assert spans_of(timeline, "part") == parts
    assert {span.iteration for span in timeline.spans if span.name in parts[1:]} == {2}


def test_a_handler_lies_within_its_event() -> None:
    engine = training()
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=1), validate)
    timeline = engine.timeline(first=2, iterations=1)
    engine.run(batches())
    (event,) = (span for span in timeline.spans if span.name == "ITERATION_COMPLETED")
    (handler,) = (span for span in timeline.spans if span.name == "validate")
    assert event.begin <= handler.begin <= handler.end <= event.end


def test_what_ends_the_epoch_of_the_last_iteration_is_recorded_with_it() -> None:
    engine = training()
    engine.add_event_handler(Events.EPOCH_COMPLETED, validate)
    timeline = engine.timeline(first=4, iterations=1)
    engine.run(batches(), max_epochs=2)
    assert spans_of(timeline, "event").count("EPOCH_COMPLETED") == 1
    assert "validate" in spans_of(timeline, "handler")


def validate(engine: Engine) -> None:
    """Stands for a handler of a user."""


def test_the_last_iteration_of_a_run_is_recorded_to_its_end() -> None:
    engine = training()
    timeline = engine.timeline(first=4, iterations=5)
    engine.run(batches())
    assert spans_of(timeline, "event")[-1] == "COMPLETED"


def test_a_run_that_is_beyond_its_first_iteration_is_recorded_from_where_it_is() -> None:
    engine = training()
    engine.run(batches())
    timeline = engine.timeline(first=2, iterations=1)
    engine.run(batches(), max_epochs=2)
    assert {span.iteration for span in timeline.spans if span.name == "step"} == {5}


def test_an_engine_whose_iterations_are_recorded_is_as_if_nobody_had_asked() -> None:
    engine, other = training(), training()
    engine.timeline(first=2, iterations=1)
    engine.run(batches())
    other.run(batches())
    subscribers = [
        [
            (event.name, subscriber.phase, getattr(subscriber.function, "__qualname__", None))
            for event, of_event in sorted(one._event_handlers.items(), key=lambda item: item[0].name)
            for subscriber in (*of_event.prompt, *of_event.late)
        ]
        for one in (engine, other)
    ]
    assert subscribers[0] == subscribers[1]


def test_an_engine_that_is_not_asked_knows_nothing_of_it() -> None:
    engine = training()
    before = sum(map(len, engine._event_handlers.values()))
    engine.timeline()
    assert sum(map(len, engine._event_handlers.values())) > before
    assert "timeline" not in vars(engine)


def test_what_an_error_leaves_open_ends_and_the_error_is_the_users() -> None:
    engine = training()

    def fail(engine: Engine) -> None:
        if engine.state.iteration == 2:
            raise RuntimeError("of the user")

    engine.add_event_handler(Events.ITERATION_COMPLETED, fail)
    timeline = engine.timeline(first=2, iterations=2)
    with pytest.raises(RuntimeError, match="of the user"):
        engine.run(batches())
    assert spans_of(timeline, "handler")[-1].endswith("fail")


def test_two_timelines_of_one_engine_do_not_disturb_each_other() -> None:
    engine = training()
    first, second = engine.timeline(first=1, iterations=1), engine.timeline(first=3, iterations=1)
    engine.run(batches())
    assert [span.iteration for span in first.spans if span.name == "step"] == [1]
    assert [span.iteration for span in second.spans if span.name == "step"] == [3]


def test_the_trace_has_a_complete_event_for_each_span_in_microseconds(tmp_path: Path) -> None:
    engine = training()
    timeline = engine.timeline(first=1, iterations=2)
    engine.run(batches())
    events = json.loads(timeline.export(tmp_path / "timeline.json").read_text())["traceEvents"]
    assert len(events) == len(timeline.spans)
    step = next(event for event in events if event["name"] == "step")
    span = next(span for span in timeline.spans if span.name == "step")
    assert (step["ph"], step["cat"], step["args"]) == ("X", "part", {"iteration": 1})
    assert step["ts"] == pytest.approx(1e6 * span.begin)
    assert step["dur"] == pytest.approx(1e6 * (span.end - span.begin))


def test_the_picture_is_800_pixels_wide(tmp_path: Path) -> None:
    engine = training()
    timeline = engine.timeline(iterations=2)
    engine.run(batches())
    with Image.open(timeline.plot(tmp_path / "timeline.png")) as picture:
        assert picture.width == 800


def test_what_was_not_recorded_cannot_be_drawn(tmp_path: Path) -> None:
    timeline = training().timeline(first=7)
    with pytest.raises(ValueError, match=r"Nothing was recorded: the engine has not come to iteration 7"):
        timeline.plot(tmp_path / "timeline.png")


@pytest.mark.parametrize("arguments", [{"first": 0}, {"iterations": 0}, {"first": 1.5}], ids=str)
def test_a_number_that_cannot_be_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"timeline's {next(iter(arguments))} is a whole number of at least 1"):
        training().timeline(**arguments)
