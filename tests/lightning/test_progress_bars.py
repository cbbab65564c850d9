"""The progress bars: lines in a file, bars in a terminal, and what programs override in them."""

import contextlib
import io
import pickle
import re
from typing import ClassVar

import pytest
import torch
from rich import reconfigure
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from camshaft.contrib.lightning import LightningModule, Trainer
from camshaft.contrib.lightning.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from camshaft.contrib.lightning.callbacks.progress import stages
from camshaft.contrib.lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from camshaft.contrib.lightning.callbacks.progress.tqdm_progress import Tqdm, convert_inf
from camshaft.contrib.lightning.loggers import CSVLogger


class Terminal(io.StringIO):
    """Takes what is written as a terminal would; ``drawn`` are the states of its lines, one after the other."""

    def __enter__(self):
        self._redirection = contextlib.redirect_stdout(self)
        self._redirection.__enter__()
        return self

    def __exit__(self, *error):
        self._redirection.__exit__(*error)

    def isatty(self):
        return True

    @property
    def drawn(self):
        plain = re.sub(r"\x1b\[[0-9;?]*[AKhl]", "\n", re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue()))
        return [part.strip() for part in re.split(r"[\r\n]+", plain) if part.strip()]


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).pow(2).mean()
        self.log("loss", torch.tensor(0.25), prog_bar=True)
        self.log("hidden", torch.tensor(0.75))
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", torch.tensor(0.5), prog_bar=True)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def predict_step(self, batch, batch_idx):
        return self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(number):
    return DataLoader(torch.ones(number, 2), batch_size=1)


def trainer_with(*callbacks, **arguments):
    defaults = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(callbacks=list(callbacks), accelerator="cpu", **(defaults | arguments))


@pytest.fixture
def terminal(monkeypatch):
    """A terminal that is the standard output in a `with`, and in which a bar is drawn at every batch."""
    terminal = Terminal()
    monkeypatch.setattr(stages, "_SECONDS_BETWEEN_DRAWINGS", 0.0)
    reconfigure(file=terminal, force_terminal=True, width=160)
    yield terminal
    reconfigure()


def without_times(text):
    return [re.sub(r" in [\d.]+ s \([\d.e+]+ batches/s\)", "", line) for line in text.splitlines()]


BARS = pytest.mark.parametrize("bar_class", [TQDMProgressBar, RichProgressBar], ids=["tqdm", "rich"])


# ---------------------------------------------------------------------------------------------------- files and pipes


@BARS
def test_a_file_gets_a_line_for_each_epoch_with_what_is_for_the_bar(bar_class, capsys):
    trainer_with(bar_class()).fit(Model(), batches(4), batches(2))

    lines = [line.split(", ") for line in without_times(capsys.readouterr().out)]
    assert [(first, sorted(numbers)) for first, *numbers in lines] == [
        ("Epoch 0: 4 batches", ["loss=0.25", "val_loss=0.5"]),
        ("Epoch 1: 4 batches", ["loss=0.25", "val_loss=0.5"]),
    ]


def test_validations_in_the_middle_of_an_epoch_do_not_cut_its_line(capsys):
    trainer_with(TQDMProgressBar(), max_epochs=1, val_check_interval=2).fit(Model(), batches(6), batches(3))

    assert [line.split(",")[0] for line in without_times(capsys.readouterr().out)] == ["Epoch 0: 6 batches"]


def test_a_file_gets_no_control_characters(capsys):
    trainer = trainer_with(TQDMProgressBar(), max_epochs=1)
    trainer.fit(Model(), batches(2), batches(2))
    trainer.predict(Model(), batches(2))

    assert not re.search(r"[\r\x1b]", capsys.readouterr().out)


def test_the_other_functions_write_a_line_for_each_loader(capsys):
    trainer = trainer_with(TQDMProgressBar())
    trainer.validate(Model(), [batches(3), batches(2)], verbose=False)
    trainer.test(Model(), batches(2), verbose=False)
    trainer.predict(Model(), batches(4))

    assert without_times(capsys.readouterr().out) == [
        "Validation DataLoader 0: 3 batches",
        "Validation DataLoader 1: 2 batches",
        "Testing DataLoader 0: 2 batches",
        "Predicting DataLoader 0: 4 batches",
    ]


def test_the_line_begins_with_the_version_of_the_experiment(capsys, tmp_path):
    trainer_with(TQDMProgressBar(), max_epochs=1, logger=CSVLogger(tmp_path, version=7)).fit(Model(), batches(1))

    assert without_times(capsys.readouterr().out) == ["Epoch 0: 1 batches, v_num=7, loss=0.25"]


def test_of_a_long_version_the_last_characters_are_shown(capsys, tmp_path):
    logger = CSVLogger(tmp_path, version="2026-11-23")
    trainer_with(TQDMProgressBar(), max_epochs=1, logger=logger).fit(Model(), batches(1))

    assert "v_num=1-23" in capsys.readouterr().out


