"""Weights that are set to zero and stay there."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from camshaft.contrib.lightning.callbacks import LambdaCallback, ModelCheckpoint, ModelPruning
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


def zeros(model, name="weight"):
    """How many weights are zero, and how many there are."""
    weights = torch.cat([part.flatten() for key, part in model.state_dict().items() if key.endswith(name)])
    return int((weights == 0).sum()), len(weights)


def pruning(**options):
    return ModelPruning(**{"pruning_fn": "l1_unstructured", "use_lottery_ticket_hypothesis": False, **options})


def test_a_share_of_what_is_left_is_pruned_after_each_epoch(fit, model_class):
    fit(model := model_class(), pruning(amount=0.5, parameter_names=["weight"]), max_epochs=2)
    assert zeros(model) == (6, 9)  # 4 of 9, then 2 of 5, both rounded


def test_when_training_has_ended_the_model_has_no_masks(fit, model_class):
    fit(model := model_class(), pruning())
    assert set(model.state_dict()) == {"backbone.weight", "backbone.bias", "head.weight", "head.bias"}
    fit(model := model_class(), pruning(make_pruning_permanent=False))
    assert "head.weight_mask" in model.state_dict()


def test_a_checkpoint_has_pruned_weights_and_no_masks_while_training_goes_on_with_them(fit, model_class, tmp_path):
    masks = []
    look = LambdaCallback(
        on_train_epoch_start=lambda trainer, module: masks.append(hasattr(module.head, "weight_mask"))
    )
    fit(model_class(), pruning(), look, ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    content = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"]
    assert set(content) == {"backbone.weight", "backbone.bias", "head.weight", "head.bias"}
    assert sum(int((weights == 0).sum()) for weights in content.values()) == 6  # of 13, half, rounded
    assert masks == [False, True, True]
    model_class().load_state_dict(content)


def test_what_is_left_gets_its_first_values_back(fit, model_class):
    first = model_class().state_dict()
    fit(model := model_class(), ModelPruning("l1_unstructured", amount=0.3), max_epochs=3)
    for name, weights in model.state_dict().items():
        assert torch.equal(weights[weights != 0], first[name][weights != 0])
    assert zeros(model, "")[0] > 0


def test_what_is_left_can_get_new_values(fit, model_class):
    first = model_class().state_dict()
    fit(model := model_class(), ModelPruning("l1_unstructured", amount=0.3, resample_parameters=True), max_epochs=1)
    left = model.backbone.weight != 0
    assert not torch.equal(model.backbone.weight[left], first["backbone.weight"][left])


def test_functions_of_the_epoch_decide(fit, model_class):
    asked = []

    def amount(epoch):
        asked.append(epoch)
        return 2

    fit(
        model := model_class(),
        pruning(amount=amount, apply_pruning=lambda epoch: epoch == 1, parameter_names=["weight"]),
    )
    assert zeros(model)[0] == 2
    assert asked == [0, 1, 2]


def test_it_can_come_after_validation_but_not_after_the_check_before_training(fit, model_class):
    fit(
        model := model_class(),
        pruning(amount=2, prune_on_train_epoch_end=False, parameter_names=["weight"]),
        max_epochs=1,
        num_sanity_val_steps=1,
    )
    assert zeros(model)[0] == 2


def test_each_parameter_can_be_pruned_on_its_own_and_whole_rows_of_it(fit, model_class):
    model = model_class()
    fit(
        model,
        ModelPruning(
            "ln_structured",
            parameters_to_prune=[(model.backbone, "weight")],
            use_global_unstructured=False,
            amount=1,
            pruning_dim=0,
            pruning_norm=2,
            use_lottery_ticket_hypothesis=False,
        ),
        max_epochs=1,
    )
    assert (model.backbone.weight == 0).all(dim=1).sum() == 1
    assert (model.head.weight != 0).all()


def test_a_method_of_ones_own_can_be_given(fit, model_class):
    class First(prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t, default_mask):
            mask = default_mask.clone()
            mask.view(-1)[0] = 0
            return mask

    fit(model := model_class(), pruning(pruning_fn=First, parameter_names=["weight"]), max_epochs=1)
    assert model.backbone.weight.flatten()[0] == 0
    assert zeros(model)[0] == 1


def test_a_subclass_can_leave_out_parameters(fit, model_class):
    class NotTheHead(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune=()):
            return [(module, name) for module, name in parameters_to_prune if module.out_features > 1]

    fit(model := model_class(), NotTheHead("l1_unstructured", amount=0.9, use_lottery_ticket_hypothesis=False))
    assert (model.head.weight != 0).all()


def test_when_verbose_it_tells_how_much_is_pruned(fit, model_class, caplog):
    with caplog.at_level(logging.INFO):
        fit(model_class(), pruning(amount=2, verbose=2, parameter_names=["weight"]), max_epochs=2)
    told = [record.message for record in caplog.records if record.name.endswith("pruning")]
    assert told[3] == "l1_unstructured pruned 2 -> 4 of 9 weights."
    assert len(told) == 6


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pruning_fn": "l2_unstructured"}, "not 'l2_unstructured'"),
        ({"pruning_fn": prune.L1Unstructured(0.5)}, "the class, not an object"),
        ({"pruning_fn": prune.L1Unstructured, "use_global_unstructured": False}, "needs use_global_unstructured=True"),
        ({"pruning_fn": "random_structured", "pruning_dim": 0}, "pass use_global_unstructured=False"),
        ({"pruning_fn": "random_structured"}, "pruning_dim=0"),
        ({"pruning_fn": "ln_structured", "pruning_dim": 0}, "pruning_norm=1"),
        ({"parameter_names": ["scale"]}, r"not \['scale'\]"),
        ({"amount": "half"}, "not 'half'"),
        ({"verbose": 3}, "0, 1 or 2, not 3"),
    ],
    ids=["function", "object", "local method", "global structure", "dimension", "norm", "names", "amount", "verbose"],
)
def test_arguments_that_make_no_sense_are_refused(options, complaint):
    with pytest.raises(MisconfigurationException, match=complaint):
        pruning(**options)


def test_parameters_that_are_not_the_models_are_refused(fit, model_class):
    with pytest.raises(MisconfigurationException, match="has no 'weight' of Linear"):
        fit(model_class(), pruning(parameters_to_prune=[(nn.Linear(1, 1), "weight")]))
    with pytest.raises(MisconfigurationException, match="a list of pairs"):
        fit(model_class(), pruning(parameters_to_prune=["head.weight"]))
