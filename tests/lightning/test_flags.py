"""What the flags of earlier releases mean, and all flags as options of a command line."""

from argparse import ArgumentParser, Namespace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning import callbacks as kinds
from camshaft.contrib.lightning.flags import from_old_flags, seconds_of
from camshaft.handlers.terminate_on_nan import TerminateOnNaN


def kinds_among(trainer, kind):
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]


# Renamed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"max_nb_epochs": 3}, {"max_epochs": 3}),
        ({"min_nb_epochs": 2}, {"min_epochs": 2}),
        ({"nb_sanity_val_steps": 0}, {"num_sanity_val_steps": 0}),
        ({"nb_gpu_nodes": 2}, {"num_nodes": 2}),
        ({"default_save_path": "runs"}, {"default_root_dir": "runs"}),
        ({"gradient_clip": 0.5}, {"gradient_clip_val": 0.5}),
        ({"row_log_interval": 10}, {"log_every_n_steps": 10}),
        ({"add_row_log_interval": 5}, {"log_every_n_steps": 5}),
        ({"replace_sampler_ddp": False}, {"use_distributed_sampler": False}),
        ({"train_percent_check": 0.5}, {"limit_train_batches": 0.5}),
        ({"val_percent_check": 0.5}, {"limit_val_batches": 0.5}),
        ({"test_percent_check": 0.5}, {"limit_test_batches": 0.5}),
        (
            {"overfit_pct": 0.25},
            {"limit_train_batches": 0.25, "limit_val_batches": 0.25, "limit_test_batches": 0.25},
        ),
        ({"use_amp": True}, {"precision": 16}),
        ({"reload_dataloaders_every_epoch": True}, {"reload_dataloaders_every_n_epochs": 1}),
        ({"checkpoint_callback": False}, {"enable_checkpointing": False}),
        ({"show_progress_bar": False}, {"enable_progress_bar": False}),
        ({"progress_bar_refresh_rate": 0}, {"enable_progress_bar": False}),
        ({"weights_summary": None}, {"enable_model_summary": False}),
        ({"gpus": None}, {"accelerator": "cpu"}),
        ({"gpus": "0"}, {"accelerator": "cpu"}),
        ({"num_processes": 2}, {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}),
        (
            {"distributed_backend": "ddp_cpu", "num_processes": 2},
            {"accelerator": "cpu", "devices": 2, "strategy": "ddp"},
        ),
        ({"distributed_backend": "dp"}, {}),
    ],
    ids=lambda flags: ",".join(flags),
)
def test_a_flag_of_then_is_one_of_today(old, new):
    assert from_old_flags({}, old) == new


@pytest.mark.parametrize("flag", ["train_percent_check", "val_percent_check", "test_percent_check"])
def test_a_share_of_one_is_all_data_rather_than_one_batch(flag):
    assert from_old_flags({}, {flag: 1}) == {}


@pytest.mark.parametrize("share", [1.5, -0.1, "half"], ids=repr)
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(ValueError, match=r"Trainer\(overfit_pct=.*\): it is a share of the data, from 0 to 1"):
        from_old_flags({}, {"overfit_pct": share})


def test_a_share_of_none_is_not_given():
    assert from_old_flags({}, {"overfit_pct": None}) == {}


def test_the_same_by_both_names_is_no_contradiction():
    assert from_old_flags({"max_epochs": 3}, {"max_nb_epochs": 3}) == {"max_epochs": 3}


