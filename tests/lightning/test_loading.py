"""Modules and data modules from checkpoints: ours, Lightning's, and those of 2020."""

import os
import pickle
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from camshaft.contrib.lightning.datamodule import LightningDataModule
from camshaft.contrib.lightning.hyperparameters import HyperparametersMixin
from camshaft.contrib.lightning.loading import hyperparameters_of_file, load_module, read_checkpoint


class Module(HyperparametersMixin, nn.Module):
    pass


class Network(Module):
    def __init__(self, width, path=None, nested=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)


class Holder(Module):
    def __init__(self, params):
        super().__init__()
        self.save_hyperparameters(params)
        self.layer = nn.Linear(2, params.width)


class Old(Module):
    """As of 2020."""

    def __init__(self, hparams):
        super().__init__()
        self.hparams = hparams
        self.layer = nn.Linear(2, hparams.width)


@pytest.fixture
def saved(tmp_path):
    """Saves a module as a trainer does, and gives the path."""

    def save(module, **entries):
        path = tmp_path / "module.ckpt"
        torch.save({"state_dict": module.state_dict(), **module.hyperparameters_for_checkpoint(), **entries}, path)
        return path

    return save


def test_a_module_comes_back_with_its_hyperparameters_and_weights(saved):
    network = Network(3, path=Path("a") / "b")
    loaded = load_module(Network, saved(network))
    assert loaded.hparams == network.hparams
    assert torch.equal(loaded.layer.weight, network.layer.weight)


def test_nested_hyperparameters_have_attributes_again(saved):
    network = Network(3, nested=Namespace(lr=0.1))
    assert load_module(Network, saved(network)).hparams.nested.lr == 0.1


def test_given_arguments_count_before_the_saved_ones(saved):
    assert load_module(Network, saved(Network(3)), path="other").hparams == {
        "width": 3,
        "path": "other",
        "nested": None,
    }


def test_a_missing_argument_is_asked_for_by_name(saved):
    class More(Network):
        def __init__(self, backbone, width):
            super().__init__(width)

    with pytest.raises(
        TypeError, match=r"More needs 'backbone', which .*module\.ckpt does not keep\. Pass it: .*backbone="
    ):
        load_module(More, saved(Network(3)))


def test_saved_hyperparameters_that_init_does_not_take_are_no_error(saved):
    network = Network(3)
    network.hparams.found_later = 1
    assert load_module(Network, saved(network)).hparams.width == 3


def test_a_given_argument_that_init_does_not_take_is_warned_of(saved):
    with pytest.warns(UserWarning, match="takes no 'widht'"):
        load_module(Network, saved(Network(3)), widht=4)


def test_a_namespace_in_one_argument_comes_back_with_attributes(saved):
    assert load_module(Holder, saved(Holder(Namespace(width=3)))).hparams.width == 3


def test_a_namespace_that_was_assigned_comes_back_as_a_namespace(saved):
    hparams = load_module(Old, saved(Old(Namespace(width=3, lr=0.1)))).hparams
    assert hparams == Namespace(width=3, lr=0.1)


def test_given_values_go_into_the_one_argument_that_holds_them_all(saved):
    assert load_module(Old, saved(Old(Namespace(width=3, lr=0.1))), lr=0.5).hparams.lr == 0.5


def test_checkpoints_of_2020_are_read(tmp_path):
    old = Old(Namespace(width=3))
    content = {"epoch": 0, "state_dict": old.state_dict(), "hparams": {"width": 3}, "hparams_type": "namespace"}
    torch.save(content, tmp_path / "old.ckpt")
    assert load_module(Old, tmp_path / "old.ckpt").hparams == Namespace(width=3)


def test_checkpoints_of_2020_with_a_dictionary_are_read(tmp_path):
    class OfDictionary(Module):
        def __init__(self, hparams):
            super().__init__()
            self.hparams = hparams
            self.layer = nn.Linear(2, hparams["width"])

    content = {"state_dict": OfDictionary({"width": 3}).state_dict(), "hparams": {"width": 3}, "hparams_type": "dict"}
    torch.save(content, tmp_path / "old.ckpt")
    assert load_module(OfDictionary, tmp_path / "old.ckpt").hparams == {"width": 3}


