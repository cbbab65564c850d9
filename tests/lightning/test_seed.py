"""A program of early 2020 runs with its import changed: the module, the Trainer, and everything that was shown of them.

The module here is of the kind that introductions to Lightning 0.7 showed: it makes its own data, returns mappings from
its steps, and sums them up in `…_epoch_end`.
"""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import camshaft.contrib.lightning as pl
from camshaft.contrib.lightning.callbacks import EarlyStopping, ModelCheckpoint

ROOT = Path(__file__).parents[2]
QUIET = {"logger": False, "checkpoint_callback": False, "show_progress_bar": False, "weights_summary": None}


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Classifier(pl.LightningModule):
    """Three layers for small pictures of three kinds."""

    def __init__(self, shuffle=False, dropout=0.0):
        super(Classifier, self).__init__()  # noqa: UP008 - as it was written then
        self.layer_1 = nn.Linear(4 * 4, 12)
        self.layer_2 = nn.Linear(12, 8)
        self.layer_3 = nn.Linear(8, 3)
        self.dropout = nn.Dropout(dropout)
        self.shuffle = shuffle

    def forward(self, x):
        x = x.view(x.size(0), -1)
        x = self.dropout(torch.relu(self.layer_1(x)))
        x = torch.relu(self.layer_2(x))
        return torch.log_softmax(self.layer_3(x), dim=1)

    def cross_entropy_loss(self, logits, labels):
        return F.nll_loss(logits, labels)

    def training_step(self, train_batch, batch_idx):
        x, y = train_batch
        loss = self.cross_entropy_loss(self.forward(x), y)
        return {"loss": loss, "log": {"train_loss": loss}}

    def validation_step(self, val_batch, batch_idx):
        x, y = val_batch
        return {"val_loss": self.cross_entropy_loss(self.forward(x), y)}

    def validation_epoch_end(self, outputs):
        avg_loss = torch.stack([x["val_loss"] for x in outputs]).mean()
        return {"avg_val_loss": avg_loss, "log": {"val_loss": avg_loss}}

    def test_step(self, test_batch, batch_idx):
        x, y = test_batch
        return {"test_loss": self.cross_entropy_loss(self.forward(x), y)}

    def test_epoch_end(self, outputs):
        avg_loss = torch.stack([x["test_loss"] for x in outputs]).mean()
        return {"avg_test_loss": avg_loss, "log": {"test_loss": avg_loss}}

    def prepare_data(self):
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randn(70, 1, 4, 4, generator=generator)
        data = TensorDataset(pictures, pictures.flatten(1)[:, :3].argmax(1))
        self.train_data, self.val_data, self.test_data = random_split(data, [40, 20, 10], generator)

    def train_dataloader(self):
        return DataLoader(self.train_data, batch_size=10, shuffle=self.shuffle)

    def val_dataloader(self):
        return DataLoader(self.val_data, batch_size=10)

    def test_dataloader(self):
        return DataLoader(self.test_data, batch_size=5)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


# The lifecycle


LIFECYCLE = (
    "__init__",
    "prepare_data",
    "configure_optimizers",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
)
LOOPS = tuple(
    f"{stage}_{moment}" for stage in ("training", "validation", "test") for moment in ("step", "step_end", "epoch_end")
)


class Recorded(Classifier):
    """Tells of each of its methods that is called."""

    def __init__(self):
        self.__dict__["calls"] = ["__init__"]
        super().__init__()

    def training_step_end(self, output):
        return output

    def training_epoch_end(self, outputs):
        return {}

    def validation_step_end(self, output):
        return output

    def test_step_end(self, output):
        return output


def _recorded(name):
    def method(self, *arguments):
        self.calls.append(name)
        return getattr(super(Recorded, self), name)(*arguments)

    def own(self, *arguments):
        self.calls.append(name)
        return before(self, *arguments)

    before = vars(Recorded).get(name)
    return method if before is None else own


for _name in (*LIFECYCLE[1:], *LOOPS):
    setattr(Recorded, _name, _recorded(_name))


def test_the_lifecycle_has_the_order_of_early_2020():
    model = Recorded()
    trainer = pl.Trainer(max_epochs=1, **QUIET)
    trainer.fit(model)
    assert [call for call in model.calls if call in LIFECYCLE] == list(LIFECYCLE[:5])
    trainer.test()
    assert [call for call in model.calls if call in LIFECYCLE] == list(LIFECYCLE)


