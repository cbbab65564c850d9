"""How long the parts of a run take."""

import json
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerAction

from camshaft.contrib.lightning import LightningModule, Trainer, profilers
from camshaft.contrib.lightning.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(profiler, batches=8, model=None, **arguments):
    trainer = Trainer(
        profiler=profiler,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(model or Model(), [torch.ones(2, 2)] * batches, [torch.ones(2, 2)] * 6)
    return trainer


@pytest.fixture(autouse=True)
def _traces_go_to_a_directory_of_the_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def take_steps(profiler, model, function, number):
    for batch_idx in range(number):
        with profiler.profile(f"[LightningModule]Model.{function}"):
            getattr(model, function)(torch.ones(2, 2), batch_idx)


@pytest.mark.parametrize("name", profilers.__all__)
def test_every_public_name_is_there(name):
    assert issubclass(getattr(profilers, name), Profiler)


def test_a_context_stops_its_action_when_it_fails():
    profiler = SimpleProfiler()
    with pytest.raises(RuntimeError, match="out of order"), profiler.profile("load"):
        raise RuntimeError("out of order")

    assert profiler.current_actions == {}
    assert len(profiler.recorded_durations["load"]) == 1


def test_the_one_that_measures_nothing_says_nothing(caplog):
    profiler = PassThroughProfiler()
    with caplog.at_level(logging.INFO), profiler.profile("load"):
        profiler.describe()

    assert caplog.text == ""


# ------------------------------------------------------------------------------------------------------------- simple


def test_the_simple_one_reports_those_that_took_longest_first():
    profiler = SimpleProfiler()
    profiler.recorded_durations = {"short": [0.5, 0.25], "long": [2.0]}

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in profiler.summary().splitlines() if "|" in line]
    assert [row[0] for row in rows] == ["Action", "Total", "long", "short"]
    assert rows[3][:4] == ["short", "0.375", "2", "0.75"]


def test_without_the_extended_report_by_their_means():
    profiler = SimpleProfiler(extended=False)
    profiler.recorded_durations = {"often": [0.5] * 9, "seldom": [2.0]}

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in profiler.summary().splitlines() if "|" in line]
    assert rows == [
        ["Action", "Mean duration (s)", "Total time (s)"],
        ["seldom", "2.0", "2.0"],
        ["often", "0.5", "4.5"],
    ]


def test_it_says_when_an_action_is_started_twice_or_was_never_started():
    profiler = SimpleProfiler()
    profiler.start("load")

    with pytest.raises(ValueError, match="told to start 'load', which is under way"):
        profiler.start("load")
    with pytest.raises(ValueError, match="told to stop 'save', which is not under way"):
        profiler.stop("save")


def test_a_run_is_reported_when_it_is_over(caplog):
    with caplog.at_level(logging.INFO, logger="camshaft"):
        fit("simple")

    assert "FIT Profiler Report" in caplog.text
    assert "[LightningModule]Model.training_step" in caplog.text


def test_or_in_a_file(tmp_path):
    fit(SimpleProfiler(dirpath=tmp_path / "reports", filename="times"))

    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["fit-times-0.txt"]
    assert "training_step" in (tmp_path / "reports" / "fit-times-0.txt").read_text()


# ----------------------------------------------------------------------------------------------------------- advanced


def test_the_advanced_one_reports_functions_of_each_action():
    profiler = AdvancedProfiler()
    fit(profiler)

    text = profiler.summary()
    assert "Profile stats for: [LightningModule]Model.training_step rank: 0" in text
    assert "(training_step)" in text


def test_an_action_within_another_is_not_measured_twice():
    profiler = AdvancedProfiler()
    with profiler.profile("outer"):
        sorted([2, 1])
        with profiler.profile("inner"):
            max(1, 2)
        min(1, 2)

    outer, inner = profiler.summary().split("Profile stats for: inner")
    assert all(function in outer for function in ("builtins.sorted", "builtins.min"))
    assert "builtins.max" not in outer
    assert "builtins.max" in inner


def test_what_was_measured_can_be_kept_for_other_programs(tmp_path):
    profiler = AdvancedProfiler(dirpath=tmp_path, dump_stats=True)
    with profiler.profile("load/data"):
        pass
    profiler.describe()

    assert [path.name for path in tmp_path.iterdir()] == ["load_data.prof"]


