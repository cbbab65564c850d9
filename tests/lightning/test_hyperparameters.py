"""What a module keeps of the arguments that it was made with."""

import functools
import threading
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from camshaft.contrib.lightning import Trainer
from camshaft.contrib.lightning.demos.boring_classes import BoringDataModule, BoringModel
from camshaft.contrib.lightning.hyperparameters import HyperparametersMixin, given_hyperparameters
from camshaft.contrib.lightning.utilities.parsing import AttributeDict


class Module(HyperparametersMixin, nn.Module):
    """What a LightningModule is to hyperparameters."""


class Network(Module):
    def __init__(self, width, depth=2, *extra, name="net", **options):
        super().__init__()
        self.save_hyperparameters()


def test_all_arguments_are_kept_with_their_defaults_and_keywords():
    assert Network(8, name="n", dropout=0.1).hparams == {"width": 8, "depth": 2, "name": "n", "dropout": 0.1}


def test_hyperparameters_are_attributes_too():
    network = Network(8)
    network.hparams.width = 9
    assert network.hparams["width"] == network.hparams.width == 9


def test_the_initial_hyperparameters_stay_as_they_were():
    network = Network(8, options_=[1])
    network.hparams.width = 9
    network.hparams.options_.append(2)
    network.hparams_initial["width"] = 10
    assert network.hparams_initial == {"width": 8, "depth": 2, "name": "net", "options_": [1]}


def test_a_missing_hyperparameter_is_told_with_those_that_are_there():
    with pytest.raises(AttributeError, match=r"no hyperparameter 'heigth'; there are: width, depth, name"):
        _ = Network(8).hparams.heigth


def test_named_arguments_only_are_kept():
    class Some(Module):
        def __init__(self, a, b, c):
            super().__init__()
            self.save_hyperparameters("a", "c")

    assert Some(1, 2, 3).hparams == {"a": 1, "c": 3}


def test_a_name_that_is_no_argument_is_refused():
    class Wrong(Module):
        def __init__(self, a):
            super().__init__()
            self.save_hyperparameters("a", "b")

    with pytest.raises(ValueError, match="asked for 'b', but Wrong was made with a"):
        Wrong(1)


@pytest.mark.parametrize("ignore", ["b", ["b"], ("b",)], ids=["name", "list", "tuple"])
def test_ignored_arguments_are_not_kept(ignore):
    class Some(Module):
        def __init__(self, a, b):
            super().__init__()
            self.save_hyperparameters(ignore=ignore)

    assert Some(1, 2).hparams == {"a": 1}


def test_what_a_subclass_ignores_is_forgotten_though_its_base_class_kept_it():
    class Child(Network):
        def __init__(self, width, secret):
            super().__init__(width)
            self.save_hyperparameters(ignore="secret")

    assert "secret" not in Child(8, "s").hparams


def test_a_base_class_keeps_the_arguments_of_its_subclass():
    class Child(Network):
        def __init__(self, width, added=3):
            super().__init__(width * 2)

    assert Child(8).hparams == {"width": 8, "depth": 2, "name": "net", "added": 3}


def test_old_style_calls_of_the_base_class_are_understood():
    class Old(Module):
        def __init__(self, width):
            Module.__init__(self)
            self.save_hyperparameters()

    assert Old(8).hparams == {"width": 8}


def test_a_decorated_init_is_understood():
    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    class Decorated(Module):
        @logged
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters()

    class Child(Decorated):
        def __init__(self, width, added):
            super().__init__(width)

    assert Child(8, 1).hparams == {"width": 8, "added": 1}


def test_a_module_within_another_keeps_its_own_arguments():
    class Outer(Module):
        def __init__(self, width, rate):
            super().__init__()
            self.inner = Network(width + 1)
            self.save_hyperparameters()

    outer = Outer(8, 0.1)
    assert (outer.hparams, outer.inner.hparams.width) == ({"width": 8, "rate": 0.1}, 9)


def test_outside_of_init_there_are_no_arguments_to_keep():
    module = Module()
    with pytest.raises(RuntimeError, match="only while its __init__ runs"):
        module.save_hyperparameters()


def test_a_dictionary_can_be_kept_anywhere():
    module = Module()
    module.save_hyperparameters({"lr": 0.1})
    assert module.hparams.lr == 0.1


def test_the_fields_of_a_dataclass_are_kept():
    @dataclass
    class Settings(HyperparametersMixin):
        width: int
        depth: int = 2

        def __post_init__(self):
            super().__init__()
            self.save_hyperparameters()

    assert Settings(8).hparams == {"width": 8, "depth": 2}


@pytest.mark.parametrize("wrong", [3, 0.5, [1]], ids=["int", "float", "list"])
def test_what_holds_no_hyperparameters_is_refused(wrong):
    with pytest.raises(ValueError, match=r"a dictionary, an argparse\.Namespace"):
        Module().save_hyperparameters(wrong)


def test_names_and_an_object_at_once_are_refused():
    with pytest.raises(ValueError, match="either names of arguments or one object"):
        Module().save_hyperparameters("lr", {"lr": 1})


