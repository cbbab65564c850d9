"""Modules compiled by TorchScript."""

import pytest
import torch

from camshaft.contrib.lightning import Trainer
from camshaft.contrib.lightning.demos.boring_classes import BoringModel

# torch says of TorchScript as a whole that it is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*TorchScript")


@pytest.mark.parametrize("fitted", [False, True], ids=["new", "fitted"])
@pytest.mark.parametrize("method", ["script", "trace"])
def test_a_module_is_compiled_with_what_it_needs_to_compute(method, fitted, tmp_path):
    model, example = BoringModel(), torch.ones(3, 32)
    if fitted:
        Trainer(
            accelerator="cpu",
            fast_dev_run=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model)
    model.to_torchscript(tmp_path / "model.pt", method=method, example_inputs=example)
    assert torch.equal(torch.jit.load(tmp_path / "model.pt")(example), model(example))
