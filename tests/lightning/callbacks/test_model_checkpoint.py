"""Which checkpoints are saved, kept and deleted, under which names, and what is known of them."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from camshaft.contrib.lightning.callbacks import Checkpoint, EarlyStopping, LambdaCallback, ModelCheckpoint
from camshaft.contrib.lightning.callbacks.checkpoint_directory import link, remove, why_unwritable
from camshaft.contrib.lightning.loggers import CSVLogger
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


@pytest.fixture
def saved(fit, model_class, tmp_path):
    """Fits with a ``ModelCheckpoint`` and gives the files: their names, and the epoch and the step in each."""

    def run(val_losses=(), *, model=None, checkpoint=None, flags=None, **options):
        checkpoint = checkpoint or ModelCheckpoint(tmp_path / "runs", **options)
        flags = {"max_epochs": max(len(val_losses), 2), **(flags or {})}
        run.trainer = fit(model or model_class(val_losses), checkpoint, **flags)
        run.checkpoint = checkpoint
        return contents_of(tmp_path / "runs")

    return run


def contents_of(directory):
    files = {}
    for path in sorted(Path(directory).glob("**/*.ckpt")):
        content = torch.load(path, weights_only=True)
        files[str(path.relative_to(directory))] = (content["epoch"], content["global_step"])
    return files


def name_of(path):
    return Path(path).name


# -------------------------------------------------------------------------------------------- what is kept


def test_without_a_monitor_the_latest_epoch_is_kept(saved):
    assert saved([1, 2, 3]) == {"epoch=2-step=9.ckpt": (2, 9)}
    assert name_of(saved.checkpoint.best_model_path) == "epoch=2-step=9.ckpt"
    assert saved.checkpoint.best_model_score is None


def test_with_a_monitor_the_best_epoch_is_kept(saved):
    assert saved([3, 1, 2], monitor="val_loss") == {"epoch=1-step=6.ckpt": (1, 6)}
    assert saved.checkpoint.best_model_score == saved.checkpoint.current_score == 1


def test_the_best_k_are_kept_with_their_values(saved):
    files = saved([3, 1, 2, 5], monitor="val_loss", save_top_k=2, filename="{epoch}-{val_loss:.1f}")
    assert files == {"epoch=1-val_loss=1.0.ckpt": (1, 6), "epoch=2-val_loss=2.0.ckpt": (2, 9)}
    checkpoint = saved.checkpoint
    assert {name_of(path): float(value) for path, value in checkpoint.best_k_models.items()} == {
        "epoch=1-val_loss=1.0.ckpt": 1,
        "epoch=2-val_loss=2.0.ckpt": 2,
    }
    assert name_of(checkpoint.best_model_path) == "epoch=1-val_loss=1.0.ckpt"
    assert name_of(checkpoint.kth_best_model_path) == "epoch=2-val_loss=2.0.ckpt"
    assert checkpoint.kth_value == 2


def test_the_maximum_is_best_in_mode_max(saved):
    assert saved([3, 5, 2], monitor="val_loss", mode="max") == {"epoch=1-step=6.ckpt": (1, 6)}


def test_save_top_k_minus_one_keeps_all(saved):
    assert list(saved([3, 1], monitor="val_loss", save_top_k=-1)) == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]
    assert name_of(saved.checkpoint.best_model_path) == "epoch=1-step=6.ckpt"


def test_save_top_k_zero_keeps_none(saved, tmp_path):
    assert saved([1, 2], save_top_k=0) == {}
    assert not (tmp_path / "runs").exists()


def test_nan_is_worse_than_any_number(saved):
    nan = float("nan")
    assert list(saved([nan, 3, nan, 2], monitor="val_loss", save_top_k=2)) == [
        "epoch=1-step=6.ckpt",
        "epoch=3-step=12.ckpt",
    ]


def test_nothing_is_saved_in_a_fast_dev_run(saved):
    assert saved([1], monitor="val_loss", save_last=True, flags={"fast_dev_run": True}) == {}


# -------------------------------------------------------------------------------------------- last.ckpt


def test_last_is_the_latest_state_even_when_it_is_not_among_the_best(saved):
    files = saved([3, 1, 2], monitor="val_loss", save_last=True)
    assert files == {"epoch=1-step=6.ckpt": (1, 6), "last.ckpt": (2, 9)}
    assert name_of(saved.checkpoint.last_model_path) == "last.ckpt"


def test_last_is_saved_when_nothing_else_is(saved):
    assert saved([3, 1], save_top_k=0, save_last=True) == {"last.ckpt": (1, 6)}


def test_last_is_saved_at_the_end_of_training_when_no_epoch_was_due(saved):
    files = saved(save_last=True, every_n_train_steps=2, flags={"max_steps": 4, "limit_train_batches": 3})
    assert files["last.ckpt"] == (1, 4)


def test_last_is_saved_at_the_end_of_training_when_it_was_never_validated(saved):
    files = saved(save_last=True, flags={"check_val_every_n_epoch": 5, "max_epochs": 3})
    assert {name: step for name, (_, step) in files.items()} == {"last.ckpt": 9}


def test_last_can_be_a_link_to_what_was_saved_last(saved, tmp_path):
    files = saved([3, 1, 2], monitor="val_loss", save_last="link")
    assert files == {"epoch=1-step=6.ckpt": (1, 6), "last.ckpt": (1, 6)}
    assert str((tmp_path / "runs" / "last.ckpt").readlink()) == "epoch=1-step=6.ckpt"


def test_last_can_have_another_name(saved, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "runs", save_top_k=0, save_last=True)
    checkpoint.CHECKPOINT_NAME_LAST = "{epoch}-last"
    assert list(saved([1, 2], checkpoint=checkpoint)) == ["epoch=1-last.ckpt"]


# -------------------------------------------------------------------------------------------- when


def test_each_n_epochs(saved):
    assert list(saved([1] * 5, every_n_epochs=2, save_top_k=-1)) == ["epoch=1-step=6.ckpt", "epoch=3-step=12.ckpt"]


def test_each_n_steps(saved):
    assert saved([1, 1], every_n_train_steps=2, save_top_k=-1) == {
        "epoch=0-step=2.ckpt": (0, 2),
        "epoch=1-step=4.ckpt": (1, 4),
        "epoch=1-step=6.ckpt": (1, 6),
    }


def test_a_step_whose_value_only_validation_makes_is_saved_after_validation(saved):
    files = saved([3, 1], every_n_train_steps=2, save_top_k=-1, monitor="val_loss")
    assert list(files) == ["epoch=0-step=3.ckpt", "epoch=1-step=4.ckpt", "epoch=1-step=6.ckpt"]
    values = {name_of(path): float(value) for path, value in saved.checkpoint.best_k_models.items()}
    assert values == {"epoch=0-step=3.ckpt": 3, "epoch=1-step=4.ckpt": 3, "epoch=1-step=6.ckpt": 1}


def test_each_span_of_time(saved):
    files = saved(train_time_interval=timedelta(0), save_top_k=-1, flags={"max_epochs": 1})
    assert list(files) == ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "epoch=0-step=3.ckpt"]


def test_no_checkpoint_before_a_span_of_time_is_over(saved):
    assert saved(train_time_interval=timedelta(hours=1)) == {}


@pytest.mark.parametrize(
    ("flags", "steps"),
    [({"val_check_interval": 0.34}, [1, 2, 3]), ({"check_val_every_n_epoch": 2, "max_epochs": 4}, [6, 12])],
    ids=["each batch", "each second epoch"],
)
def test_where_validation_does_not_come_once_an_epoch_it_is_saved_after_validation(saved, flags, steps):
    files = saved([1], monitor="val_loss", save_top_k=-1, flags={"max_epochs": 1, **flags})
    assert sorted(step for _, step in files.values()) == steps


def test_without_validation_it_is_saved_after_epochs(saved):
    assert list(saved(flags={"limit_val_batches": 0})) == ["epoch=1-step=6.ckpt"]


@pytest.mark.parametrize(("at_epoch_end", "order"), [(True, ["epoch end", "saved"]), (False, ["saved", "epoch end"])])
def test_whether_it_is_saved_after_the_epoch_or_after_validation_can_be_chosen(fit, model_class, at_epoch_end, order):
    seen = []
    witness = LambdaCallback(
        on_train_epoch_end=lambda *_: seen.append("epoch end"), on_save_checkpoint=lambda *_: seen.append("saved")
    )
    fit(model_class(), witness, ModelCheckpoint(save_on_train_epoch_end=at_epoch_end), max_epochs=1)
    assert seen == order


def test_an_exception_is_saved_when_asked_for(fit, model_class, tmp_path):
    class Fails(model_class):
        def training_step(self, batch, batch_idx):
            if self.global_step == 4:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    with pytest.raises(ZeroDivisionError):
        fit(Fails(), ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=-1))
    assert contents_of(tmp_path) == {"epoch=0-step=3.ckpt": (0, 3), "epoch=1-step=4.ckpt": (1, 4)}


# -------------------------------------------------------------------------------------------- going on


def test_a_second_fit_goes_on_knowing_the_best(fit, model_class, tmp_path):
    first = ModelCheckpoint(tmp_path / "runs", monitor="val_loss", save_last=True)
    fit(model_class([3, 1]), first, max_epochs=2)
    second = ModelCheckpoint(tmp_path / "runs", monitor="val_loss", save_last=True)
    fit(model_class([3, 1, 2, 0.5]), second, max_epochs=4, ckpt_path=first.last_model_path)
    assert (name_of(second.best_model_path), float(second.best_model_score)) == ("epoch=3-step=12.ckpt", 0.5)
    assert contents_of(tmp_path / "runs") == {"epoch=3-step=12.ckpt": (3, 12), "last.ckpt": (3, 12)}


def test_with_another_trainer_it_saves_as_many(fit, model_class, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1)
    for _ in range(2):
        fit(model_class(), checkpoint, max_epochs=2)
    names = ["epoch=0-step=3", "epoch=0-step=3-v1", "epoch=1-step=6", "epoch=1-step=6-v1"]
    assert sorted(contents_of(tmp_path)) == sorted(f"{name}.ckpt" for name in names)


def test_in_another_directory_only_the_best_of_before_is_known(fit, model_class, tmp_path):
    first = ModelCheckpoint(tmp_path / "one", monitor="val_loss")
    fit(model_class([3, 1]), first, max_epochs=2)
    second = ModelCheckpoint(tmp_path / "two", monitor="val_loss")
    with pytest.warns(UserWarning, match="will delete none"):
        fit(model_class([3, 1, 2]), second, max_epochs=3, ckpt_path=first.best_model_path)
    assert list(contents_of(tmp_path / "one")) == ["epoch=1-step=6.ckpt"]
    assert list(contents_of(tmp_path / "two")) == ["epoch=2-step=9.ckpt"]


def test_the_checkpoint_that_a_run_goes_on_from_is_not_deleted(fit, model_class, tmp_path):
    fit(model_class(), ModelCheckpoint(tmp_path), max_epochs=1)
    resumed = ModelCheckpoint(tmp_path)
    fit(model_class(), resumed, max_epochs=3, ckpt_path=tmp_path / "epoch=0-step=3.ckpt")
    assert list(contents_of(tmp_path)) == ["epoch=0-step=3.ckpt", "epoch=2-step=9.ckpt"]


def test_testing_the_best_weights_leaves_what_is_known_of_the_checkpoints(fit, model_class, batches):
    checkpoint = ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=True)
    trainer = fit(model_class([1, 2, 3]), checkpoint)
    before = checkpoint.state_dict()
    trainer.test(dataloaders=batches, ckpt_path="best", verbose=False)
    assert checkpoint.state_dict() == before


def test_its_state_has_lightnings_key_and_entries(saved, tmp_path):
    saved([1], monitor="val_loss", mode="max", every_n_epochs=1)
    states = torch.load(saved.checkpoint.best_model_path, weights_only=True)["callbacks"]
    key = (
        "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'max', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
        "'train_time_interval': None}"
    )
    assert set(states[key]) == {
        "monitor",
        "best_model_score",
        "best_model_path",
        "current_score",
        "dirpath",
        "best_k_models",
        "kth_best_model_path",
        "kth_value",
        "last_model_path",
    }
    assert states[key]["best_model_path"] == saved.checkpoint.best_model_path


def test_two_of_them_save_independently(fit, model_class, tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss")
    every = ModelCheckpoint(tmp_path / "every", save_top_k=-1)
    fit(model_class([1, 2]), best, every, max_epochs=2)
    assert list(contents_of(tmp_path)) == [
        "best/epoch=0-step=3.ckpt",
        "every/epoch=0-step=3.ckpt",
        "every/epoch=1-step=6.ckpt",
    ]


def test_it_sees_what_the_callbacks_of_that_moment_have_done(fit, model_class):
    checkpoint, stopping = ModelCheckpoint(), EarlyStopping("val_loss")
    fit(model_class([2, 1]), checkpoint, stopping, max_epochs=2)  # it comes last, wherever it stands
    state = torch.load(checkpoint.best_model_path, weights_only=True)["callbacks"][stopping.state_key]
    assert state["best_score"] == 1


def test_the_weights_alone_can_be_saved(saved):
    saved([1], save_weights_only=True)
    content = torch.load(saved.checkpoint.best_model_path, weights_only=True)
    assert "state_dict" in content
    assert "optimizer_states" not in content


# -------------------------------------------------------------------------------------------- on the disk


def test_an_older_checkpoint_is_deleted_only_when_the_newer_one_is_on_the_disk(fit, model_class, tmp_path):
    class Watched(ModelCheckpoint):
        def _remove_checkpoint(self, trainer, filepath):
            removals.append((name_of(filepath), sorted(contents_of(tmp_path))))
            super()._remove_checkpoint(trainer, filepath)

    removals = []
    fit(model_class([3, 2, 1]), Watched(tmp_path, monitor="val_loss", save_last="link", filename="{epoch}"))
    assert removals == [
        ("epoch=0.ckpt", ["epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"]),
        ("epoch=1.ckpt", ["epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]),
    ]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(fit, model_class, tmp_path):
    class Fails(ModelCheckpoint):
        def _save_checkpoint(self, trainer, filepath):
            if trainer.current_epoch == 1:
                raise OSError("No space left on device")
            super()._save_checkpoint(trainer, filepath)

    with pytest.raises(OSError, match="No space left"):
        fit(model_class([2, 1]), Fails(tmp_path, monitor="val_loss"))
    assert list(contents_of(tmp_path)) == ["epoch=0-step=3.ckpt"]


def test_a_directory_that_is_a_file_is_an_error_before_training(fit, model_class, tmp_path):
    (tmp_path / "runs").write_text("not a directory")
    steps = []
    with pytest.raises(NotADirectoryError, match=r"'.*runs' is a file\. Give another directory"):
        fit(
            model_class(),
            ModelCheckpoint(tmp_path / "runs" / "digits"),
            LambdaCallback(on_train_batch_end=lambda *_: steps.append(1)),
        )
    assert steps == []


@pytest.mark.skipif(os.geteuid() == 0, reason="to the superuser every directory is writable")
def test_a_directory_that_may_not_be_written_to_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    assert isinstance(why_unwritable(str(tmp_path / "runs")), PermissionError)


def test_a_directory_in_which_no_file_can_be_made_is_an_error():
    error = why_unwritable("/proc/runs")
    assert isinstance(error, OSError)
    assert "No checkpoint can be saved in '/proc/runs'" in str(error)


def test_looking_whether_a_directory_can_be_written_to_does_not_make_it(tmp_path):
    assert why_unwritable(str(tmp_path / "a" / "b")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_replaced_in_one_go(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        link(str(tmp_path / name), str(tmp_path / "last"))
        assert (tmp_path / "last").read_text() == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "one", "two"]


def test_removing_takes_the_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "directory").mkdir()
    link(str(tmp_path / "directory"), str(tmp_path / "last"))
    remove(str(tmp_path / "last"))
    assert (tmp_path / "directory").is_dir()
    remove(str(tmp_path / "directory"))
    remove(str(tmp_path / "directory"))  # gone already
    assert list(tmp_path.iterdir()) == []


def test_by_default_it_saves_in_the_directory_of_the_logger(fit, model_class, tmp_path):
    fit(model_class(), ModelCheckpoint(), logger=CSVLogger(tmp_path, name="digits", version=3), max_epochs=1)
    assert list(contents_of(tmp_path)) == ["digits/version_3/checkpoints/epoch=0-step=3.ckpt"]


def test_without_a_logger_it_saves_in_the_root_directory(fit, model_class, tmp_path):
    fit(model_class(), ModelCheckpoint(), max_epochs=1)
    assert list(contents_of(tmp_path)) == ["checkpoints/epoch=0-step=3.ckpt"]


def test_loggers_are_told_of_each_checkpoint(fit, model_class, tmp_path):
    class Told(CSVLogger):
        def after_save_checkpoint(self, checkpoint_callback):
            told.append(name_of(checkpoint_callback.best_model_path))

    told = []
    fit(model_class(), ModelCheckpoint(tmp_path), logger=Told(tmp_path), max_epochs=2)
    assert told == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]


def test_the_values_can_be_written_as_yaml(saved, tmp_path):
    yaml = pytest.importorskip("yaml", reason="reads what was written")
    saved([3, float("inf")], monitor="val_loss", save_top_k=-1)
    saved.checkpoint.to_yaml()
    written = yaml.safe_load((tmp_path / "runs" / "best_k_models.yaml").read_text())
    assert {name_of(path): value for path, value in written.items()} == {
        "epoch=0-step=3.ckpt": 3.0,
        "epoch=1-step=6.ckpt": float("inf"),
    }


# -------------------------------------------------------------------------------------------- names


def test_a_name_that_is_taken_gets_a_version(saved):
    assert list(saved([3, 2, 1], filename="digits", save_top_k=-1)) == [
        "digits-v1.ckpt",
        "digits-v2.ckpt",
        "digits.ckpt",
    ]


def test_the_one_checkpoint_that_is_kept_may_be_replaced_by_one_of_its_name(saved):
    assert saved([3, 2, 1], filename="digits", monitor="val_loss") == {"digits.ckpt": (2, 9)}


def test_without_versions_a_name_that_is_taken_is_replaced(saved):
    assert saved([1, 1], filename="digits", save_top_k=-1, enable_version_counter=False) == {"digits.ckpt": (1, 6)}


def test_a_metric_with_a_slash_makes_a_directory_unless_its_name_is_left_out():
    values = {"epoch": 1, "val/acc": torch.tensor(0.5)}
    assert ModelCheckpoint(filename="{val/acc:.1f}").format_checkpoint_name(values) == "val/acc=0.5.ckpt"
    plain = ModelCheckpoint(filename="acc{val/acc:.1f}", auto_insert_metric_name=False)
    assert plain.format_checkpoint_name(values) == "acc0.5.ckpt"


def test_a_name_that_is_the_beginning_of_another_is_not_mixed_up_with_it():
    values = {"epoch": 3, "epoch_test": 7, "step": 1}
    assert ModelCheckpoint(filename="{epoch:02d}-{epoch_test}").format_checkpoint_name(values) == (
        "epoch=03-epoch_test=7.ckpt"
    )


def test_a_value_that_is_not_there_is_zero_in_a_name():
    assert ModelCheckpoint(filename="{missing:.2f}").format_checkpoint_name({}) == "missing=0.00.ckpt"


def test_the_epoch_and_step_in_a_name_are_integers_even_if_the_program_logs_them(fit, model_class, tmp_path):
    class Logs(model_class):
        def on_train_epoch_end(self):
            self.log("step", 42.0)

    fit(Logs(), ModelCheckpoint(tmp_path, filename="{epoch:03d}-{step}"), max_epochs=1)
    assert list(contents_of(tmp_path)) == ["epoch=000-step=42.ckpt"]


# -------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"save_top_k": -2}, "save_top_k is at least -1"),
        ({"save_top_k": 3}, "give it a monitor"),
        ({"mode": "best"}, "'min', 'max' or 'auto', not 'best'"),
        ({"every_n_epochs": -1}, "every_n_epochs is at least 0"),
        ({"every_n_epochs": 1, "every_n_train_steps": 2}, "Make one ModelCheckpoint for each"),
        ({"save_last": "copy"}, "save_last is True, False or 'link', not 'copy'"),
        ({"dirpath": "s3://bucket/runs"}, "mount it"),
        ({"every_n_epochs": 1, "period": 2}, "keep one of them"),
        ({"filepath": "runs/{epoch}", "dirpath": "runs"}, "split it into these two"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_arguments_that_make_no_sense_are_refused(options, complaint):
    with pytest.raises(MisconfigurationException, match=complaint):
        ModelCheckpoint(**options)


def test_a_value_that_validation_does_not_make_is_an_error_that_names_those_it_makes(saved):
    with pytest.raises(MisconfigurationException, match=r"'val_los', which nothing has logged.*'val_loss'"):
        saved([1], monitor="val_los")


def test_without_validation_a_value_that_is_not_there_is_a_warning(saved):
    with pytest.warns(UserWarning, match="monitors 'never_logged'"):
        files = saved(monitor="never_logged", flags={"limit_val_batches": 0})
    assert files == {}


# -------------------------------------------------------------------------------------------- before Lightning 1.0


def test_filepath_is_a_directory_and_a_template_in_one(saved, tmp_path):
    checkpoint = ModelCheckpoint(filepath=tmp_path / "runs" / "{epoch}-{val_loss:.1f}", prefix="digits-", period=2)
    assert list(saved([4, 3, 2, 1], checkpoint=checkpoint)) == ["digits-epoch=3-val_loss=1.0.ckpt"]


def test_a_template_in_the_first_argument_is_a_filepath(saved, tmp_path):
    assert list(saved([4], checkpoint=ModelCheckpoint(tmp_path / "runs" / "{epoch}"))) == ["epoch=0.ckpt"]


def test_a_filepath_monitors_val_loss_if_there_is_one(saved, tmp_path):
    assert list(saved([1, 2], checkpoint=ModelCheckpoint(filepath=tmp_path / "runs" / "{epoch}"))) == ["epoch=0.ckpt"]
    (tmp_path / "runs" / "epoch=0.ckpt").unlink()
    assert list(saved([], checkpoint=ModelCheckpoint(filepath=tmp_path / "runs" / "{epoch}"))) == ["epoch=1.ckpt"]


def test_a_mode_can_be_concluded_from_the_name():
    assert ModelCheckpoint(monitor="val_acc", mode="auto").mode == "max"


def test_it_is_what_a_trainer_takes_for_a_checkpoint(trainer_with):
    checkpoint = ModelCheckpoint()
    assert isinstance(checkpoint, Checkpoint)
    assert trainer_with(checkpoint).checkpoint_callback is checkpoint
