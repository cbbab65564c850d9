import codecs
import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
import time

import pytest
import torch
from ignite.metrics import MeanSquaredError
from torch import nn
from torch.utils.data import DataLoader

from camshaft.engine import Engine, Events
from camshaft.handlers import Evaluate, Metrics, ProgressBar


class Terminal:
    """A real pseudo-terminal; ``screen()`` is what a person would see of it: the lines that are not empty."""

    def __init__(self, columns=120):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.file = os.fdopen(slave, "w")
        self.written = ""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self):
        decoder = codecs.getincrementaldecoder("utf-8")()
        with contextlib.suppress(OSError):  # the other side was closed
            while True:
                self.written += decoder.decode(os.read(self._master, 4096))

    def read(self):
        """All that was written until now; a NUL shows that it has come through."""
        marks = self.written.count("\0")
        print("\0", end="", file=self.file, flush=True)
        while self.written.count("\0") == marks:
            time.sleep(0.0005)
        return self.written.replace("\0", "")

    def screen(self):
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[A|[\r\n]|[^\x1b\r\n]+", self.read()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
            elif part == "\x1b[A":
                row -= 1
            else:
                lines += [""] * (row + 1 - len(lines))
                line = lines[row].ljust(column)
                lines[row] = line[:column] + part + line[column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines if line.strip()]

    def close(self):
        self.file.close()
        self._listener.join()
        os.close(self._master)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def attach(engine, *handlers):
    for handler in handlers:
        handler.attach(engine)
    return engine


def counting(engine_class=Engine):
    return engine_class(lambda engine, batch: torch.tensor(float(batch)))


def validation(bar=None, engine_class=Engine):
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    data = [(torch.ones(2, 1), torch.full((2, 1), 3.0))] * 3
    evaluator = engine_class(lambda engine, batch: (model(batch[0]), batch[1]))
    attach(evaluator, Metrics(error=MeanSquaredError()), *([bar] if bar else []))
    return Evaluate(evaluator, data)


class TestInATerminal:
    def test_each_epoch_leaves_one_line_with_its_loss_and_the_metrics_of_its_validation(self, terminal, engine_class):
        bar = ProgressBar(file=terminal.file)
        engine = attach(counting(engine_class), bar, validation(engine_class=engine_class))
        engine.run([1, 2, 3], max_epochs=2)

        first, second = terminal.screen()
        assert re.fullmatch(r"epoch 1/2 3/3 \[00:00, +[\d.]+it/s, loss=3, val_error=9\]", first)
        assert re.fullmatch(r"epoch 2/2 3/3 \[00:00, +[\d.]+it/s, loss=3, val_error=9\]", second)

    def test_while_it_runs_the_bar_moves_and_shows_the_newest_loss(self, terminal):
        screens = []
        engine = attach(counting(), ProgressBar(file=terminal.file, refresh_seconds=0))
        engine.add_event_handler(Events.ITERATION_STARTED, lambda: screens.append(terminal.screen()[-1]))
        engine.run([5, 6, 7, 8])

        assert [screen[:22] for screen in screens] == [
            "epoch 1/1   0%|       ",
            "epoch 1/1  25%|██▌    ",
            "epoch 1/1  50%|█████  ",
            "epoch 1/1  75%|███████",
        ]
        assert ["loss=5" in screens[1], "loss=6" in screens[2], "loss=7" in screens[3]] == [True] * 3

    def test_the_metrics_of_the_last_validation_stay_in_sight_during_the_next_epoch(self, terminal):
        screens = []
        engine = attach(counting(), ProgressBar(file=terminal.file, refresh_seconds=0), validation())
        engine.add_event_handler(Events.ITERATION_STARTED(once=5), lambda: screens.append(terminal.screen()[-1]))
        engine.run([1, 2, 3], max_epochs=2)

        assert "epoch 2/2  33%" in screens[0]
        assert "loss=1, val_error=9" in screens[0]

    def test_between_refreshes_nothing_is_written(self, terminal):
        writes = []
        engine = attach(counting(), ProgressBar(file=terminal.file, refresh_seconds=60))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: writes.append(terminal.read()))
        engine.run(range(100))

        assert "0/100" in writes[0]
        assert set(writes) == {writes[0]}

    def test_the_bar_of_a_validation_is_seen_below_and_leaves_no_line(self, terminal, engine_class):
        screens = []
        evaluate = validation(ProgressBar("validation", file=terminal.file, refresh_seconds=0), engine_class)
        evaluate.evaluator.add_event_handler(Events.ITERATION_STARTED, lambda: screens.append(terminal.screen()))
        engine = attach(counting(engine_class), ProgressBar(file=terminal.file), evaluate)
        engine.run([1, 2, 3])

        assert [len(screen) for screen in screens] == [2, 2, 2]
        assert screens[2][0].startswith("epoch 1/1 100%|██████████| 3/3 ")
        assert screens[2][1].startswith("validation  67%|██████▋   | 2/3 ")
        assert len(terminal.screen()) == 1
        assert "validation" not in terminal.screen()[0]

    def test_a_test_at_the_end_of_the_run_is_shown(self, terminal):
        engine = attach(counting(), ProgressBar(file=terminal.file))
        engine.add_event_handler(Events.COMPLETED, lambda engine: engine.state.metrics.update(test_accuracy=0.98765))
        engine.run([1, 2])

        assert terminal.screen()[1:] == ["end of the run: test_accuracy=0.9877"]

    def test_an_error_closes_the_bar_at_the_iteration_where_it_was_and_is_raised(self, terminal, engine_class):
        engine = engine_class(lambda engine, batch: torch.tensor(1 / batch))
        attach(engine, ProgressBar(file=terminal.file, refresh_seconds=0))
        with pytest.raises(ZeroDivisionError):
            engine.run([1, 2, 0, 4])

        assert len(terminal.screen()) == 1
        assert "| 3/4 [" in terminal.screen()[0]
        assert terminal.read().endswith("\n")

    def test_a_terminated_run_leaves_a_line_that_tells_where(self, terminal, engine_class):
        engine = engine_class(lambda engine, batch: engine.terminate())
        attach(engine, ProgressBar(file=terminal.file, refresh_seconds=0)).run([1, 2, 3, 4])

        assert len(terminal.screen()) == 1
        assert terminal.screen()[0].startswith("epoch 1/1 1/4 [")

    def test_an_interrupted_run_goes_on_in_a_bar_at_the_same_place(self, terminal):
        engine = attach(counting(), ProgressBar(file=terminal.file, refresh_seconds=0))
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.interrupt())
        engine.run([1, 2, 3, 4])
        assert "| 2/4 [" in terminal.screen()[0]

        engine.run([1, 2, 3, 4])
        assert len(terminal.screen()) == 2
        assert "4/4 [" in terminal.screen()[1]

    def test_a_run_resumed_within_an_epoch_begins_where_that_was(self, terminal):
        screens = []
        engine = attach(counting(), ProgressBar(file=terminal.file))
        engine.load_state_dict({"epoch_length": 4, "max_epochs": 2, "iteration": 6})
        engine.add_event_handler(Events.ITERATION_STARTED(once=7), lambda: screens.append(terminal.screen()[-1]))
        engine.run([1, 2, 3, 4], max_epochs=2)

        assert screens[0].startswith("epoch 2/2  50%|█████     | 2/4 ")

    def test_data_of_unknown_length_is_counted(self, terminal):
        engine = attach(counting(), ProgressBar(file=terminal.file, refresh_seconds=0))
        engine.run(iter([1, 2, 3]))

        assert terminal.screen()[0].startswith("epoch 1/1: 3it [")

    def test_a_run_of_so_many_iterations_ends_its_last_bar_full(self, terminal):
        engine = attach(counting(), ProgressBar(file=terminal.file))
        engine.run([1, 2, 3, 4], max_iters=6)

        first, second = terminal.screen()
        assert "4/4 [" in first
        assert "2/2 [" in second

    def test_the_time_of_a_validation_is_not_counted_in_that_of_the_epoch(self, terminal):
        evaluate = validation()
        evaluate.evaluator.add_event_handler(Events.STARTED, lambda: time.sleep(1))
        engine = attach(counting(), ProgressBar(file=terminal.file), evaluate)
        engine.run([1, 2])

        assert terminal.screen()[0].startswith("epoch 1/1 2/2 [00:00, ")

    def test_the_rate_in_samples_is_that_of_iterations_times_their_samples(self, terminal):
        engine = attach(Engine(lambda engine, batch: batch[0].mean()), ProgressBar(file=terminal.file))
        engine.run([(torch.ones(50, 2), torch.ones(50))] * 4)

        (line,) = terminal.screen()
        assert re.search(r"it/s, [\d,]+ samples/s, loss=1\]$", line)

    def test_a_terminal_that_does_not_know_its_width_shows_the_bar(self):
        terminal = Terminal(columns=0)
        attach(counting(), ProgressBar(file=terminal.file)).run([1, 2, 3], max_epochs=2)
        lines = terminal.screen()
        terminal.close()

        assert [line[:17] for line in lines] == ["epoch 1/2 3/3 [00", "epoch 2/2 3/3 [00"]


