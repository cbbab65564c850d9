import csv
import math

import pytest
import torch
from ignite.engine import create_supervised_trainer
from ignite.metrics import MeanSquaredError
from torch import nn

from camshaft.engine import Engine, Events
from camshaft.handlers import CSVLogger, Evaluate, Metrics


def engine_with(*handlers, engine_class=Engine, step=None):
    engine = engine_class(step or (lambda engine, batch: torch.tensor(float(batch))))
    for handler in handlers:
        handler.attach(engine)
    return engine


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(path, name):
    return [(int(row["iteration"]), float(row[name])) for row in rows_of(path) if row[name]]


def measure(engine):
    """A metric that exists from the end of the second epoch on."""
    if engine.state.epoch >= 2:
        engine.state.metrics["accuracy"] = engine.state.epoch / 10


def test_one_line_a_record_under_a_header_that_any_reader_understands(tmp_path, engine_class):
    engine_with(CSVLogger(tmp_path / "log.csv", every=2), engine_class=engine_class).run([1, 2, 3, 4], epoch_length=4)

    rows = rows_of(tmp_path / "log.csv")
    assert [row["iteration"] for row in rows] == ["2", "4"]
    assert [row["loss"] for row in rows] == ["2.0", "4.0"]
    assert [row["epoch"] for row in rows] == ["1", "1"]


def test_in_a_directory_the_file_is_metrics_csv_and_the_directory_is_made(tmp_path):
    engine_with(CSVLogger(tmp_path / "runs" / "one", every=1)).run([1])

    assert column(tmp_path / "runs" / "one" / "metrics.csv", "loss") == [(1, 1.0)]


def test_nothing_is_made_before_the_run_starts(tmp_path):
    engine_with(CSVLogger(tmp_path / "runs"))

    assert list(tmp_path.iterdir()) == []


def test_a_trainer_of_ignite_is_logged_with_loss_learning_rate_and_validation(tmp_path):
    model = nn.Linear(2, 1)
    data = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(4)]
    trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), 0.125), nn.functional.mse_loss)
    evaluator = engine_with(Metrics(error=MeanSquaredError()), step=lambda engine, batch: (model(batch[0]), batch[1]))
    for handler in (CSVLogger(tmp_path, every=2), Evaluate(evaluator, data)):
        handler.attach(trainer)
    trainer.run(data, max_epochs=2)

    path = tmp_path / "metrics.csv"
    assert [at for at, _ in column(path, "loss")] == [2, 4, 6, 8]
    assert column(path, "learning_rate") == [(2, 0.125), (4, 0.125), (6, 0.125), (8, 0.125)]
    assert [at for at, _ in column(path, "val_error")] == [4, 8]