def test_dictionaries_of_lightnings_class_are_read_without_lightning(tmp_path, monkeypatch):
    name = "lightning.fabric.utilities.data"
    kind = type("AttributeDict", (dict,), {"__module__": name})
    with monkeypatch.context() as with_lightning:
        for package in ("lightning", "lightning.fabric", "lightning.fabric.utilities", name):
            module = ModuleType(package)
            module.AttributeDict = kind
            with_lightning.setitem(sys.modules, package, module)
        content = {"state_dict": Network(3).state_dict(), "hyper_parameters": {"width": 3, "nested": kind(lr=0.1)}}
        torch.save(content, tmp_path / "lightning.ckpt")
    assert load_module(Network, tmp_path / "lightning.ckpt").hparams.nested.lr == 0.1


class FromLightning(Module):
    """As that of which Lightning 2.6.6 has written the checkpoint in the folder."""

    def __init__(self, width=3, data=Path("data"), **options):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)


def test_a_checkpoint_of_lightning_itself_is_read():
    loaded = load_module(FromLightning, Path(__file__).parent / "checkpoints" / "lightning-2.6.6.ckpt")
    assert loaded.hparams == {"width": 5, "data": Path("data"), "nested": {"lr": 0.1}}
    assert loaded.hparams.nested.lr == 0.1
    assert loaded.layer.bias.tolist() == pytest.approx(
        [-0.215896, -0.136793, -0.673334, -0.470502, -0.289287], abs=1e-6
    )


def test_ordered_dictionaries_of_weights_stay_what_they_are(saved):
    assert isinstance(read_checkpoint(saved(Network(3)))["state_dict"], OrderedDict)


# strict, and the hooks.


def test_weights_must_fit_unless_told_otherwise(saved):
    path = saved(Network(3), state_dict={"layer.weight": torch.zeros(3, 2), "other": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*layer\.bias"):
        load_module(Network, path)
    with pytest.warns(UserWarning, match="Weights that are in") as warned:
        load_module(Network, path, strict=False)
    assert [str(warning.message).split(": ")[1] for warning in warned] == ["layer.bias.", "other."]


def test_a_module_that_wants_strict_loading_is_not_overruled(saved):
    class Strict(Network):
        strict_loading = _strict_loading = True

    with pytest.raises(ValueError, match=r"contradicts Strict\.strict_loading=True"):
        load_module(Strict, saved(Network(3)), strict=False)


def test_the_module_sees_the_checkpoint_before_its_weights_are_loaded(saved):
    class Watching(Network):
        def on_load_checkpoint(self, checkpoint):
            self.seen = checkpoint["mine"], bool(self.layer.bias.abs().sum() == 0)

    network = Network(3)
    nn.init.zeros_(network.layer.bias)
    assert load_module(Watching, saved(network, mine=1)).seen == (1, False)


def test_layers_that_are_made_late_are_there_when_weights_are_loaded(saved):
    class Late(Module):
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters()

        def configure_model(self):
            self.layer = nn.Linear(2, self.hparams.width)

    assert load_module(Late, saved(Network(3))).layer.out_features == 3


# Files of hyperparameters.


@pytest.mark.parametrize(
    ("name", "text"),
    [("h.yaml", "width: 3\npath: p\n"), ("h.csv", "key,value\nwidth,3\npath,p\n")],
    ids=["yaml", "csv"],
)
def test_a_file_of_hyperparameters_counts_instead_of_the_checkpoints(saved, tmp_path, name, text):
    pytest.importorskip("yaml", reason="comes with jsonargparse")
    (tmp_path / name).write_text(text)
    loaded = load_module(Network, saved(Network(3), hyper_parameters={"width": 7}), hparams_file=tmp_path / name)
    assert loaded.hparams == {"width": 3, "path": "p", "nested": None}


def test_tuples_in_files_of_lightning_are_read(tmp_path):
    pytest.importorskip("yaml", reason="comes with jsonargparse")
    (tmp_path / "hparams.yaml").write_text("size: !!python/tuple\n- 2\n- 3\n")
    assert hyperparameters_of_file(tmp_path / "hparams.yaml") == {"size": (2, 3)}


def test_code_in_files_of_hyperparameters_is_not_run(tmp_path):
    yaml = pytest.importorskip("yaml", reason="comes with jsonargparse")
    (tmp_path / "hparams.yaml").write_text("x: !!python/object/apply:os.mkdir [ran]\n")
    with pytest.raises(yaml.YAMLError, match=r"os\.mkdir"):
        hyperparameters_of_file(tmp_path / "hparams.yaml")


def test_another_kind_of_file_is_refused():
    with pytest.raises(ValueError, match=r"\.yaml, \.yml and \.csv"):
        hyperparameters_of_file("hparams.json")


# Safety.


class _RunsWhenRead:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("weights_only", [None, True, False], ids=str)
def test_code_in_a_file_is_never_run(tmp_path, monkeypatch, weights_only):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": {"width": _RunsWhenRead()}}, "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt holds more than values.*GLOBAL \w+\.mkdir"):
        load_module(Network, "evil.ckpt", weights_only=weights_only)
    assert not (tmp_path / "ran").exists()


def test_a_class_that_the_user_trusts_is_read(saved):
    path = saved(Network(3), trusted=nn.ReLU)
    with pytest.raises(ValueError, match=r"GLOBAL torch\.nn\.modules\.activation\.ReLU"):
        load_module(Network, path)
    with torch.serialization.safe_globals([nn.ReLU]):
        assert load_module(Network, path).hparams.width == 3


@pytest.mark.parametrize(
    "argument",
    [{"class_path": "antigravity.fly"}, {"class_path": "subprocess.Popen"}, [{"x": "os.system"}], "builtins.eval"],
    ids=["not imported", "python's class", "python's function", "builtin"],
)
def test_a_configuration_can_neither_import_anything_nor_ask_for_what_is_pythons(saved, argument):
    path = saved(
        Network(3),
        hyper_parameters={"_instantiator": "lightning.pytorch.cli.instantiate_module", "width": 3, "nested": argument},
    )
    with pytest.raises(ValueError, match=r"asks for '\w+\.\w+', which may be no class of a model"):
        load_module(Network, path)


def test_another_maker_of_modules_is_not_run(saved):
    path = saved(Network(3), hyper_parameters={"_instantiator": "os.system", "width": 3})
    with pytest.raises(ValueError, match=r"made by 'os\.system', which is not known and not run"):
        load_module(Network, path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9], ids=str)
def test_a_damaged_file_is_told_as_such(saved, kept):
    path = saved(Network(3))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"module\.ckpt is damaged or no checkpoint"):
        load_module(Network, path)


