"""The command line of a module, its data and a trainer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.callbacks import Callback, EarlyStopping, LearningRateMonitor
from camshaft.contrib.lightning.demos.boring_classes import BoringDataModule, BoringModel
from camshaft.contrib.lightning.hooks import is_overridden
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

pytest.importorskip("jsonargparse", reason="the extra `lightning` has it")

from camshaft.contrib.lightning.cli import (
    LightningCLI,
    LRSchedulerCallable,
    OptimizerCallable,
    SaveConfigCallback,
    instantiate_class,
)


class Model(BoringModel):
    def __init__(self, width: int = 2, rate: float = 0.1, layer: nn.Module | None = None):
        super().__init__()
        self.save_hyperparameters()
        self.width, self.rate, self.extra = width, rate, layer


class Wider(Model):
    def __init__(self, more: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.more = more


class Data(BoringDataModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.width, self.seen = width, 7


class Watch(Callback):
    def __init__(self, steps: int = 1):
        self.steps = steps


QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.num_sanity_val_steps=0",
]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a command line in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")

    def command_line(*args, model=Model, data=None, kind=LightningCLI, run=False, **options):
        monkeypatch.setattr(sys, "argv", ["train.py", *args])
        options.setdefault("seed_everything_default", False)
        return kind(model, data, run=run, **options)

    return command_line


# Arguments.


def test_options_are_the_arguments_of_module_data_and_trainer(run):
    cli = run("--model.width=5", "--data.width=6", "--trainer.max_epochs=7", data=Data)
    assert (cli.model.width, cli.datamodule.width, cli.trainer.max_epochs) == (5, 6, 7)


def test_an_option_of_another_type_is_refused(run, capsys):
    with pytest.raises(SystemExit) as left:
        run("--model.width=wide")
    assert left.value.code == 2
    assert "model.width" in capsys.readouterr().err


def test_a_file_holds_options_and_the_command_line_counts_more(run, tmp_path):
    (tmp_path / "config.yaml").write_text("model: {width: 5, rate: 0.5}\ntrainer: {max_epochs: 7}\n")
    cli = run("--config", "config.yaml", "--model.rate=0.7")
    assert (cli.model.width, cli.model.rate, cli.trainer.max_epochs) == (5, 0.7, 7)


def test_the_configuration_can_be_printed_and_read_again(run, capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        run("--model.width=5", "--print_config")
    assert left.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert run("--config=printed.yaml").model.width == 5


def test_parts_are_named_by_their_class_and_arguments(run):
    cli = run("--model.layer=torch.nn.Linear", "--model.layer.in_features=3", "--model.layer.out_features=4")
    assert cli.model.extra.weight.shape == (4, 3)


def test_callbacks_are_named_without_their_module_in_files_and_options(run, tmp_path):
    (tmp_path / "config.yaml").write_text(
        "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitor: x}\n"
        "  - class_path: camshaft.contrib.lightning.callbacks.LearningRateMonitor\n"
    )
    of_file = run("--config=config.yaml").trainer.callbacks
    of_options = run("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=x").trainer.callbacks
    assert [type(one) for one in of_file[:2]] == [EarlyStopping, LearningRateMonitor]
    assert (type(of_options[0]), of_options[0].monitor) == (EarlyStopping, "x")


def test_configurations_written_for_lightning_name_our_classes(run, tmp_path):
    (tmp_path / "config.yaml").write_text(
        "trainer:\n  callbacks:\n  - class_path: lightning.pytorch.callbacks.EarlyStopping\n"
        "    init_args: {monitor: x}\n  - class_path: pytorch_lightning.callbacks.LearningRateMonitor\n"
        "  logger: {class_path: pytorch_lightning.loggers.CSVLogger, init_args: {save_dir: logs}}\n"
    )
    trainer = run("--config=config.yaml").trainer
    assert [type(one) for one in trainer.callbacks[:2]] == [EarlyStopping, LearningRateMonitor]
    assert isinstance(trainer.logger, pl.loggers.CSVLogger)


def test_defaults_of_the_trainer_can_be_set_and_callbacks_added(run):
    watch = Watch()
    cli = run("--trainer.min_epochs=2", trainer_defaults={"max_epochs": 9, "callbacks": watch})
    assert (cli.trainer.max_epochs, cli.trainer.min_epochs, watch in cli.trainer.callbacks) == (9, 2, True)


def test_arguments_may_come_from_the_program(run):
    assert run(args=["--model.width=5"]).model.width == 5
    assert run(args={"model": {"width": 6}}).model.width == 6


def test_the_programs_own_arguments_are_not_dropped_without_a_word(run):
    with pytest.warns(UserWarning, match=r"takes no notice of the program's own arguments, \['--model.width=3'\]"):
        assert run("--model.width=3", args=["--model.width=5"]).model.width == 5


def test_environment_variables_are_options_where_the_parser_reads_them(run, monkeypatch):
    monkeypatch.setenv("PL_MODEL__WIDTH", "5")
    assert run(parser_kwargs={"default_env": True}).model.width == 5


def test_a_subcommands_parser_has_options_of_its_own(run, tmp_path, capsys):
    (tmp_path / "defaults.yaml").write_text("model: {width: 5}\n")
    with pytest.raises(SystemExit) as left:
        run("fit", "--print_config", run=True, parser_kwargs={"fit": {"default_config_files": ["defaults.yaml"]}})
    assert left.value.code == 0
    assert "width: 5" in capsys.readouterr().out


def test_a_function_may_make_the_trainer(run):
    def make(max_epochs: int = 3) -> pl.Trainer:
        return pl.Trainer(max_epochs=max_epochs * 2, logger=False, enable_checkpointing=False)

    with pytest.warns(UserWarning, match="no argument 'callbacks', so these are not used: SaveConfigCallback"):
        assert run("--trainer.max_epochs=4", trainer_class=make).trainer.max_epochs == 8


def test_without_a_class_the_module_is_named(run):
    cli = run("--model", f"{__name__}.Wider", "--model.more=4", "--model.width=5", model=None)
    assert (type(cli.model), cli.model.more, cli.model.width) == (Wider, 4, 5)


def test_a_subclass_may_be_named_where_that_is_allowed(run):
    cli = run("--model=Wider", "--model.more=4", subclass_mode_model=True)
    assert (type(cli.model), cli.model.more) == (Wider, 4)


def test_a_function_may_make_the_module(run):
    def make(width: int = 4) -> Model:
        return Model(width=width * 2)

    assert run("--model.width=5", model=make).model.width == 10


def test_what_is_no_part_of_a_program_is_refused():
    from camshaft.contrib.lightning.cli import LightningArgumentParser  # noqa: PLC0415

    with pytest.raises(MisconfigurationException, match="a subclass of Trainer"):
        LightningArgumentParser().add_lightning_class_args(int, "number")


# A class of one's own.


class Linked(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_lightning_class_args(Watch, "watch")
        parser.link_arguments("data.width", "model.width")
        parser.link_arguments("data", "model.rate", compute_fn=lambda data: float(data.seen), apply_on="instantiate")
        parser.set_defaults({"watch.steps": 4})


def test_arguments_are_linked_and_added(run):
    cli = run("--data.width=6", data=Data, kind=Linked)
    watch = next(one for one in cli.trainer.callbacks if isinstance(one, Watch))
    assert (cli.model.width, cli.model.rate, watch.steps) == (6, 7.0, 4)


def test_what_links_have_set_is_among_the_hyperparameters(run):
    hparams = run("--data.width=6", data=Data, kind=Linked).model.hparams
    assert (hparams.width, hparams.rate) == (6, 7.0)


class Moments(LightningCLI):
    def before_instantiate_classes(self):
        self.moments = ["before"]

    def after_instantiate_classes(self):
        self.moments.append(type(self.trainer).__name__)

    def before_fit(self):
        self.moments.append("before_fit")

    def after_fit(self):
        self.moments.append(self.trainer.global_step)


# Optimizers.


def test_without_an_optimizer_on_the_command_line_the_modules_own_counts(run):
    assert isinstance(run().model.configure_optimizers()[0][0], torch.optim.SGD)


def test_an_optimizer_and_a_schedule_on_the_command_line_count_more(run):
    options = ["--optimizer=Adam", "--optimizer.lr=0.3", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=2"]
    with pytest.warns(UserWarning, match=r"--optimizer counts, and not Model\.configure_optimizers"):
        model = run(*options).model
    (optimizer,), (schedule,) = model.configure_optimizers()
    assert (type(optimizer), optimizer.param_groups[0]["lr"]) == (torch.optim.Adam, 0.3)
    assert (type(schedule), schedule.step_size) == (torch.optim.lr_scheduler.StepLR, 2)
    assert is_overridden("configure_optimizers", model)


@pytest.mark.filterwarnings("ignore:--optimizer counts")
def test_a_plateau_knows_the_metric_that_it_watches(run):
    options = ["--optimizer=SGD", "--optimizer.lr=0.3", "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=x"]
    chosen = run(*options).model.configure_optimizers()
    assert (chosen["lr_scheduler"]["monitor"], chosen["optimizer"].param_groups[0]["lr"]) == ("x", 0.3)


class OfOneClass(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(torch.optim.AdamW)
        parser.add_lr_scheduler_args(torch.optim.lr_scheduler.ExponentialLR)


@pytest.mark.filterwarnings("ignore:--optimizer counts")
def test_an_optimizer_of_a_given_class_has_its_arguments(run):
    model = run("--optimizer.lr=0.3", "--lr_scheduler.gamma=0.5", kind=OfOneClass).model
    (optimizer,), (schedule,) = model.configure_optimizers()
    assert (type(optimizer), optimizer.param_groups[0]["lr"], schedule.gamma) == (torch.optim.AdamW, 0.3, 0.5)


class Several(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(nested_key="one")
        parser.add_optimizer_args(nested_key="two")


def test_several_optimizers_need_to_be_linked(run):
    with pytest.raises(MisconfigurationException, match=r"several optimizers or schedules: \['one', 'two'.*link_to="):
        run("--one=SGD", "--two=SGD", kind=Several)


class TakesConfigurations(BoringModel):
    def __init__(self, one: dict, two: dict):
        super().__init__()
        self.one, self.two = one, two


class ToArguments(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.add_optimizer_args(nested_key="one", link_to="model.one")
        parser.add_optimizer_args(torch.optim.Adam, nested_key="two", link_to="model.two")


def test_linked_optimizers_reach_the_module_as_configurations(run):
    model = run("--one=SGD", "--one.lr=0.2", "--two.lr=0.3", model=TakesConfigurations, kind=ToArguments).model
    made = [instantiate_class(model.parameters(), config) for config in (model.one, model.two)]
    assert [(type(one), one.param_groups[0]["lr"]) for one in made] == [(torch.optim.SGD, 0.2), (torch.optim.Adam, 0.3)]


class TakesFunctions(BoringModel):
    def __init__(self, optimizer: OptimizerCallable = torch.optim.SGD, schedule: LRSchedulerCallable | None = None):
        super().__init__()
        self.optimizer, self.schedule = optimizer, schedule


def test_functions_that_make_optimizers_are_arguments_too(run):
    model = run(
        "--model.optimizer=Adam", "--model.optimizer.lr=0.3", "--model.schedule=StepLR",
        "--model.schedule.step_size=3", model=TakesFunctions, auto_configure_optimizers=False,
    ).model  # fmt: skip
    optimizer = model.optimizer(model.parameters())
    assert (type(optimizer), optimizer.param_groups[0]["lr"], model.schedule(optimizer).step_size) == (
        torch.optim.Adam,
        0.3,
        3,
    )


# Seeds.


def test_a_seed_is_set_before_the_module_is_made(run):
    first, second = (run("--seed_everything=5").model.layer.weight for _ in range(2))
    assert torch.equal(first, second)


def test_seeding_by_default_says_which_seed_it_was(run):
    assert run(seed_everything_default=True).config["seed_everything"] == 0


# Running.


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of `fit` whose configuration and checkpoint are kept."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setenv("PL_SEED_WORKERS", "0")
        options = ["--model.width=5", "--model.layer=torch.nn.Linear", "--model.layer.in_features=3",
                   "--model.layer.out_features=4", "--trainer.default_root_dir=root"]  # fmt: skip
        patch.setattr(sys, "argv", ["train.py", "fit", *QUIET, *options])
        cli = Moments(Model, BoringDataModule, seed_everything_default=1)
        cli.trainer.save_checkpoint("model.ckpt")
    return cli, folder


def test_fit_trains(fitted):
    cli, _ = fitted
    assert (cli.trainer.global_step, cli.subcommand) == (2, "fit")


def test_methods_of_ones_own_are_called_at_their_moments(fitted):
    assert fitted[0].moments == ["before", "Trainer", "before_fit", 2]


def test_the_configuration_is_saved_and_does_the_run_again(fitted, run):
    cli, folder = fitted
    again = run("fit", "--config", str(folder / "root" / "config.yaml"), run=True, data=BoringDataModule)
    assert again.model.width == 5
    assert torch.equal(again.model.layer.weight, cli.model.layer.weight)


def test_a_configuration_of_a_run_before_is_not_overwritten(fitted, run):
    _, folder = fitted
    config = str(folder / "root" / "config.yaml")
    options = ["fit", "--config", config, f"--trainer.default_root_dir={folder / 'root'}"]
    with pytest.raises(RuntimeError, match=r"config\.yaml is there from a run before"):
        run(*options, run=True, data=BoringDataModule)
    run(*options, run=True, data=BoringDataModule, save_config_kwargs={"overwrite": True})


def test_a_module_with_parts_comes_back_from_its_checkpoint(fitted):
    _, folder = fitted
    loaded = Model.load_from_checkpoint(folder / "model.ckpt")
    assert (loaded.width, loaded.extra.weight.shape) == (5, (4, 3))
    assert loaded.hparams == fitted[0].model.hparams


def test_the_checkpoint_decides_how_the_module_is_made(fitted, run):
    _, folder = fitted
    cli = run("validate", *QUIET, f"--ckpt_path={folder / 'model.ckpt'}", run=True, data=BoringDataModule)
    assert (cli.model.width, cli.model.extra.weight.shape) == (5, (4, 3))


@pytest.mark.parametrize("subcommand", ["test", "predict"])
def test_the_other_functions_are_run_too(run, subcommand):
    moments = []

    class Told(LightningCLI):
        def after_test(self):
            moments.append("test")

        def after_predict(self):
            moments.append("predict")

    run(subcommand, *QUIET, "--trainer.limit_test_batches=1", "--trainer.limit_predict_batches=1", run=True, kind=Told,
        data=BoringDataModule)  # fmt: skip
    assert moments == [subcommand]


def test_a_subcommand_must_be_chosen(run, capsys):
    with pytest.raises(SystemExit) as left:
        run(run=True)
    assert left.value.code == 2
    assert "subcommand" in capsys.readouterr().err


# Saving the configuration.


def test_the_configuration_can_be_saved_elsewhere():
    saved = []

    class Elsewhere(SaveConfigCallback):
        def save_config(self, trainer, pl_module, stage):
            saved.append(stage)

    callback = Elsewhere(None, None, save_to_log_dir=False)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    callback.setup(trainer, None, "fit")
    callback.setup(trainer, None, "fit")
    assert saved == ["fit"]


def test_saving_nowhere_is_refused():
    with pytest.raises(ValueError, match="saves nothing"):
        SaveConfigCallback(None, None, save_to_log_dir=False)


# Without jsonargparse.


def test_without_jsonargparse_the_command_line_says_what_to_install(tmp_path):
    (tmp_path / "jsonargparse.py").write_text("raise ImportError('not here')")
    code = (
        "from camshaft.contrib.lightning.cli import LightningCLI, instantiate_class\n"
        "print(instantiate_class((), {'class_path': 'datetime.timedelta'}))\n"
        "try: LightningCLI()\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    root = Path(__file__).parents[2]
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{root}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "0:00:00\nLightningCLI needs jsonargparse, which is not installed: pip install" in shown.stdout