def test_a_column_that_appears_later_is_added_behind_and_empty_before(tmp_path):
    engine = engine_with(CSVLogger(tmp_path, every=1))
    engine.add_event_handler(Events.EPOCH_COMPLETED, measure)
    engine.run([1, 2], max_epochs=2)

    assert (tmp_path / "metrics.csv").read_text() == (
        "iteration,epoch,optimizer_step,loss,accuracy\n1,1,0,1.0,\n2,1,0,2.0,\n3,2,0,1.0,\n4,2,0,2.0,\n4,2,0,,0.2\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_numbers_are_written_with_all_their_digits(tmp_path):
    engine_with(CSVLogger(tmp_path, every=1), step=lambda engine, batch: torch.tensor(1 / 3, dtype=torch.float64)).run(
        [0]
    )

    assert column(tmp_path / "metrics.csv", "loss") == [(1, 1 / 3)]


def test_values_that_are_no_finite_numbers_are_written_too(tmp_path):
    engine_with(CSVLogger(tmp_path, every=1)).run([math.nan, math.inf])

    (_, first), (_, second) = column(tmp_path / "metrics.csv", "loss")
    assert math.isnan(first)
    assert second == math.inf


def test_a_name_with_commas_and_quotes_comes_back(tmp_path):
    engine_with(CSVLogger(tmp_path, every=1), step=lambda engine, batch: {'a,"b"': 2.0}).run([0])

    assert column(tmp_path / "metrics.csv", 'a,"b"') == [(1, 2.0)]


def test_an_entry_named_like_the_position_does_not_make_a_second_column(tmp_path):
    engine_with(CSVLogger(tmp_path, every=1), step=lambda engine, batch: {"loss": 1.0, "epoch": 99}).run([0])

    assert (tmp_path / "metrics.csv").read_text() == "iteration,epoch,optimizer_step,loss\n1,1,0,1.0\n"


def test_the_next_run_on_the_same_logger_appends(tmp_path):
    engine = engine_with(CSVLogger(tmp_path, every=1))
    engine.run([1, 2], max_epochs=1)
    engine.run([1, 2], max_epochs=2)

    assert [at for at, _ in column(tmp_path / "metrics.csv", "loss")] == [1, 2, 3, 4]


def test_a_new_run_puts_the_file_of_an_earlier_one_aside(tmp_path):
    for loss in (1, 2, 3):
        engine_with(CSVLogger(tmp_path, every=1)).run([loss])

    losses = {path.name: column(path, "loss") for path in tmp_path.iterdir()}
    assert losses == {"metrics.1.csv": [(1, 1.0)], "metrics.2.csv": [(1, 2.0)], "metrics.csv": [(1, 3.0)]}


def test_a_state_loaded_by_other_means_lets_a_new_logger_append(tmp_path):
    first = engine_with(CSVLogger(tmp_path, every=1))
    first.run([1, 2], max_epochs=1)
    second = engine_with(CSVLogger(tmp_path, every=1))
    second.load_state_dict({**first.state_dict(), "max_epochs": 2})
    second.run([1, 2], max_epochs=2)

    assert [at for at, _ in column(tmp_path / "metrics.csv", "loss")] == [1, 2, 3, 4]


class TestResume:
    """A run of three epochs is killed in its third; its checkpoint is of an earlier moment."""

    def run(self, directory, *, checkpoint_at=None, kill_at=None, resumed_from=None):
        logger = CSVLogger(directory, every=1)
        engine = engine_with(logger, step=lambda engine, batch: engine.state.iteration / 2)
        engine.add_event_handler(Events.EPOCH_COMPLETED, measure)
        kept = {}
        if resumed_from:
            logger.load_state_dict(resumed_from["logger"])
            engine.load_state_dict(resumed_from["engine"])

        @engine.on(Events.ITERATION_STARTED)
        def keep_or_die(engine):
            if engine.state.iteration == checkpoint_at:
                kept["logger"] = logger.state_dict()
                kept["engine"] = {**engine.state_dict(), "iteration": engine.state.iteration - 1}
            if engine.state.iteration == kill_at:
                logger.flush()
                raise KeyboardInterrupt

        try:
            engine.run(range(4), max_epochs=3)
        except KeyboardInterrupt:
            assert kill_at is not None
        return kept

    @pytest.mark.parametrize("checkpoint_at", [1, 3, 5, 9, 10])
    def test_the_file_ends_as_that_of_a_run_that_was_never_killed(self, tmp_path, checkpoint_at):
        self.run(tmp_path / "whole")
        kept = self.run(tmp_path / "killed", checkpoint_at=checkpoint_at, kill_at=11)
        self.run(tmp_path / "killed", resumed_from=kept)

        assert (tmp_path / "killed" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()

    def test_a_line_that_was_cut_off_in_the_middle_is_not_kept(self, tmp_path):
        self.run(tmp_path / "whole")
        kept = self.run(tmp_path / "killed", checkpoint_at=10, kill_at=11)
        with (tmp_path / "killed" / "metrics.csv").open("a") as file:
            file.write("11,3,0,3.")
        self.run(tmp_path / "killed", resumed_from=kept)

        assert (tmp_path / "killed" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()

    def test_in_another_directory_the_resumed_run_begins_a_file(self, tmp_path):
        kept = self.run(tmp_path / "killed", checkpoint_at=10, kill_at=11)
        self.run(tmp_path / "elsewhere", resumed_from=kept)

        path = tmp_path / "elsewhere" / "metrics.csv"
        assert column(path, "loss") == [(10, 5.0), (11, 5.5), (12, 6.0)]

    def test_lines_that_are_missing_are_told_of(self, tmp_path):
        kept = self.run(tmp_path, checkpoint_at=10, kill_at=11)
        path = tmp_path / "metrics.csv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:6]))

        with pytest.warns(UserWarning, match="has 5 lines, but the checkpoint was saved after 10"):
            self.run(tmp_path, resumed_from=kept)
        assert [at for at, _ in column(path, "loss")] == [1, 2, 3, 4, 5, 10, 11, 12]


class TestRefusals:
    def test_a_directory_that_cannot_be_made_is_one_sentence_at_the_start(self, tmp_path, engine_class):
        (tmp_path / "runs").write_text("a file")
        steps = []
        engine = engine_with(
            CSVLogger(tmp_path / "runs" / "one"), engine_class=engine_class, step=lambda *_: steps.append(1)
        )

        with pytest.raises(
            OSError, match=r"CSVLogger cannot write to '.*runs/one' \(Not a directory\)\. Give it another"
        ):
            engine.run([0])
        assert steps == []

    def test_a_directory_in_the_place_of_the_file_is_told_of(self, tmp_path):
        (tmp_path / "log.csv").mkdir()

        with pytest.raises(OSError, match=r"CSVLogger cannot write to '.*log.csv' \(Is a directory\)"):
            engine_with(CSVLogger(tmp_path / "log.csv")).run([0])

    def test_two_loggers_to_one_file_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="Two loggers write to"):
            engine_with(CSVLogger(tmp_path), CSVLogger(tmp_path / "metrics.csv")).run([0])
