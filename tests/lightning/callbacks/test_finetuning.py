"""Which parameters are trained in which epoch, and at which rate."""

import pytest
import torch
from torch import nn

from camshaft.contrib.lightning.callbacks import BackboneFinetuning, BaseFinetuning, LambdaCallback, ModelCheckpoint
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


@pytest.fixture
def rates(fit, model_class):
    """Fits with a callback, and gives the learning rates of the groups of each epoch."""

    def run(callback, **flags):
        seen = []
        look = LambdaCallback(
            on_train_epoch_end=lambda trainer, module: seen.append(
                [pytest.approx(group["lr"]) for group in trainer.optimizers[0].param_groups]
            )
        )
        fit(model_class(schedule=True), callback, look, max_epochs=5, **flags)
        return seen

    return run


def test_the_backbone_stays_as_it_is_until_its_epoch(fit, model_class):
    weights = []
    look = LambdaCallback(
        on_train_epoch_end=lambda trainer, module: weights.append(
            (module.backbone.weight.clone(), module.head.weight.clone())
        )
    )
    fit(model_class(), BackboneFinetuning(unfreeze_backbone_at_epoch=2), look, max_epochs=4)
    backbone, head = zip(*weights, strict=True)
    assert torch.equal(backbone[0], backbone[1])
    assert not torch.equal(backbone[1], backbone[2])
    assert not torch.equal(backbone[2], backbone[3])
    assert not torch.equal(head[0], head[1])


def test_its_rate_grows_until_it_is_that_of_the_rest(rates):
    finetuning = BackboneFinetuning(1, lambda_func=lambda epoch: 5.0, backbone_initial_ratio_lr=0.1)
    assert rates(finetuning) == [[0.09], [0.081, 0.0081], [0.0729, 0.0405], [0.06561] * 2, [0.059049] * 2]


def test_its_rate_may_pass_that_of_the_rest(rates):
    finetuning = BackboneFinetuning(3, lambda_func=lambda epoch: 4.0, backbone_initial_lr=0.05, should_align=False)
    assert rates(finetuning)[-1] == [0.059049, 0.18]


@pytest.mark.parametrize("epochs_before", [1, 2, 3])
def test_a_run_that_is_resumed_ends_in_the_same_bits(fit, model_class, tmp_path, epochs_before):
    def finetuning():
        return BackboneFinetuning(1)

    fit(model_class(), finetuning(), ModelCheckpoint(tmp_path, save_top_k=-1), max_epochs=3)
    path = tmp_path / f"epoch={epochs_before - 1}-step={3 * epochs_before}.ckpt"
    fit(resumed := model_class(), finetuning(), max_epochs=5, ckpt_path=path)
    fit(whole := model_class(), finetuning(), max_epochs=5)
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    assert all(parameter.requires_grad for parameter in resumed.parameters())


def test_its_state_names_the_parameters_as_lightnings_does(fit, model_class, tmp_path):
    fit(model_class(), BackboneFinetuning(1), max_epochs=2).save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["BackboneFinetuning"]
    assert state["previous_backbone_lr"] == pytest.approx(0.01)
    groups = state["internal_optimizer_metadata"][0]
    assert [group["params"] for group in groups] == [["head.weight", "head.bias"], ["backbone.weight", "backbone.bias"]]


def test_a_module_without_a_backbone_is_refused(fit, model_class):
    model = model_class()
    model.backbone_of_another_name, model.backbone = model.backbone, None
    with pytest.raises(MisconfigurationException, match=r"Model has none: assign the part to self\.backbone"):
        fit(model, BackboneFinetuning())


def test_freezing_leaves_batch_normalisation_trainable_unless_told_otherwise():
    part = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    BaseFinetuning.freeze(part)
    assert [parameter.requires_grad for parameter in part.parameters()] == [False, False, True, True]
    BaseFinetuning.freeze(part, train_bn=False)
    assert not any(parameter.requires_grad for parameter in part.parameters())
    assert not part[1].track_running_stats
    BaseFinetuning.make_trainable([part])
    assert all(parameter.requires_grad for parameter in part.parameters())
    assert part[1].track_running_stats


def test_parameters_of_a_module_with_parts_are_found_once():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.layers = nn.ModuleDict({"one": nn.Linear(1, 1)})

    module = Scaled()
    found = list(BaseFinetuning.filter_params(module))
    assert {id(parameter) for parameter in found} == {id(parameter) for parameter in module.parameters()}
    assert len(found) == 3
    assert list(BaseFinetuning.filter_params(module.layers, requires_grad=False)) == []


def test_only_what_an_optimizer_does_not_have_is_added_even_if_the_values_are_equal():
    old, new = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    new.load_state_dict(old.state_dict())
    optimizer = torch.optim.SGD(old.parameters(), lr=0.1)
    BaseFinetuning.unfreeze_and_add_param_group(new, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, pytest.approx(0.01)]
    with pytest.warns(UserWarning, match="The optimizer has 1 of the 1 parameters already"):
        BaseFinetuning.unfreeze_and_add_param_group(old, optimizer)
    assert len(optimizer.param_groups) == 2


def test_what_a_subclass_must_write_is_named(fit, model_class):
    with pytest.raises(NotImplementedError, match="BaseFinetuning has no freeze_before_training"):
        fit(model_class(), BaseFinetuning())
