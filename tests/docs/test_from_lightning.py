"""What docs/from-lightning.md promises: its tables name every flag and hook, and each hook that works is called.

That every block runs is shown in test_code_blocks.py.
"""

import functools
import inspect
import re

import pytest
import torch

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning import flags
from tests.docs.code_blocks import ROOT

TEXT = (ROOT / "docs" / "from-lightning.md").read_text(encoding="utf-8")


def table(title):
    """The rows of the table whose first heading is `title`, within its section: names with what the guide says."""
    tables = re.findall(rf"^\| {title} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    return [
        {
            match[1]: (match[2], match[3])
            for match in re.finditer(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\|$", rows, re.MULTILINE)
        }
        for rows in tables
    ]


(FLAGS,), (OLD_FLAGS,) = table("flag"), table("flag of then")
OF_MODULES, OF_CALLBACKS, OF_DATA_MODULES = table("hook")
(OLD_HOOKS,) = table("hook of then")


def test_every_row_says_one_of_four_things():
    rows = {**FLAGS, **OLD_FLAGS, **OF_MODULES, **OF_CALLBACKS, **OF_DATA_MODULES, **OLD_HOOKS}
    assert {verdict for verdict, _ in rows.values()} == {"works", "differs", "refused", "new"}
    assert [name for name, (verdict, note) in rows.items() if verdict != "works" and not note] in ([], ["ipus"])


def test_every_flag_of_the_trainer_has_a_row():
    parameters = inspect.signature(pl.Trainer.__init__).parameters.values()
    assert set(FLAGS) == {one.name for one in parameters if one.name not in ("self", "old_flags")}


def test_every_flag_of_lightning_has_a_row():
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed beside this")
    assert set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"} <= set(FLAGS)


def test_every_flag_of_then_has_a_row():
    assert set(OLD_FLAGS) == set(flags._OLD_FLAGS) | set(flags._RENAMED)


# The hooks


def hooks_of(kind):
    """The methods of a class that are there to be overridden."""
    others = {
        "all_gather clip_gradients freeze from_datasets load_from_checkpoint log log_dict lr_schedulers optimizers",
        "manual_backward print to_onnx to_torchscript toggle_optimizer toggled_optimizer unfreeze untoggle_optimizer",
    }
    not_hooks = {name for names in others for name in names.split()}
    return {name for name, value in vars(kind).items() if inspect.isfunction(value) and name[0] != "_"} - not_hooks


def test_every_hook_of_a_module_has_a_row():
    missing = hooks_of(pl.LightningModule) - set(OF_MODULES)
    assert missing == set()


def test_every_hook_of_a_callback_has_a_row():
    assert hooks_of(pl.Callback) - set(OF_CALLBACKS) == set()


def test_every_hook_of_a_data_module_has_a_row():
    assert hooks_of(pl.LightningDataModule) - set(OF_DATA_MODULES) == set()


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def train_dataloader(self):
        return [torch.ones(4, 2)] * 2

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return [torch.ones(4, 2)] * 2

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def recording(base, names, calls):
    """A subclass that overrides each of these hooks, tells of its call, and does what was done before."""

    def hook(name):
        before = getattr(base, name, None)

        def own(self, *args, **kwargs):
            calls.add(name)
            if before is not None:
                return before(self, *args, **kwargs)
            return args[0] if name.endswith("_step_end") else None

        # The steps keep their signatures, by which it is found out what they take.
        return functools.wraps(before)(own) if name in vars(Model) and name.endswith("_step") else own

    methods = {name: hook(name) for name in names}
    for method in methods.values():
        method.__module__ = __name__
    return type("Recording", (base,), methods)


def run_everything(module, callbacks=(), datamodule=None, tmp_path=None):
    """Fit, go on with a checkpoint, validate, test, predict, and fail."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    trainer = pl.Trainer(max_epochs=1, gradient_clip_val=1.0, **quiet)
    trainer.fit(module, datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    trainer = pl.Trainer(max_epochs=2, gradient_clip_val=1.0, **quiet)
    trainer.fit(module, datamodule=datamodule, ckpt_path=tmp_path / "one.ckpt")
    for function in (trainer.validate, trainer.test, trainer.predict):
        function(module, datamodule=datamodule)
    return trainer


def test_every_hook_of_a_module_that_works_is_called(tmp_path):
    calls = set()
    names = list(OF_MODULES)
    run_everything(recording(Model, names, calls)(), tmp_path=tmp_path)
    assert set(names) - calls == set()


def test_every_hook_of_a_callback_that_works_is_called(tmp_path):
    calls = set()
    of_today = [name for name in OF_CALLBACKS if "of 0.7" not in OF_CALLBACKS[name][1]]

    class Kept(pl.Callback):
        def state_dict(self):
            return {"kept": 1}

    class Fails(Model):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError

    callback = recording(Kept, of_today, calls)()
    run_everything(Model(), [callback], tmp_path=tmp_path)
    with pytest.raises(ArithmeticError):
        run_everything(Fails(), [callback], tmp_path=tmp_path)
    assert set(of_today) - calls == set()


def test_every_hook_of_then_of_a_callback_is_called(tmp_path):
    calls = set()
    of_then = [name for name, (_, note) in OF_CALLBACKS.items() if note == "of 0.7" or name.startswith("on_init")]
    run_everything(Model(), [recording(pl.Callback, of_then, calls)()], tmp_path=tmp_path)
    assert (
        calls
        == set(of_then)
        == {
            "on_batch_end",
            "on_batch_start",
            "on_epoch_end",
            "on_epoch_start",
            "on_init_end",
            "on_init_start",
        }
    )


def test_every_hook_of_a_data_module_that_works_is_called(tmp_path):
    calls = set()

    class Kept(Data):
        def state_dict(self):
            return {"kept": 1}

    class Fails(Model):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError

    datamodule = recording(Kept, OF_DATA_MODULES, calls)()
    run_everything(Model(), datamodule=datamodule, tmp_path=tmp_path)
    with pytest.raises(ArithmeticError):
        run_everything(Fails(), datamodule=datamodule, tmp_path=tmp_path)
    assert set(OF_DATA_MODULES) - calls == set()


def test_every_hook_of_then_of_a_module_is_called(tmp_path):
    calls = set()
    older = {"validation_end", "test_end"}  # the names before validation_epoch_end and test_epoch_end
    for names in (set(OLD_HOOKS) - older, older):
        run_everything(recording(Model, names, calls)(), tmp_path=tmp_path)
    assert set(OLD_HOOKS) - calls == set()