@pytest.mark.parametrize(
    ("given", "old", "message"),
    [
        ({"max_epochs": 2}, {"max_nb_epochs": 3}, "max_nb_epochs=3.* contradicts max_epochs=2"),
        ({"limit_val_batches": 5}, {"overfit_pct": 0.5}, "overfit_pct=0.5.* contradicts limit_val_batches=5"),
        ({"devices": 3}, {"num_processes": 2}, "num_processes=2.* contradicts devices=3"),
        ({"accelerator": "gpu"}, {"num_processes": 2}, "num_processes=2.* contradicts accelerator='gpu'"),
        ({"accelerator": "gpu"}, {"gpus": 0}, "gpus=0.* contradicts accelerator='gpu'"),
        ({"strategy": "fsdp"}, {"distributed_backend": "ddp"}, "'ddp'.* contradicts strategy='fsdp'"),
    ],
    ids=["epochs", "share", "devices", "accelerator", "gpus", "strategy"],
)
def test_contradictions_are_refused(given, old, message):
    with pytest.raises(ValueError, match=message):
        from_old_flags(given, old)


def test_gpus_none_leaves_the_devices_of_today_alone():
    flags = from_old_flags({"accelerator": "gpu", "devices": 2}, {"gpus": None})
    assert flags == {"accelerator": "gpu", "devices": 2}


def test_other_flags_of_then_leave_the_accelerator_to_be_found():
    assert "accelerator" not in from_old_flags({}, {"max_nb_epochs": 1})


def test_gpus_are_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    flags = from_old_flags({}, {"gpus": "1,3", "distributed_backend": "ddp"})
    assert flags == {"accelerator": "gpu", "devices": [1, 3], "strategy": "ddp"}


# Refused


def test_what_was_never_a_flag_is_refused_with_one_that_is_like_it():
    with pytest.raises(TypeError, match=r"Trainer\(\) has no flag 'max_epoch'\. Did you mean 'max_epochs'\?"):
        pl.Trainer(max_epoch=3)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("log_save_interval", 50),
        ("amp_level", "O2"),
        ("amp_backend", "apex"),
        ("auto_select_gpus", True),
        ("log_gpu_memory", "all"),
        ("print_nan_grads", True),
        ("truncated_bptt_steps", 5),
        ("multiple_trainloader_mode", "min_size"),
        ("move_metrics_to_cpu", True),
        ("prepare_data_per_node", False),
        ("automatic_optimization", False),
        ("flush_logs_every_n_steps", 10),
        ("ipus", 1),
        ("enable_pl_optimizer", True),
    ],
)
def test_what_would_do_nothing_is_refused_with_the_reason(flag, value):
    with pytest.raises(ValueError, match=rf"Trainer\({flag}=.*\) is not supported: \w+"):
        pl.Trainer(**{flag: value})


@pytest.mark.parametrize(
    ("flag", "value"), [("log_save_interval", 100), ("amp_level", "O1"), ("print_nan_grads", False)]
)
def test_what_is_done_anyway_may_be_asked_for(flag, value):
    assert pl.Trainer(**{flag: value}, logger=False).loggers == []


@pytest.mark.parametrize("backend", ["dp", "ddp2", "horovod", "nonsense"])
def test_other_backends_are_refused(backend):
    with pytest.raises(ValueError, match=rf"Trainer\(distributed_backend='{backend}'\).* Use 'ddp', or 'ddp_cpu'"):
        from_old_flags({}, {"distributed_backend": backend, "num_processes": 2})