def test_the_nine_methods_of_the_three_loops_are_called_in_their_order():
    model = Recorded()
    trainer = pl.Trainer(max_epochs=2, num_sanity_val_steps=0, **QUIET)
    trainer.fit(model)
    trainer.test()
    epoch = [
        *(["training_step", "training_step_end"] * 4),
        *(["validation_step", "validation_step_end"] * 2),
        "validation_epoch_end",
        "training_epoch_end",
    ]
    test = [*(["test_step", "test_step_end"] * 2), "test_epoch_end"]
    assert [call for call in model.calls if call in LOOPS] == [*epoch, *epoch, *test]


def test_validation_is_tried_before_training():
    model = Recorded()
    pl.Trainer(max_epochs=1, **QUIET).fit(model)
    loops = [call for call in model.calls if call in LOOPS]
    assert loops[:6] == ["validation_step", "validation_step_end"] * 2 + ["validation_epoch_end", "training_step"]


def test_fit_returns_1_as_it_did():
    assert pl.Trainer(max_epochs=1, **QUIET).fit(Classifier()) == 1


def test_a_batch_takes_the_same_way_with_few_frames():
    depths = []

    class Deep(Classifier):
        def training_step(self, train_batch, batch_idx):
            frame, depth = sys._getframe(1), 0
            while frame.f_code.co_name != "fit":
                frame, depth = frame.f_back, depth + 1
            depths.append(depth)
            return super().training_step(train_batch, batch_idx)

    pl.Trainer(max_epochs=1, **QUIET).fit(Deep())
    assert max(depths) <= 8


# A loop by hand, and the two lines in its place


def by_hand(model, epochs):
    """The loop that the Trainer replaces."""
    model.prepare_data()
    optimizer = model.configure_optimizers()
    train, val = model.train_dataloader(), model.val_dataloader()
    val_losses = []
    for _ in range(epochs):
        model.train()
        for x, y in train:
            loss = model.cross_entropy_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            losses = [model.cross_entropy_loss(model(x), y).item() for x, y in val]
            val_losses.append(torch.mean(torch.tensor(losses)))
    return val_losses


@pytest.mark.parametrize("how", [{}, {"shuffle": True, "dropout": 0.5}], ids=["plain", "shuffled-with-dropout"])
def test_the_two_lines_end_in_the_bits_of_the_loop_by_hand(how):
    torch.manual_seed(1)
    raw = Classifier(**how)
    val_losses = by_hand(raw, epochs=3)

    torch.manual_seed(1)
    model = Classifier(**how)
    trainer = pl.Trainer(max_epochs=3, **QUIET)
    trainer.fit(model)

    assert all(torch.equal(*pair) for pair in zip(raw.parameters(), model.parameters(), strict=True))
    assert trainer.callback_metrics["val_loss"] == val_losses[-1]


def test_it_learns():
    trainer = pl.Trainer(max_epochs=15, **QUIET)
    trainer.fit(Classifier())
    assert trainer.callback_metrics["train_loss"] < 0.5  # of ln 3 at the beginning


# Early stopping and checkpoints


