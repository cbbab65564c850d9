"""A summary lists the layers of a model, and leaves the model as it was."""

import pytest
import torch
from torch import nn

import camshaft
from camshaft.model_summary import summary


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 10))


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.zeros(2, 1, 8, 8)


def test_each_layer_has_its_type_its_output_shape_and_its_parameters(model: nn.Module, batch: torch.Tensor) -> None:
    rows = [(layer.name, layer.kind, layer.output_shape, layer.parameters) for layer in summary(model, batch).layers]
    assert rows == [
        ("", "Sequential", [2, 10], 40 + 8 + 1450),
        ("0", "Conv2d", [2, 4, 6, 6], 40),
        ("1", "BatchNorm2d", [2, 4, 6, 6], 8),
        ("2", "Dropout", [2, 4, 6, 6], 0),
        ("3", "Flatten", [2, 144], 0),
        ("4", "Linear", [2, 10], 1450),
    ]


def test_a_multiplication_and_an_addition_are_two_operations(model: nn.Module, batch: torch.Tensor) -> None:
    flops = {layer.name: layer.flops for layer in summary(model, batch).layers}
    convolution, linear = 2 * (2 * 4 * 36) * 9, 2 * 2 * 144 * 10
    assert (flops["0"], flops["4"], flops[""]) == (convolution, linear, convolution + linear)


def test_frozen_parameters_are_told_apart(model: nn.Module, batch: torch.Tensor) -> None:
    model[4].requires_grad_(False)
    shown = summary(model, batch)
    assert [layer.trained for layer in shown.layers if layer.name in ("", "4")] == [48, 0]
    assert "1.4 K (frozen)" in str(shown)
    assert "1,498 parameters, 48 of them trained" in str(shown)


def test_modes_weights_statistics_and_generators_are_as_before(model: nn.Module, batch: torch.Tensor) -> None:
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, generator = [module.training for module in model.modules()], torch.get_rng_state()
    summary(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(not module._forward_hooks for module in model.modules())


def test_a_model_that_fails_keeps_no_hook_and_its_mode(model: nn.Module) -> None:
    with pytest.raises(RuntimeError):
        summary(model, torch.zeros(2, 3, 8, 8))
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "batch", [(torch.zeros(3, 2), torch.ones(3, 2)), {"x": torch.zeros(3, 2), "y": torch.ones(3, 2)}], ids=type
)
def test_a_batch_may_be_positional_or_named_arguments(batch: object) -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": x + y}

    (layer,) = summary(Sum(), batch).layers
    assert layer.input_shape == [[3, 2], [3, 2]]


def test_a_layer_that_is_not_called_has_no_shape() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    model.forward = lambda x: model["used"](x)
    shapes = {layer.name: layer.output_shape for layer in summary(model, torch.zeros(3, 2)).layers}
    assert shapes == {"": [3, 1], "used": [3, 1], "unused": "?"}


def test_the_table_is_as_deep_as_asked_and_the_layers_are_all_there(batch: torch.Tensor, model: nn.Module) -> None:
    shown = summary(nn.Sequential(model), batch, depth=1)
    assert "Sequential" in str(shown)
    assert "Conv2d" not in str(shown)
    assert len(shown.layers) == 7


def test_a_notebook_shows_a_table(model: nn.Module, batch: torch.Tensor) -> None:
    assert summary(model, batch)._repr_html_().count("<tr>") == 7


def test_a_depth_that_cannot_be_is_refused(model: nn.Module, batch: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="is -1 for all layers, 0 or more, but got -2"):
        summary(model, batch, depth=-2)


def test_it_is_a_public_name_of_the_package() -> None:
    assert camshaft.summary is summary