@pytest.mark.parametrize(
    "callbacks", [[TQDMProgressBar(refresh_rate=0)], [RichProgressBar(refresh_rate=0)]], ids=["tqdm", "rich"]
)
def test_a_refresh_rate_of_zero_shows_nothing(callbacks, capsys):
    trainer = trainer_with(*callbacks)
    trainer.fit(Model(), batches(2), batches(2))

    assert capsys.readouterr().out == ""


@BARS
def test_a_bar_that_was_disabled_shows_nothing_until_it_is_enabled(bar_class, capsys):
    bar = bar_class()
    bar.disable()
    trainer_with(bar).fit(Model(), batches(2))
    assert (capsys.readouterr().out, bar.is_disabled) == ("", True)

    bar.enable()
    trainer_with(bar).fit(Model(), batches(2))
    assert capsys.readouterr().out != ""


# ------------------------------------------------------------------------------------------------------------ terminals


@BARS
def test_a_terminal_gets_a_bar_for_each_stage(bar_class, terminal):
    trainer = trainer_with(bar_class(), max_epochs=1)
    with terminal:
        trainer.fit(Model(), batches(4), batches(3))
        trainer.validate(Model(), batches(3), verbose=False)
        trainer.test(Model(), batches(5), verbose=False)
        trainer.predict(Model(), batches(6))

    shown = "\n".join(terminal.drawn)
    for stage, counter in {
        "Sanity Checking DataLoader 0": "2/2",
        "Epoch 0": "4/4",
        "Validation DataLoader 0": "3/3",
        "Testing DataLoader 0": "5/5",
        "Predicting DataLoader 0": "6/6",
    }.items():
        assert re.search(rf"{stage}.*{counter}", shown), stage


@BARS
def test_the_bar_of_an_epoch_ends_with_the_newest_metrics(bar_class, terminal):
    with terminal:
        trainer_with(bar_class(), max_epochs=1).fit(Model(), batches(4), batches(2))

    last = [line for line in terminal.drawn if line.startswith("Epoch 0")][-1]
    assert re.search(r"val_loss[=:] ?0\.500", last)
    assert "hidden" not in last


@BARS
def test_validations_in_the_middle_of_an_epoch_do_not_stop_its_bar(bar_class, terminal):
    with terminal:
        trainer_with(bar_class(), max_epochs=1, val_check_interval=2).fit(Model(), batches(6), batches(3))

    shown = "\n".join(terminal.drawn)
    assert re.search(r"Epoch 0.* 2/6[^$]*Validation.* 3/3[^$]*Epoch 0.* 6/6", shown)


@BARS
def test_a_bar_that_is_not_left_gives_its_place_to_the_next(bar_class, terminal):
    with terminal:
        trainer_with(bar_class(), num_sanity_val_steps=0).fit(Model(), batches(2))

    assert terminal.getvalue().count("\n") <= 2


@BARS
def test_a_bar_that_is_left_stays_when_the_next_epoch_begins(bar_class, terminal):
    with terminal:
        trainer_with(bar_class(leave=True), max_epochs=3).fit(Model(), batches(2))

    kept = [line for line in re.split(r"\n", terminal.getvalue()) if line.strip()]
    assert len(kept) >= 3


@BARS
def test_a_loader_without_length_has_a_bar_without_end(bar_class, terminal):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([torch.ones(2)] * 3)

    with terminal:
        trainer_with(bar_class(), max_epochs=1).fit(Model(), DataLoader(Stream(), batch_size=1))

    assert any(re.search(r"Epoch 0.* 3/(\?|--)", line) for line in terminal.drawn)


def test_it_is_drawn_after_multiples_of_the_refresh_rate_and_at_the_end(terminal):
    with terminal:
        trainer_with(TQDMProgressBar(refresh_rate=3), max_epochs=1).fit(Model(), batches(8))

    counts = [int(found) for line in terminal.drawn for found in re.findall(r"Epoch 0.* (\d)/8", line)]
    assert sorted(set(counts)) == [0, 3, 6, 8]


def test_metrics_are_asked_for_only_when_it_is_drawn(terminal, monkeypatch):
    monkeypatch.setattr(stages, "_SECONDS_BETWEEN_DRAWINGS", 1000.0)
    asked = []

    class Counting(TQDMProgressBar):
        def get_metrics(self, trainer, pl_module):
            asked.append(trainer.global_step)
            return super().get_metrics(trainer, pl_module)

    with terminal:
        trainer_with(Counting(), max_epochs=1).fit(Model(), batches(50))

    assert asked == [50, 50]  # when it is full, and at the end of the epoch


@BARS
def test_an_error_leaves_the_cursor_on_a_line_of_its_own(bar_class, terminal):
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("out of order")

    with terminal, pytest.raises(RuntimeError, match="out of order"):
        trainer_with(bar_class()).fit(Broken(), batches(2))

    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).endswith("\n")