class Scripted(Classifier):
    """Its validation says what it is told to."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses

    def validation_epoch_end(self, outputs):
        loss = torch.tensor(self.losses[self.current_epoch])
        return {"avg_val_loss": loss, "log": {"val_loss": loss}}


WORSE_FROM_THE_THIRD = [0.9, 0.5, 0.6, 0.7, 0.8, 0.9]


@pytest.mark.parametrize("name", ["val_loss", "avg_val_loss"])
def test_early_stopping_finds_both_names_of_the_validation_loss(name):
    trainer = pl.Trainer(max_epochs=6, early_stop_callback=EarlyStopping(monitor=name, patience=2), **QUIET)
    trainer.fit(Scripted(WORSE_FROM_THE_THIRD))
    assert trainer.current_epoch == 4


@pytest.mark.parametrize("name", ["val_loss", "avg_val_loss"])
def test_checkpoints_find_both_names_of_the_validation_loss(name):
    checkpoint = ModelCheckpoint(filepath=Path.cwd() / "kept" / "{epoch}", monitor=name)
    trainer = pl.Trainer(max_epochs=4, **{**QUIET, "checkpoint_callback": checkpoint})
    trainer.fit(Scripted(WORSE_FROM_THE_THIRD))
    assert [path.name for path in Path("kept").iterdir()] == ["epoch=1.ckpt"]
    assert checkpoint.best_model_score == 0.5


def test_early_stop_callback_true_watches_val_loss_for_three_epochs():
    trainer = pl.Trainer(max_epochs=6, early_stop_callback=True, **QUIET)
    trainer.fit(Scripted(WORSE_FROM_THE_THIRD))
    assert trainer.current_epoch == 5


def test_early_stop_callback_true_needs_val_loss():
    class Without(Classifier):
        def validation_epoch_end(self, outputs):
            return {"log": {"other": 1.0}}

    with pytest.raises(RuntimeError, match="monitors 'val_loss', which nothing has logged"):
        pl.Trainer(max_epochs=2, early_stop_callback=True, **QUIET).fit(Without())


def test_early_stop_callback_none_does_without_val_loss():
    class Without(Classifier):
        def validation_epoch_end(self, outputs):
            return {"log": {"other": 1.0}}

    trainer = pl.Trainer(max_epochs=2, early_stop_callback=None, **QUIET)
    trainer.fit(Without())
    assert trainer.current_epoch == 2


def test_min_epochs_comes_before_early_stopping():
    trainer = pl.Trainer(max_epochs=6, min_epochs=6, early_stop_callback=EarlyStopping("val_loss", patience=1), **QUIET)
    trainer.fit(Scripted(WORSE_FROM_THE_THIRD))
    assert trainer.current_epoch == 6


def test_without_a_word_the_best_val_loss_is_kept_beside_the_logs():
    trainer = pl.Trainer(max_epochs=4, show_progress_bar=False, weights_summary=None)
    trainer.fit(Scripted(WORSE_FROM_THE_THIRD))
    kept = Path(trainer.checkpoint_callback.best_model_path)
    assert kept.parent == Path.cwd() / "lightning_logs" / "version_0" / "checkpoints"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert kept.name.startswith("epoch=1-")


def test_without_validation_the_newest_weights_are_kept():
    class Untested(Classifier):
        validation_step = pl.LightningModule.validation_step

    trainer = pl.Trainer(max_epochs=2, logger=False, show_progress_bar=False, weights_summary=None)
    trainer.fit(Untested())
    assert Path(trainer.checkpoint_callback.best_model_path).name == "epoch=1-step=8.ckpt"


# Tests


def test_test_without_arguments_takes_the_weights_of_now(capsys):
    trainer = pl.Trainer(max_epochs=2, logger=False, show_progress_bar=False, weights_summary=None)
    model = Classifier()
    trainer.fit(model)  # it keeps checkpoints, too
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    (results,) = trainer.test()
    assert results["test_loss"] == pytest.approx(torch.tensor(3.0).log().item())
    assert "avg_test_loss" in capsys.readouterr().out


def test_a_module_can_be_tested_that_was_never_trained():
    (results,) = pl.Trainer(**QUIET).test(Classifier())
    assert results["test_loss"] == results["avg_test_loss"]


# Deployment


def test_a_pretrained_module_is_loaded_frozen_and_predicts():
    trainer = pl.Trainer(max_epochs=2, logger=False, show_progress_bar=False, weights_summary=None)
    model = Classifier()
    trainer.fit(model)
    pretrained = Classifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    pretrained.freeze()
    assert not pretrained.training
    assert not any(parameter.requires_grad for parameter in pretrained.parameters())
    out = pretrained(torch.ones(2, 1, 4, 4))
    assert not out.requires_grad
    model.eval()
    assert torch.equal(out, model(torch.ones(2, 1, 4, 4)))


def test_unfreeze_lets_it_be_trained_again():
    model = Classifier()
    model.freeze()
    model.unfreeze()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_module_gives_features_to_another_that_is_trained():
    pretrained = Classifier()
    pretrained.freeze()
    before = [parameter.clone() for parameter in pretrained.parameters()]

    class Finetuned(Classifier):
        def __init__(self):
            super().__init__()
            self.features = pretrained
            self.head = nn.Linear(3, 3)

        def forward(self, x):
            return torch.log_softmax(self.head(self.features(x)), dim=1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    model = Finetuned()
    head = model.head.weight.clone()
    pl.Trainer(max_epochs=1, **QUIET).fit(model)
    assert not torch.equal(head, model.head.weight)
    assert all(torch.equal(*pair) for pair in zip(before, pretrained.parameters(), strict=True))


def test_hyperparameters_are_a_namespace_on_the_module_and_come_back_with_it():
    class Configured(Classifier):
        def __init__(self, hparams):
            super().__init__()
            self.hparams = hparams
            self.layer_2 = nn.Linear(12, self.hparams.width)
            self.layer_3 = nn.Linear(self.hparams.width, 3)

    trainer = pl.Trainer(max_epochs=1, logger=False, show_progress_bar=False, weights_summary=None)
    trainer.fit(Configured(Namespace(width=5, name="small")))
    loaded = Configured.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert isinstance(loaded.hparams, Namespace)
    assert vars(loaded.hparams) == {"width": 5, "name": "small"}


def checkpoint_of_2020(path, model, optimizer, **more):
    """A file as Lightning 0.7 wrote it."""
    content = {
        "epoch": 2,
        "global_step": 8,
        "checkpoint_callback_best": torch.tensor(0.5),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "state_dict": model.state_dict(),
        **more,
    }
    torch.save(content, path)


def test_a_checkpoint_of_2020_is_loaded_with_its_hyperparameters():
    class Configured(Classifier):
        def __init__(self, hparams):
            super().__init__()
            self.hparams = hparams

    model = Configured(Namespace(width=5))
    checkpoint_of_2020("old.ckpt", model, model.configure_optimizers(), hparams={"width": 5}, hparams_type="Namespace")
    loaded = Configured.load_from_checkpoint("old.ckpt")
    assert loaded.hparams.width == 5
    assert torch.equal(loaded.layer_1.weight, model.layer_1.weight)


def test_training_goes_on_with_a_checkpoint_of_2020_at_its_epoch():
    model = Classifier()
    checkpoint_of_2020("old.ckpt", model, model.configure_optimizers())
    trainer = pl.Trainer(max_epochs=3, resume_from_checkpoint="old.ckpt", **QUIET)
    trainer.fit(Classifier())
    assert (trainer.current_epoch, trainer.global_step) == (3, 12)


def test_resume_from_checkpoint_ends_in_the_bits_of_a_run_without_a_break():
    how = {"shuffle": True, "dropout": 0.5}
    torch.manual_seed(1)
    whole = Classifier(**how)
    pl.Trainer(max_epochs=4, **QUIET).fit(whole)

    torch.manual_seed(1)
    trainer = pl.Trainer(max_epochs=2, **QUIET)
    trainer.fit(Classifier(**how))
    trainer.save_checkpoint("half.ckpt")
    resumed = Classifier(**how)
    pl.Trainer(max_epochs=4, resume_from_checkpoint="half.ckpt", **QUIET).fit(resumed)
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), resumed.parameters(), strict=True))


# Several optimizers


class Adversaries(pl.LightningModule):
    """Two nets, each with its optimizer and its part of the step."""

    def __init__(self, **options):
        super().__init__()
        self.generator, self.discriminator = nn.Linear(2, 2), nn.Linear(2, 1)
        self.options = options
        self.turns = []

    def training_step(self, batch, batch_idx, optimizer_idx):
        self.turns.append((batch_idx, optimizer_idx))
        others = (self.discriminator, self.generator)[optimizer_idx]
        assert not any(parameter.requires_grad for parameter in others.parameters())
        loss = self.discriminator(self.generator(batch)).square().mean()
        name = ("g_loss", "d_loss")[optimizer_idx]
        return {"loss": loss, "progress_bar": {name: loss}, "log": {name: loss}}

    def configure_optimizers(self):
        both = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.generator, self.discriminator)]
        every = self.options.get("every")
        if every:
            return [{"optimizer": one, "frequency": often} for one, often in zip(both, every, strict=True)]
        return both, []

    def train_dataloader(self):
        return [torch.ones(4, 2)] * 6


def test_training_step_is_called_for_each_optimizer_with_its_index():
    model = Adversaries()
    trainer = pl.Trainer(max_epochs=1, **QUIET)
    trainer.fit(model)
    assert model.turns == [(batch, index) for batch in range(6) for index in range(2)]
    assert {"g_loss", "d_loss"} <= set(trainer.progress_bar_metrics)


def test_both_nets_are_trained_by_their_own_optimizer():
    model = Adversaries()
    before = [parameter.clone() for parameter in model.parameters()]
    pl.Trainer(max_epochs=1, **QUIET).fit(model)
    assert not any(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_optimizers_with_frequencies_take_turns():
    model = Adversaries(every=(1, 2))
    pl.Trainer(max_epochs=1, **QUIET).fit(model)
    assert [index for _, index in model.turns] == [0, 1, 1, 0, 1, 1]


# Flags of the Trainer


def test_flags_of_then_and_of_today_go_together():
    trainer = pl.Trainer(
        gpus=None,
        max_nb_epochs=2,
        row_log_interval=1,
        train_percent_check=0.5,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        track_grad_norm=2,
        gradient_clip=0.5,
        accumulate_grad_batches={1: 2},
        default_save_path="runs",
        weights_summary="full",
        progress_bar_refresh_rate=0,
        profiler=True,
        checkpoint_callback=False,
        callbacks=[EarlyStopping("avg_val_loss")],
        benchmark=False,
        precision=32,
        check_val_every_n_epoch=1,
        val_check_interval=0.5,
        enable_autolog_hparams=False,
    )
    trainer.fit(Classifier())
    assert (trainer.current_epoch, trainer.num_training_batches, trainer.num_val_batches) == (2, 2, [1])
    assert trainer.global_step == 3  # two steps of a batch each, then one of two
    assert Path("runs/lightning_logs/version_0").is_dir()
    assert "grad_2.0_norm_total" in trainer.callback_metrics


def test_overfit_pct_takes_a_share_of_all_data():
    trainer = pl.Trainer(max_epochs=1, overfit_pct=0.5, **QUIET)
    model = Classifier()
    trainer.fit(model)
    trainer.test()
    assert (trainer.num_training_batches, trainer.num_val_batches, trainer.num_test_batches) == (2, [1], [1])


def test_overfit_pct_of_too_few_batches_is_an_error_rather_than_no_training():
    with pytest.raises(ValueError, match=r"0\.1 of 4 batches is none"):
        pl.Trainer(max_epochs=1, overfit_pct=0.1, **QUIET).fit(Classifier())


def test_16_bit_precision_trains_in_the_16_bits_that_a_cpu_has():
    model = Classifier()
    before = model.layer_1.weight.clone()
    kinds = []
    model.layer_1.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    with pytest.warns(UserWarning, match="computes in bf16 on the CPU"):
        trainer = pl.Trainer(max_epochs=2, gpus=0, precision=16, **QUIET)
    trainer.fit(model)
    assert set(kinds) == {torch.bfloat16}
    assert not torch.equal(before, model.layer_1.weight)


def test_fast_dev_run_takes_one_batch_of_everything():
    model = Recorded()
    trainer = pl.Trainer(fast_dev_run=True, show_progress_bar=False, weights_summary=None)
    trainer.fit(model)
    assert [call for call in model.calls if call in ("training_step", "validation_step")] == [
        "training_step",
        "validation_step",
    ]
    assert not any(Path.cwd().iterdir())


class WithRate(Classifier):
    """Its learning rate can be set from without."""

    def __init__(self):
        super().__init__()
        self.lr = 1e-9

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def test_auto_lr_find_sets_the_learning_rate_before_training():
    pytest.importorskip("camshaft.contrib.lightning.tuner", reason="the tuner is not there")
    model = WithRate()
    trainer = pl.Trainer(max_epochs=1, auto_lr_find=True, **QUIET)
    trainer.fit(model)
    assert model.lr > 1e-9
    assert trainer.global_step == 4


def test_callbacks_are_told_of_the_moments_by_their_names_of_then():
    calls = []

    class Count(pl.Callback):
        def on_epoch_start(self, trainer, pl_module):
            calls.append("on_epoch_start")

        def on_batch_end(self, trainer, pl_module):
            calls.append("on_batch_end")

        def on_train_end(self, trainer, pl_module):
            calls.append("on_train_end")

    pl.Trainer(max_epochs=1, callbacks=[Count()], **QUIET).fit(Classifier())
    assert calls == ["on_epoch_start", *["on_batch_end"] * 4, "on_train_end"]


# Command lines


def test_a_trainer_is_made_from_the_arguments_of_a_command_line():
    parser = ArgumentParser()
    parser.add_argument("--width", type=int, default=3)
    parser = pl.Trainer.add_argparse_args(parser)
    args = parser.parse_args(["--max_epochs", "2", "--gpus", "0", "--train_percent_check", "0.5", "--width", "4"])
    trainer = pl.Trainer.from_argparse_args(args, **QUIET)
    trainer.fit(Classifier())
    assert (trainer.current_epoch, trainer.num_training_batches, args.width) == (2, 2, 4)


def test_the_arguments_of_a_trainer_are_known_by_name_type_and_default():
    known = {name: (kinds, default) for name, kinds, default in pl.Trainer.get_init_arguments_and_types()}
    assert known["max_epochs"] == ((int,), None)
    assert known["gpus"] == ((int, str, list), None)
    assert known["fast_dev_run"] == ((bool, int), False)


# Several processes


PROGRAM = """
import json, os, sys
sys.path.insert(0, {folder!r})
import torch
from test_seed import QUIET, Classifier
import camshaft.contrib.lightning as pl

