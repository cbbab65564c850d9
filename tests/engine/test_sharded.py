"""What needs no second process; tests/handlers/test_fully_sharded.py has the rest."""

import pytest
import torch
from torch import nn

from camshaft.engine.sharded import is_sharded, keep_skeleton, part_here, reshard, sharded_like, whole, whole_copy


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.outer.weight = self.inner.weight


def test_a_tensor_that_is_not_sharded_is_whole_and_here():
    tensor = torch.ones(2)
    assert not is_sharded(tensor)
    assert part_here(tensor) is whole(tensor) is sharded_like(torch.zeros(2), tensor) is tensor


def test_resharding_a_model_that_is_not_sharded_changes_nothing():
    model = Tied()
    weight = model.inner.weight
    reshard(model)
    assert model.inner.weight is weight


class TestWholeCopy:
    @pytest.fixture
    def model(self):
        model = Tied()
        keep_skeleton(model)
        model.norm.running_mean.fill_(3)
        return model

    def copy_of(self, model):
        return whole_copy(model, {**dict(model.named_parameters()), **dict(model.named_buffers())})

    def test_it_has_the_values_it_was_given(self, model):
        copied = self.copy_of(model)
        for name, tensor in model.state_dict().items():
            assert torch.equal(copied.state_dict()[name], tensor), name

    def test_it_shares_no_memory_with_them(self, model):
        copied = self.copy_of(model)
        with torch.no_grad():
            model.inner.weight.fill_(7)
            model.norm.running_mean.fill_(7)
        assert not (copied.inner.weight == 7).any()
        assert not (copied.norm.running_mean == 7).any()

    def test_what_was_tied_is_tied(self, model):
        copied = self.copy_of(model)
        assert copied.outer.weight is copied.inner.weight

    def test_it_predicts_and_does_not_train(self, model):
        copied = self.copy_of(model)
        assert not copied.training
        assert not any(parameter.requires_grad for parameter in copied.parameters())

    def test_each_copy_is_another(self, model):
        assert self.copy_of(model).inner.weight is not self.copy_of(model).inner.weight

    def test_a_model_of_which_no_skeleton_was_kept_is_refused(self):
        with pytest.raises(ValueError, match="A whole copy is made of the model that was given to FullySharded"):
            whole_copy(Tied(), {})