def test_print_writes_above_the_bar(terminal):
    class Talking(Model):
        def on_train_epoch_end(self):
            self.print("half", "way", sep="-")

    with terminal:
        trainer_with(TQDMProgressBar(), max_epochs=1).fit(Talking(), batches(2))

    assert "half-way" in terminal.drawn


def test_print_without_a_bar_is_python_s(capsys):
    TQDMProgressBar().print("half", "way", sep="-", end="!")

    assert capsys.readouterr().out == "half-way!"


# ------------------------------------------------------------------------------------------------- what one overrides


def test_metrics_can_be_added_and_left_out(capsys, tmp_path):
    class Mine(TQDMProgressBar):
        def get_metrics(self, trainer, pl_module):
            items = super().get_metrics(trainer, pl_module)
            items.pop("v_num")
            return {**items, "step": trainer.global_step}

    trainer_with(Mine(), max_epochs=1, logger=CSVLogger(tmp_path)).fit(Model(), batches(3))

    assert without_times(capsys.readouterr().out) == ["Epoch 0: 3 batches, loss=0.25, step=3"]


def test_bars_can_be_others(terminal):
    class Mine(TQDMProgressBar):
        def init_train_tqdm(self):
            bar = super().init_train_tqdm()
            bar.bar_format = "mine {n_fmt}"
            return bar

    with terminal:
        trainer_with(Mine(), max_epochs=1).fit(Model(), batches(3))

    assert "mine 3" in terminal.drawn


def test_columns_of_rich_can_be_others(terminal):
    from rich.progress import TextColumn  # noqa: PLC0415

    class Mine(RichProgressBar):
        def configure_columns(self, trainer):
            return [TextColumn("mine {task.completed}")]

    with terminal:
        trainer_with(Mine(), max_epochs=1).fit(Model(), batches(3))

    assert any(line.startswith("mine 3") for line in terminal.drawn)


def test_the_theme_of_rich_says_how_numbers_are_written(terminal):
    theme = RichProgressBarTheme(metrics_format=".1e", metrics_text_delimiter=" | ")
    with terminal:
        trainer_with(RichProgressBar(theme=theme), max_epochs=1).fit(Model(), batches(1), batches(1))

    assert re.search(r"loss: [25]\.[05]e-01 \| (val_)?loss: [25]\.[05]e-01", "\n".join(terminal.drawn))


def test_a_bar_of_the_program_knows_how_far_the_run_is():
    class Mine(ProgressBar):
        seen = None
        loaders: ClassVar = []

        def disable(self): ...

        def enable(self): ...

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen = (self.train_batch_idx, self.total_train_batches, self.total_val_batches)

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if self.has_dataloader_changed(dataloader_idx):
                self.loaders.append(self.total_val_batches_current_dataloader)

    bar = Mine()
    trainer_with(bar, max_epochs=1).fit(Model(), batches(4), [batches(3), batches(2)])

    assert bar.seen == (4, 4, 5)
    assert bar.loaders == [2, 2, 3, 2]  # first those of the sanity check


def test_a_bar_that_cannot_be_switched_off_says_so():
    with pytest.raises(NotImplementedError, match=r"override disable\(\)"):
        ProgressBar().disable()


def test_a_bar_without_a_trainer_says_so():
    with pytest.raises(TypeError, match="has no trainer yet"):
        _ = TQDMProgressBar().trainer
    with pytest.raises(TypeError, match="has no train bar yet"):
        _ = TQDMProgressBar().train_progress_bar


def test_a_name_that_the_bar_uses_itself_is_a_warning(tmp_path):
    class Clashing(Model):
        def training_step(self, batch, batch_idx):
            self.log("v_num", torch.tensor(3.0), prog_bar=True)
            return self.layer(batch).mean()

    trainer = trainer_with(TQDMProgressBar(), max_epochs=1, logger=CSVLogger(tmp_path))
    with pytest.warns(UserWarning, match="The progress bar shows v_num by itself"):
        trainer.fit(Clashing(), batches(1))


@BARS
def test_a_bar_can_be_sent_to_another_process(bar_class, terminal):
    bar = bar_class(leave=True)
    trainer = trainer_with(bar, max_epochs=1)
    with terminal:
        trainer.fit(Model(), batches(2))
    bar._trainer = None

    assert pickle.loads(pickle.dumps(bar)).is_enabled


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.5, "0.5000"), (12.25, "12.25"), (1234.5, "1234"), (1e-7, "1.000e-07"), (3, "3"), (float("nan"), "nan")],
    ids=str,
)
def test_numbers_of_tqdm_keep_their_width(number, text):
    assert Tqdm.format_num(number) == text


def test_an_infinite_number_of_batches_is_none():
    assert convert_inf(float("inf")) is None


def test_rich_that_is_missing_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ModuleNotFoundError, match=r"RichProgressBar needs .*pip install rich"):
        RichProgressBar()
