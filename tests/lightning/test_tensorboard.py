"""The event files of a run in Lightning's place and form."""

import itertools
import struct
from pathlib import Path

import pytest
import tensorboardX
import torch
import yaml
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from torch import nn

from camshaft.contrib.lightning.loggers import TensorBoardLogger
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_only


def events_in(directory):
    for path in sorted(Path(directory).glob("*.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event()
            event.ParseFromString(content[12 : 12 + length])
            yield event
            content = content[16 + length :]


def shown(directory):
    """The scalars that TensorBoard shows: after the start of a session, those of its step and later ones are void."""
    points = []
    for event in events_in(directory):
        if event.session_log.status == SessionLog.START:
            points = [point for point in points if point[1] < event.step]
        points += [
            (value.tag, event.step, value.simple_value)
            for value in event.summary.value
            if not value.metadata.plugin_data.plugin_name
        ]
    return points


def hyperparameters_in(directory):
    for value in itertools.chain.from_iterable(event.summary.value for event in events_in(directory)):
        if value.tag == "_hparams_/session_start_info":
            data = HParamsPluginData()
            data.ParseFromString(value.metadata.plugin_data.content)
            return {
                name: getattr(entry, entry.WhichOneof("kind"))
                for name, entry in data.session_start_info.hparams.items()
            }
    return None


def test_scalars_are_in_the_directory_of_the_version_once_they_are_saved(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="digits")
    logger.log_metrics({"loss": torch.tensor(0.5), "epoch": 0}, step=9)
    logger.save()

    assert shown(tmp_path / "digits" / "version_0") == [("loss", 9, 0.5), ("epoch", 9, 0.0)]


def test_a_sub_directory_and_variables_of_the_environment_are_part_of_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv("RUN", "night")
    logger = TensorBoardLogger(tmp_path, name="$RUN", version="first", sub_dir="rank")

    assert logger.log_dir == str(tmp_path / "night" / "first" / "rank")
    assert logger.sub_dir == "rank"


def test_a_prefix_stands_before_each_name(tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix="first")
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.save()

    assert shown(logger.log_dir) == [("first-loss", 0, 0.5)]


def test_a_dictionary_of_numbers_is_drawn_in_one_plot(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"losses": {"a": 0.5, "b": 0.25}}, step=3)
    logger.finalize("success")

    assert shown(Path(logger.log_dir, "losses", "a")) == [("losses", 3, 0.5)]


def test_what_is_no_number_is_refused_by_its_name(tmp_path):
    with pytest.raises(ValueError, match="'loss' is 'small'"):
        TensorBoardLogger(tmp_path).log_metrics({"loss": "small"}, step=0)


def test_the_experiment_is_a_summary_writer(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    assert isinstance(logger.experiment, tensorboardX.SummaryWriter)

    logger.experiment.add_image("digit", torch.zeros(1, 2, 2), 0)
    logger.experiment.add_histogram("weights", torch.ones(3), 0)
    logger.experiment.add_text("note", "hello", 0)
    logger.save()

    tags = [value.tag for event in events_in(logger.log_dir) for value in event.summary.value]
    assert tags == ["digit", "weights", "note/text_summary"]


def test_events_after_the_end_of_a_run_destroy_none_of_it(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    for step in range(3):  # within one second, in which all files would have one name
        logger.log_metrics({"loss": 0.5}, step=step)
        logger.finalize("success")

    assert [step for _, step, _ in shown(logger.log_dir)] == [0, 1, 2]


def test_hyperparameters_are_shown_with_a_placeholder_for_their_metric(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.5, "optimizer": {"name": "SGD"}, "layers": [4, 2], "loss": nn.MSELoss})
    logger.save()

    assert shown(logger.log_dir) == [("hp_metric", 0, -1.0)]
    assert hyperparameters_in(logger.log_dir) == {
        "lr": 0.5,
        "optimizer/name": "SGD",
        "layers": "[4, 2]",
        "loss": "MSELoss",
    }


def test_hyperparameters_may_have_metrics_of_their_own(tmp_path):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.5}, {"best_loss": 0.125}, step=7)
    logger.save()

    assert shown(logger.log_dir) == [("best_loss", 7, 0.125)]


def test_without_the_placeholder_hyperparameters_are_in_their_file_alone(tmp_path):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.5})
    logger.save()

    assert hyperparameters_in(logger.log_dir) is None
    assert yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text()) == {"lr": 0.5}


def test_hyperparameters_that_are_told_again_are_not_recorded_again(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    for _function in ("fit", "test"):
        logger.log_hyperparams({"lr": 0.5})
    logger.save()

    assert shown(logger.log_dir) == [("hp_metric", 0, -1.0)]


def test_a_run_without_hyperparameters_has_an_empty_file_for_them(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.save()

    assert yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text()) == {}


def test_a_run_that_resumes_hides_what_came_after_its_checkpoint(tmp_path):
    lost = TensorBoardLogger(tmp_path, version=0)
    for step in range(5):
        lost.log_metrics({"loss": float(step)}, step=step)
    lost.finalize("failed")

    resumed = TensorBoardLogger(tmp_path, version=0)
    resumed.resume_from(3)
    resumed.log_metrics({"loss": 30.0}, step=3)
    resumed.save()

    assert [value for _, _, value in shown(resumed.log_dir)] == [0.0, 1.0, 2.0, 30.0]


def test_that_also_holds_for_a_writer_that_the_program_has_used_before(tmp_path):
    lost = TensorBoardLogger(tmp_path, version=0)
    lost.log_metrics({"loss": 1.0}, step=3)
    lost.finalize("failed")

    resumed = TensorBoardLogger(tmp_path, version=0)
    resumed.experiment.add_text("note", "again", 0)
    resumed.resume_from(3)
    resumed.save()

    assert "loss" not in [tag for tag, _, _ in shown(resumed.log_dir)]


def test_arguments_of_the_summary_writer_are_passed_on(tmp_path):
    logger = TensorBoardLogger(tmp_path, filename_suffix=".mine", flush_secs=5)
    logger.log_metrics({"loss": 0.5}, step=0)

    assert [path.suffix for path in Path(logger.log_dir).glob("*.tfevents.*")] == [".mine"]


def test_what_was_recorded_is_in_the_file_after_the_given_seconds(tmp_path):
    logger = TensorBoardLogger(tmp_path, flush_secs=0)
    logger.log_metrics({"loss": 0.5}, step=0)

    assert shown(logger.log_dir) == [("loss", 0, 0.5)]


def test_a_graph_without_an_example_is_a_warning(tmp_path):
    logger = TensorBoardLogger(tmp_path, log_graph=True)

    with pytest.warns(UserWarning, match="no graph of Linear: that needs a tensor"):
        logger.log_graph(nn.Linear(2, 1))


def test_a_graph_that_cannot_be_traced_is_a_warning(tmp_path):
    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("out of order")

    model = Broken(2, 1)
    model.example_input_array = torch.zeros(1, 2)

    with pytest.warns(UserWarning, match=r"no graph of Broken: .*(out of order|pip install tensorboard)"):
        TensorBoardLogger(tmp_path, log_graph=True).log_graph(model)


def test_no_graph_is_recorded_unless_it_was_asked_for(tmp_path):
    TensorBoardLogger(tmp_path).log_graph(nn.Linear(2, 1))

    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OSError, match=r"TensorBoardLogger cannot write to .*file/lightning_logs.* another directory"):
        TensorBoardLogger(tmp_path / "file").save()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "_rank", 1)
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.5})
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.experiment.add_image("digit", None)
    logger.finalize("success")

    assert list(tmp_path.iterdir()) == []