def test_whether_loggers_get_them_is_kept():
    quiet = Module()
    quiet.save_hyperparameters({"lr": 0.1}, logger=False)
    loud = Module()
    loud.save_hyperparameters({"lr": 0.1})
    assert (quiet._log_hyperparams, loud._log_hyperparams, Module()._log_hyperparams) == (False, True, False)


def test_a_module_as_hyperparameter_is_warned_of():
    class Wrapper(Module):
        def __init__(self, backbone):
            super().__init__()
            self.save_hyperparameters()

    with pytest.warns(UserWarning, match=r"'backbone' is a module.*ignore=\['backbone'\]"):
        wrapper = Wrapper(nn.Linear(1, 1))
    assert wrapper.hparams_initial.backbone is wrapper.hparams.backbone


# As of 2020: the module is given the program's arguments, and assigns them.


class Old(Module):
    def __init__(self, hparams):
        super(Old, self).__init__()  # noqa: UP008 - as it was written then
        self.hparams = hparams
        self.layer = nn.Linear(2, hparams.width)


def test_a_namespace_that_is_assigned_stays_a_namespace():
    hparams = Namespace(width=3)
    assert Old(hparams).hparams is hparams


def test_a_dictionary_that_is_assigned_stays_that_dictionary():
    module, hparams = Module(), {"width": 3}
    module.hparams = hparams
    assert module.hparams is hparams


def test_hyperparameters_may_be_assigned_before_the_base_class_is_made():
    class Early(Module):
        def __init__(self, hparams):
            self.hparams = hparams
            super().__init__()

    assert Early(Namespace(width=3)).hparams.width == 3


def test_assigned_hyperparameters_are_logged():
    module = Old(Namespace(width=3))
    assert (module._log_hyperparams, module.hparams_initial) == (True, {"width": 3})


def test_something_else_cannot_be_assigned():
    with pytest.raises(ValueError, match="but got 3 "):
        Module().hparams = 3


# What goes into checkpoints.


def test_a_checkpoint_holds_the_hyperparameters_under_lightnings_names():
    assert Network(8).hyperparameters_for_checkpoint() == {
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 8, "depth": 2, "name": "net"},
    }


def test_a_module_without_hyperparameters_adds_nothing_to_a_checkpoint():
    assert Module().hyperparameters_for_checkpoint() == {}


def test_a_checkpoint_knows_the_argument_that_held_them_all():
    class Holder(Module):
        def __init__(self, params):
            super().__init__()
            self.save_hyperparameters(params)

    entries = Holder(Namespace(width=3)).hyperparameters_for_checkpoint()
    assert (entries["hparams_name"], entries["hyper_parameters"]) == ("params", {"width": 3})


def test_nested_dictionaries_with_attributes_are_kept_in_a_form_that_is_read_safely():
    module = Module()
    module.save_hyperparameters({"model": AttributeDict(width=3)})
    kept = module.hyperparameters_for_checkpoint()["hyper_parameters"]["model"]
    assert not isinstance(kept, AttributeDict)
    assert kept == {"width": 3}


@pytest.mark.parametrize(
    "value",
    [lambda: 1, nn.ReLU, threading.Lock(), torch.Generator()],
    ids=["function", "class", "lock", "generator"],
)
def test_what_cannot_be_read_again_is_left_out_with_one_warning(value):
    module = Module()
    module.save_hyperparameters({"odd": value, "lr": 0.1})
    with pytest.warns(UserWarning, match=r"'odd' .* is left out of the checkpoint"):
        first = module.hyperparameters_for_checkpoint()
    again = module.hyperparameters_for_checkpoint()
    assert first["hyper_parameters"] == again["hyper_parameters"] == {"lr": 0.1}


def test_a_path_is_kept():
    module = Module()
    module.save_hyperparameters({"data": Path("data")})
    assert module.hyperparameters_for_checkpoint()["hyper_parameters"] == {"data": Path("data")}


def test_a_trainers_checkpoint_makes_module_and_data_again(tmp_path):
    class Learner(BoringModel):
        def __init__(self, width, rate=0.1):
            super().__init__()
            self.save_hyperparameters()

    class Data(BoringDataModule):
        def __init__(self, size):
            super().__init__()
            self.save_hyperparameters()

    trainer = Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Learner(3), datamodule=Data(5))
    trainer.save_checkpoint(tmp_path / "learner.ckpt")
    assert Learner.load_from_checkpoint(tmp_path / "learner.ckpt", rate=0.2).hparams == {"width": 3, "rate": 0.2}
    assert Data.load_from_checkpoint(tmp_path / "learner.ckpt").hparams == {"size": 5}


# What the command line has made a module from counts more than the objects that its __init__ received.


def test_a_given_configuration_is_kept_instead_of_the_arguments():
    with given_hyperparameters(Network, {"width": "eight"}):
        network = Network(8)
    assert network.hparams == {"width": "eight"}


def test_a_given_configuration_is_not_that_of_modules_within():
    class Outer(Module):
        def __init__(self, inner):
            super().__init__()
            self.save_hyperparameters(ignore="inner")
            self.inner = Network(3)

    with given_hyperparameters(Outer, {"inner": {"class_path": "x"}}):
        outer = Outer(None)
    assert outer.inner.hparams.width == 3
