"""The bars of rich show what those of tqdm show, and a table of last and best values."""

import io
import re

import pytest
import torch

from camshaft.engine import Engine, Events
from camshaft.handlers import RichProgress
from tests.handlers.test_progress_bar import Terminal, attach, validation


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def screen(terminal):
    """What a person would see."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", terminal.read()):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A"):
            row -= int(part[2:-1])
        elif part.endswith("K"):
            lines[row] = ""
        elif part[0] != "\x1b":
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.strip() for line in lines if line.strip()]


def counting(engine_class=Engine):
    """Its loss is the batch; the validation's accuracy goes up, then down."""
    engine = engine_class(lambda engine, batch: torch.tensor(float(batch)))
    accuracy = {1: 0.25, 2: 0.75, 3: 0.5}
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: engine.state.metrics.update(val_accuracy=accuracy[engine.state.epoch])
    )
    return engine


def test_each_epoch_leaves_a_line_and_the_table_stays(terminal, engine_class):
    attach(counting(engine_class), RichProgress(file=terminal.file)).run([3, 2], max_epochs=3)
    lines = screen(terminal)
    assert [re.sub(r"\[.*s, ", "[", line) for line in lines[:3]] == [
        "epoch 1/3 2/2 [loss=2, val_accuracy=0.25]",
        "epoch 2/3 2/2 [loss=2, val_accuracy=0.75]",
        "epoch 3/3 2/2 [loss=2, val_accuracy=0.5]",
    ]
    assert [line.split() for line in lines[3:4] + lines[5:]] == [
        ["metric", "last", "best", "in", "epoch"],
        ["loss", "2", "2", "1"],
        ["val_accuracy", "0.5", "0.75", "2"],
    ]


def test_a_narrow_terminal_cuts_the_numbers_and_not_the_bar(terminal):
    screens = []
    values = {f"a_value_with_a_long_name_{number}": float(number) for number in range(9)}
    engine = attach(Engine(lambda engine, batch: values), RichProgress(file=terminal.file, refresh_seconds=0))
    engine.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: screens.append(screen(terminal)))
    engine.run([1, 2])
    (bar,) = (line for line in screens[0] if line.startswith("epoch 1/1"))
    assert re.search(r"epoch 1/1 .{20} 1/2 0:00:00 < .*…$", bar)


def test_while_it_runs_the_bar_stands_beside_the_table(terminal):
    screens = []
    engine = attach(counting(), RichProgress(file=terminal.file, refresh_seconds=0))
    engine.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: screens.append(screen(terminal)))
    engine.run([3, 2], max_epochs=2)
    (bar,) = (line for line in screens[0] if line.startswith("epoch 2/2"))
    assert "1/2" in bar
    assert "metric" in bar
    assert any(line.split() == ["val_accuracy", "0.25", "0.25", "1"] for line in screens[0])


def test_the_bar_of_a_validation_is_seen_below_that_of_training(terminal, engine_class):
    screens = []
    bar = RichProgress("validation", file=terminal.file, refresh_seconds=0)
    evaluate = validation(bar, engine_class)
    evaluate.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: screens.append(screen(terminal)))
    attach(engine_class(lambda engine, batch: batch), evaluate, RichProgress(file=terminal.file)).run([1, 2])
    training, validating = screens[0][:2]
    assert training.startswith("epoch 1/1")
    assert validating.startswith("validation")
    assert not any(line.startswith("validation") for line in screen(terminal))


def test_into_a_file_it_writes_a_line_an_epoch_without_control_characters(engine_class):
    output = io.StringIO()
    attach(counting(engine_class), RichProgress(file=output)).run([3, 2], max_epochs=2)
    first, second = output.getvalue().splitlines()
    assert re.fullmatch(r"epoch 1/2: 2 iterations in 0\.\d s \(.* it/s\), loss=2, val_accuracy=0.25", first)
    assert "\x1b" not in second


def test_an_error_leaves_the_bar_where_it_was_and_gives_the_terminal_back(terminal, engine_class):
    engine = attach(engine_class(lambda engine, batch: torch.tensor(1 / batch)), RichProgress(file=terminal.file))
    with pytest.raises(ZeroDivisionError):
        engine.run([1, 2, 0, 4])
    assert screen(terminal)[0].startswith("epoch 1/1 3/4 [")
    assert terminal.read().count("\x1b[?25l") == terminal.read().count("\x1b[?25h")  # the cursor is shown again


def test_an_interrupted_run_goes_on_with_what_the_table_knew(terminal):
    engine = attach(counting(), RichProgress(file=terminal.file))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.interrupt())
    engine.run([3, 2], max_epochs=2)
    engine.run([3, 2], max_epochs=2)
    assert screen(terminal)[-1].split() == ["val_accuracy", "0.75", "0.75", "2"]


def test_learning_rates_and_norms_have_no_best(terminal):
    engine = Engine(lambda engine, batch: {"gradient_norm": batch})
    attach(engine, RichProgress(file=terminal.file)).run([3.0, 2.0])
    assert screen(terminal)[-1].split() == ["gradient_norm", "2"]


def test_without_rich_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("camshaft.handlers.rich_progress.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="RichProgress needs the library rich: pip install rich"):
        RichProgress()
