import json
import math

import pytest
import torch

from camshaft.engine import Engine, Events
from camshaft.handlers import JSONLinesLogger


def engine_with(*handlers, engine_class=Engine, step=None):
    engine = engine_class(step or (lambda engine, batch: torch.tensor(float(batch))))
    for handler in handlers:
        handler.attach(engine)
    return engine


def objects_in(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def column(path, name):
    return [(line["iteration"], line[name]) for line in objects_in(path) if name in line]


def resumed(path, state_dict, iteration, epoch):
    """A new program's engine that a checkpoint was brought back to."""
    logger = JSONLinesLogger(path, every=1)
    engine = engine_with(logger)
    logger.load_state_dict(state_dict)

    @engine.on(Events.STARTED)
    def load(engine):
        engine.state.iteration, engine.state.epoch = iteration, epoch

    return engine


def test_one_object_a_record_with_its_position_and_time(tmp_path, engine_class):
    path = tmp_path / "log.jsonl"
    engine_with(JSONLinesLogger(path, every=2), engine_class=engine_class).run([1, 2, 3, 4], epoch_length=4)

    first, second = objects_in(path)
    assert list(first) == ["iteration", "epoch", "optimizer_step", "time", "loss"]
    assert (first["iteration"], first["epoch"], first["loss"]) == (2, 1, 2.0)
    assert second["time"] >= first["time"] > 1.7e9


def test_in_a_directory_the_file_is_metrics_jsonl_and_made_when_the_run_starts(tmp_path):
    engine = engine_with(JSONLinesLogger(tmp_path / "runs", every=1))
    assert list(tmp_path.iterdir()) == []

    engine.run([1])
    assert column(tmp_path / "runs" / "metrics.jsonl", "loss") == [(1, 1.0)]


def test_a_name_that_appears_later_needs_no_change_of_what_is_written(tmp_path):
    engine = engine_with(JSONLinesLogger(tmp_path, every=1))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(accuracy=0.5))
    engine.run([1, 2])

    assert column(tmp_path / "metrics.jsonl", "loss") == [(1, 1.0), (2, 2.0)]
    assert column(tmp_path / "metrics.jsonl", "accuracy") == [(2, 0.5)]


def test_numbers_that_json_does_not_have_are_strings_that_float_understands(tmp_path):
    engine_with(JSONLinesLogger(tmp_path, every=1)).run([math.nan, math.inf, -math.inf])

    values = [value for _, value in column(tmp_path / "metrics.jsonl", "loss")]
    assert values == ["NaN", "Infinity", "-Infinity"]
    assert math.isnan(float(values[0]))
    assert [float(value) for value in values[1:]] == [math.inf, -math.inf]


def test_a_new_run_keeps_the_file_of_an_earlier_one_under_another_name(tmp_path):
    for batch in (1, 2, 3):
        engine_with(JSONLinesLogger(tmp_path, every=1)).run([batch])

    names = ("metrics.1.jsonl", "metrics.2.jsonl", "metrics.jsonl")
    assert [column(tmp_path / name, "loss") for name in names] == [[(1, 1.0)], [(1, 2.0)], [(1, 3.0)]]


def test_the_next_run_on_the_same_logger_appends(tmp_path):
    engine = engine_with(JSONLinesLogger(tmp_path, every=1))
    engine.run([1, 2], max_epochs=1)
    engine.run([1, 2], max_epochs=2)

    assert [iteration for iteration, _ in column(tmp_path / "metrics.jsonl", "loss")] == [1, 2, 3, 4]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    logger, kept = JSONLinesLogger(tmp_path, every=1), {}
    engine = engine_with(logger)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: kept.update(logger.state_dict()))
    engine.run([1, 2], max_epochs=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "lo')  # the process was killed here

    resumed(tmp_path, kept, 2, 1).run([1, 2], max_epochs=3)

    iterations = [iteration for iteration, _ in column(tmp_path / "metrics.jsonl", "loss")]
    assert iterations == [1, 2, 3, 4, 5, 6]


def test_lines_that_a_checkpoint_knows_and_the_file_does_not_have_are_named(tmp_path):
    logger = JSONLinesLogger(tmp_path, every=1)
    engine_with(logger).run([1, 2])
    (tmp_path / "metrics.jsonl").write_text("")

    with pytest.warns(UserWarning, match=r"has 0 lines, but the checkpoint was saved after 2"):
        resumed(tmp_path, logger.state_dict(), 2, 1).run([1, 2], max_epochs=2)
    assert [iteration for iteration, _ in column(tmp_path / "metrics.jsonl", "loss")] == [3, 4]


def test_an_error_loses_no_record(tmp_path, engine_class):
    def step(engine, batch):
        return torch.tensor(1.0 / batch)

    with pytest.raises(ZeroDivisionError):
        engine_with(JSONLinesLogger(tmp_path, every=1), engine_class=engine_class, step=step).run([1, 2, 0])

    assert column(tmp_path / "metrics.jsonl", "loss") == [(1, 1.0), (2, 0.5)]


def test_a_place_that_cannot_be_written_is_one_sentence_at_the_start(tmp_path, engine_class):
    (tmp_path / "runs").write_text("a file")

    with pytest.raises(OSError, match=r"JSONLinesLogger cannot write to '.*runs/one' \(Not a directory\)"):
        engine_with(JSONLinesLogger(tmp_path / "runs" / "one"), engine_class=engine_class).run([0])