def test_a_backend_for_one_process_is_told(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.warns(UserWarning, match=r"distributed_backend='ddp'\) runs one process: give gpus=2 or more"):
        trainer = pl.Trainer(distributed_backend="ddp", logger=False)
    assert trainer.strategy.processes == 1


# Callbacks


@pytest.mark.parametrize(("flag", "strict"), [(True, True), (None, False)])
def test_early_stop_callback_watches_val_loss(flag, strict):
    (stopping,) = pl.Trainer(early_stop_callback=flag, logger=False).early_stopping_callbacks
    assert (stopping.monitor, stopping.patience, stopping.strict) == ("val_loss", 3, strict)


def test_early_stop_callback_may_be_one():
    stopping = kinds.EarlyStopping("accuracy", mode="max")
    assert pl.Trainer(early_stop_callback=stopping, logger=False).early_stopping_callback is stopping


def test_early_stop_callback_false_is_none():
    assert pl.Trainer(early_stop_callback=False, logger=False).early_stopping_callbacks == []


def test_checkpoint_callback_may_be_one():
    checkpoint = kinds.ModelCheckpoint("kept")
    assert pl.Trainer(checkpoint_callback=checkpoint, logger=False).checkpoint_callbacks == [checkpoint]


@pytest.mark.parametrize("flag", [False, None])
def test_checkpoint_callback_may_be_switched_off(flag):
    assert pl.Trainer(checkpoint_callback=flag, logger=False).checkpoint_callbacks == []


def test_callbacks_by_flag_come_to_those_that_are_given():
    mine = kinds.LearningRateMonitor()
    trainer = pl.Trainer(callbacks=[mine], early_stop_callback=True, terminate_on_nan=True)
    assert mine in trainer.callbacks
    assert trainer.early_stopping_callback is not None
    assert [type(handler) for handler in trainer.handlers] == [TerminateOnNaN]


def test_weights_save_path_is_for_checkpoints_alone(tmp_path):
    trainer = pl.Trainer(weights_save_path=str(tmp_path / "weights"), default_save_path=str(tmp_path / "logs"))
    assert Path(trainer.checkpoint_callback.dirpath) == tmp_path / "weights" / "checkpoints"
    assert Path(trainer.default_root_dir) == tmp_path / "logs"


def test_weights_save_path_contradicts_a_checkpoint_with_a_directory():
    with pytest.raises(ValueError, match=r"weights_save_path='weights'.* contradicts the directory"):
        pl.Trainer(weights_save_path="weights", checkpoint_callback=kinds.ModelCheckpoint("kept"))


@pytest.mark.parametrize(("summary", "depth"), [("full", -1), ("top", 1)])
def test_weights_summary_says_how_deep(summary, depth):
    (callback,) = kinds_among(pl.Trainer(weights_summary=summary, logger=False), kinds.ModelSummary)
    assert callback._max_depth == depth


def test_weights_summary_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"weights_summary='all'.*: it is 'top', 'full' or None"):
        pl.Trainer(weights_summary="all")


def test_the_progress_bar_has_its_rate_and_place():
    trainer = pl.Trainer(progress_bar_refresh_rate=5, process_position=1, logger=False)
    assert (trainer.progress_bar_callback.refresh_rate, trainer.progress_bar_callback.process_position) == (5, 1)


def test_accumulate_grad_batches_may_be_a_schedule():
    (schedule,) = kinds_among(
        pl.Trainer(accumulate_grad_batches={0: 1, 4: 8}, logger=False), kinds.GradientAccumulationScheduler
    )
    assert schedule.scheduling == {0: 1, 4: 8}


def test_stochastic_weight_avg_is_a_callback():
    assert kinds_among(pl.Trainer(stochastic_weight_avg=True, logger=False), kinds.StochasticWeightAveraging)


def test_max_steps_none_is_no_limit():
    assert pl.Trainer(max_steps=None, logger=False).max_steps == -1


# Command lines


def parsed(*arguments):
    return pl.Trainer.add_argparse_args(ArgumentParser()).parse_args(arguments)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("--max_epochs=3", 3),
        ("--limit_train_batches=1", 1),
        ("--limit_train_batches=0.5", 0.5),
        ("--gpus=2", 2),
        ("--gpus=0,1", "0,1"),
        ("--precision=16", 16),
        ("--precision=bf16-mixed", "bf16-mixed"),
        ("--val_check_interval=0.25", 0.25),
        ("--val_check_interval=100", 100),
        ("--fast_dev_run=2", 2),
        ("--fast_dev_run=true", True),
        ("--fast_dev_run", True),
        ("--early_stop_callback=1", True),
        ("--logger=False", False),
        ("--profiler=simple", "simple"),
        ("--max_steps=None", None),
        ("--default_root_dir=runs", "runs"),
        ("--accelerator=cpu", "cpu"),
    ],
)
def test_options_have_the_types_of_the_flags(text, value):
    found = vars(parsed(text))[text[2:].partition("=")[0]]
    assert (found, type(found)) == (value, type(value))