def test_a_flipped_bit_is_noticed(saved):
    path = saved(Network(3))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        weights = archive.read(next(name for name in archive.namelist() if "/data/" in name))
    content[content.find(weights)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"module\.ckpt is damaged"):
        load_module(Network, path)


def test_a_file_that_is_not_there_is_told_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_module(Network, tmp_path / "none.ckpt")


def test_a_file_without_weights_is_no_checkpoint_of_a_module(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="no 'state_dict' but 'epoch'"):
        load_module(Network, tmp_path / "odd.ckpt")


def test_a_file_of_something_else_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        read_checkpoint(tmp_path / "odd.ckpt")


def test_a_pickle_that_torch_did_not_write_is_no_checkpoint(tmp_path):
    (tmp_path / "odd.ckpt").write_bytes(pickle.dumps({"state_dict": {}}, protocol=2))
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        read_checkpoint(tmp_path / "odd.ckpt")


def test_an_open_file_is_read(saved):
    with saved(Network(3)).open("rb") as file:
        assert load_module(Network, file).hparams.width == 3


# Data modules.


class Data(LightningDataModule):
    def __init__(self, batch_size, seen=0):
        super().__init__()
        self.save_hyperparameters()
        self.seen = seen

    def load_state_dict(self, state_dict):
        self.seen = state_dict["seen"]


def test_a_data_module_comes_back_with_its_hyperparameters_and_state(tmp_path):
    content = {**Data(4).hyperparameters_for_checkpoint(), "Data": {"seen": 7}, "hyper_parameters": {"batch_size": 9}}
    torch.save(content, tmp_path / "data.ckpt")
    loaded = Data.load_from_checkpoint(tmp_path / "data.ckpt")
    assert (loaded.hparams, loaded.seen) == ({"batch_size": 4, "seen": 0}, 7)


def test_a_data_module_is_read_from_a_checkpoint_of_lightning_itself():
    class Numbers(Data):
        def __init__(self, batch_size):
            super().__init__(batch_size)

    Numbers.__qualname__ = "Numbers"
    loaded = Numbers.load_from_checkpoint(Path(__file__).parent / "checkpoints" / "lightning-2.6.6.ckpt")
    assert (loaded.hparams.batch_size, loaded.seen) == (2, 4)


def test_loading_on_an_object_is_refused_as_its_result_would_be_lost(tmp_path):
    with pytest.raises(TypeError, match=r"loaded = Data\.load_from_checkpoint"):
        Data(4).load_from_checkpoint(tmp_path / "data.ckpt")