class Shared(Classifier):
    def prepare_data(self):
        super().prepare_data()
        self.assigned = os.getpid()

    def training_step_end(self, output):
        self.ended = True
        return output

model = Shared()
trainer = pl.Trainer(max_epochs=2, num_processes=2, distributed_backend="ddp_cpu", **QUIET)
trainer.fit(model)
result = {{
    "world": trainer.world_size,
    "assigned": model.assigned == os.getpid(),
    "ended": model.ended,
    "batches": trainer.num_training_batches,
    "validated": sorted(name for name in trainer.callback_metrics if "val" in name),
    "weights": [float(parameter.detach().double().sum()) for parameter in model.parameters()],
}}
with open(f"rank{{trainer.global_rank}}.json", "w") as file:
    json.dump(result, file)
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of the two processes of a program with `num_processes=2` found."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "program.py").write_text(PROGRAM.format(folder=str(Path(__file__).parent)))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    ended = subprocess.run(
        [sys.executable, "program.py"], check=False, cwd=folder, env=environment, capture_output=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_distributed_backend_trains_on_as_many_processes_as_num_processes(two_processes):
    assert [found["world"] for found in two_processes] == [2, 2]


def test_what_prepare_data_assigns_is_there_on_every_process(two_processes):
    assert all(found["assigned"] for found in two_processes)