def test_an_option_of_another_type_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        parsed("--max_epochs=many")
    assert "argument --max_epochs: 'many' is no int" in capsys.readouterr().err


def test_options_of_the_program_stay_its_own():
    parser = ArgumentParser()
    parser.add_argument("--gpus", default=None)
    args = pl.Trainer.add_argparse_args(parser).parse_args(["--gpus", "0"])
    assert args.gpus == "0"
    assert pl.Trainer.from_argparse_args(args, logger=False).strategy.accelerator == "cpu"


def test_a_trainer_takes_what_it_knows_of_a_namespace():
    trainer = pl.Trainer.from_argparse_args(Namespace(max_epochs=3, width=8, gpus=None), logger=False)
    assert trainer.max_epochs == 3


def test_defaults_that_nobody_chose_change_nothing():
    chosen, plain = pl.Trainer.from_argparse_args(parsed(), logger=False), pl.Trainer(logger=False)
    assert [type(callback) for callback in chosen.callbacks] == [type(callback) for callback in plain.callbacks]
    assert chosen.log_every_n_steps == plain.log_every_n_steps


def test_arguments_given_beside_a_namespace_count_more():
    assert pl.Trainer.from_argparse_args(Namespace(max_epochs=3), max_epochs=5, logger=False).max_epochs == 5


def test_every_flag_of_then_can_be_looked_up():
    names = [name for name, _, _ in pl.Trainer.get_init_arguments_and_types()]
    assert len(names) == len(set(names))
    for name in ("gpus", "distributed_backend", "overfit_pct", "early_stop_callback", "max_epochs", "callbacks"):
        assert name in names


# Spans of time


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("01:00:00:01", 86401), (timedelta(minutes=1), 60), ({"hours": 1}, 3600)],
    ids=["text", "timedelta", "mapping"],
)
def test_a_span_of_time_is_text_or_a_timedelta_or_its_arguments(span, seconds):
    assert seconds_of(span) == seconds


def test_a_span_of_another_form_is_refused():
    with pytest.raises(ValueError, match="written DD:HH:MM:SS, but got '1 hour'"):
        seconds_of("1 hour")


# Values that mean nothing


@pytest.mark.parametrize(
    "flags",
    [
        {"max_epochs": -2},
        {"max_epochs": "5"},
        {"max_steps": -5},
        {"num_nodes": 0},
        {"accumulate_grad_batches": 0},
        {"accumulate_grad_batches": 1.5},
        {"check_val_every_n_epoch": 0},
        {"num_sanity_val_steps": -2},
        {"log_every_n_steps": -1},
        {"reload_dataloaders_every_n_epochs": -1},
        {"gradient_clip_val": "0.5"},
        {"deterministic": "sometimes"},
    ],
    ids=str,
)
def test_a_value_without_a_meaning_is_refused(flags):
    ((name, value),) = flags.items()
    with pytest.raises(ValueError, match=rf"Trainer\({name}={value!r}\): it is "):
        pl.Trainer(**flags)


def test_text_from_a_command_line_without_types_is_told():
    with pytest.raises(ValueError, match="but got text: use type=int"):
        pl.Trainer(max_epochs="5")


@pytest.mark.parametrize(
    "flags",
    [{"logger": True}, {"enable_progress_bar": True}, {"profiler": "simple"}, {"log_every_n_steps": 5}],
    ids=str,
)
def test_what_barebones_does_without_cannot_be_asked_for(flags):
    with pytest.raises(ValueError, match=rf"Trainer\(barebones=True\) contradicts {next(iter(flags))}="):
        pl.Trainer(barebones=True, **flags)