def test_for_which_it_needs_a_directory():
    profiler = AdvancedProfiler(dump_stats=True)
    with profiler.profile("load"):
        pass

    with pytest.raises(ValueError, match="give it dirpath"):
        profiler.summary()


def test_it_says_when_an_action_was_never_started():
    with pytest.raises(ValueError, match="told to stop 'save', which never began"):
        AdvancedProfiler().stop("save")


def test_it_can_be_sent_to_another_process():
    profiler = AdvancedProfiler(filename="times", line_count_restriction=0.5)
    with profiler.profile("load"):
        pass

    copy = pickle.loads(pickle.dumps(profiler))
    assert (copy.filename, copy.line_count_restriction, copy.profiled_actions) == ("times", 0.5, {})


# ------------------------------------------------------------------------------------------------------------ pytorch


def test_the_one_of_pytorch_records_a_few_batches_of_each_stage(tmp_path):
    model = Model()
    profiler = PyTorchProfiler(dirpath=tmp_path)
    profiler._lightning_module = model
    take_steps(profiler, model, "training_step", 6)
    take_steps(profiler, model, "validation_step", 6)

    text = profiler.summary()
    assert "[LightningModule]Model.training_step" in text
    assert "[LightningModule]Model.validation_step" in text
    assert "aten::addmm" in text
    assert "[pl][module]torch.nn.modules.linear.Linear: layer" in text
    traces = sorted(path.name for path in tmp_path.glob("*.pt.trace.json"))
    assert len(traces) == 2
    assert json.loads((tmp_path / traces[0]).read_text())["traceEvents"]


def test_it_records_all_batches_where_there_are_few():
    model = Model()
    profiler = PyTorchProfiler()
    profiler._lightning_module = model
    fit(profiler, batches=2, model=model)

    assert "aten::addmm" in profiler.summary()


def test_it_can_be_stopped_by_an_error():
    class Broken(Model):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("out of order")
            return super().training_step(batch, batch_idx)

    for _ in range(2):  # the first has left nothing that disturbs the second
        with pytest.raises(RuntimeError, match="out of order"):
            fit("pytorch", model=Broken())


def test_a_stage_that_begins_while_another_is_recorded_does_not_cut_it():
    model = Model()
    profiler = PyTorchProfiler()
    for function, number in [
        ("training_step", 3),
        ("validation_step", 4),
        ("training_step", 3),
        ("validation_step", 6),
    ]:
        take_steps(profiler, model, function, number)

    assert profiler.summary().count("Profile stats for") == 2


def test_a_schedule_of_the_program_says_which_batches_are_recorded():
    seen = []

    def schedule(step):
        seen.append(step)
        return ProfilerAction.RECORD_AND_SAVE if step == 2 else ProfilerAction.NONE

    profiler = PyTorchProfiler(schedule=schedule)
    take_steps(profiler, Model(), "training_step", 6)

    assert seen == [0, 1, 2]  # the first time to see that it is a schedule
    assert profiler.summary().count("Profile stats for") == 1


def test_a_trace_can_go_elsewhere():
    ready = []
    fit(PyTorchProfiler(on_trace_ready=ready.append, schedule=torch.profiler.schedule(wait=0, warmup=1, active=1)))

    assert isinstance(ready[0], torch.profiler.profile)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sort_by_key": "beauty"}, "sort_by_key is one of .*but got 'beauty'"),
        ({"schedule": 3}, "schedule is a function .*but got 3"),
        ({"schedule": lambda step: "record"}, "schedule is a function"),
    ],
    ids=["sort key", "no function", "no action"],
)
def test_what_has_no_meaning_is_refused(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        PyTorchProfiler(**arguments)


def test_arguments_that_torch_does_not_have_are_refused():
    with pytest.raises(TypeError, match=r"got beauty, which torch\.profiler\.profile does not have"):
        PyTorchProfiler(beauty=True)
    with pytest.raises(TypeError, match="got row_limit, which the table does not have"):
        PyTorchProfiler(table_kwargs={"row_limit": 3})