class TestInAFile:
    def test_each_epoch_is_one_line_without_control_characters(self, engine_class):
        output = io.StringIO()
        engine = attach(counting(engine_class), ProgressBar(file=output), validation(engine_class=engine_class))
        engine.run([1, 2, 3], max_epochs=10)

        lines = output.getvalue().split("\n")
        assert len(lines) == 11
        assert re.fullmatch(r"epoch  1/10: 3 iterations in 0\.\d s \([\d.e+]+ it/s\), loss=3, val_error=9", lines[0])
        assert re.fullmatch(r"epoch 10/10: 3 iterations in 0\.\d s \([\d.e+]+ it/s\), loss=3, val_error=9", lines[9])
        assert lines[10] == ""

    def test_the_rate_in_samples_is_that_of_iterations_times_their_samples(self, engine_class):
        output = io.StringIO()
        loader = DataLoader(torch.ones(10, 2), batch_size=4)  # the last is smaller
        attach(engine_class(lambda engine, batch: batch.mean()), ProgressBar(file=output)).run(loader)

        iterations, samples = re.search(r"\(([\d.e+]+) it/s, ([\d,]+) samples/s\)", output.getvalue()).groups()
        assert float(samples.replace(",", "")) == pytest.approx(4 * float(iterations), rel=0.01)

    def test_the_error_stream_is_where_it_goes_unless_told_otherwise(self, capsys):
        attach(counting(), ProgressBar()).run([1])

        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("epoch 1/1: 1 iterations in ")

    def test_a_bar_with_a_description_writes_nothing(self):
        output = io.StringIO()
        evaluate = validation(ProgressBar("validation", file=output))
        attach(counting(), evaluate).run([1, 2], max_epochs=3)

        assert output.getvalue() == ""

    def test_a_bar_with_a_description_that_is_to_stay_writes_its_line(self):
        output = io.StringIO()
        attach(counting(), ProgressBar("test", leave=True, file=output)).run([1, 2])

        assert output.getvalue().startswith("test: 2 iterations in ")

    def test_a_resumed_epoch_counts_only_what_this_run_did(self):
        output = io.StringIO()
        engine = attach(counting(), ProgressBar(file=output))
        engine.load_state_dict({"epoch_length": 4, "max_epochs": 1, "iteration": 3})
        engine.run([1, 2, 3, 4], max_epochs=1)

        assert output.getvalue().startswith("epoch 1/1: 1 iterations in ")

    def test_every_process_but_the_first_shows_nothing(self, monkeypatch):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
        output = io.StringIO()
        attach(counting(), ProgressBar(file=output)).run([1, 2])

        assert output.getvalue() == ""


def test_a_negative_pause_is_refused():
    with pytest.raises(ValueError, match="-1"):
        ProgressBar(refresh_seconds=-1)