def test_the_processes_share_the_batches_and_have_the_same_weights(two_processes):
    assert [found["batches"] for found in two_processes] == [2, 2]
    assert two_processes[0]["weights"] == two_processes[1]["weights"]


def test_every_process_validates(two_processes):
    assert [found["validated"] for found in two_processes] == [["avg_val_loss", "val_loss"]] * 2


def test_training_step_end_is_called_on_every_process(two_processes):
    assert all(found["ended"] for found in two_processes)


# Names


def test_the_modules_that_programs_of_then_import_from_are_there():
    program = """
from camshaft.contrib.lightning import Callback, LightningModule, Trainer, data_loader, seed_everything
from camshaft.contrib.lightning.callbacks import EarlyStopping, ModelCheckpoint
from camshaft.contrib.lightning.core import LightningModule
from camshaft.contrib.lightning.core.decorators import data_loader
from camshaft.contrib.lightning.core.lightning import LightningModule
from camshaft.contrib.lightning.loggers import CometLogger, MLFlowLogger, NeptuneLogger, TensorBoardLogger, WandbLogger
from camshaft.contrib.lightning.logging import TensorBoardLogger
from camshaft.contrib.lightning.profiler import AdvancedProfiler, SimpleProfiler
from camshaft.contrib.lightning.trainer import Trainer
from camshaft.contrib.lightning.utilities.debugging import MisconfigurationException
"""
    exec(program, {})
