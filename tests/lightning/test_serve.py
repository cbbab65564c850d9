"""Modules that answer requests."""

import pytest
import torch

from camshaft.contrib.lightning import Trainer
from camshaft.contrib.lightning.demos.boring_classes import BoringModel
from camshaft.contrib.lightning.serve import ServableModule, ServableModuleValidator
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException


class Servable(BoringModel, ServableModule):
    expected = {"output": [0, 1]}  # noqa: RUF012 - changed by tests on objects of their own

    def configure_payload(self):
        return {"body": {"x": list(range(32))}}

    def configure_serialization(self):
        return {"x": lambda x: torch.tensor(x, dtype=torch.float)}, {"output": torch.Tensor.tolist}

    def serve_step(self, x):
        self.served = x.shape, self.training, torch.is_grad_enabled()
        return {"output": torch.tensor([0, 1])}

    def configure_response(self):
        return self.expected


def fit(module, **options):
    validator = ServableModuleValidator(**options)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(
        accelerator="cpu", max_steps=1, limit_val_batches=0, limit_train_batches=1, callbacks=[validator], **quiet
    ).fit(module)
    return validator


def test_a_module_that_answers_is_told_so():
    module = Servable()
    validator = fit(module)
    assert (validator.successful, validator.resp.json()) == (True, {"output": [0, 1]})
    assert module.served == ((32,), False, False)
    assert module.training


def test_another_answer_than_expected_is_refused():
    module = Servable()
    module.expected = {"output": [1, 1]}
    with pytest.raises(
        MisconfigurationException, match=r"answers \{'output': \[0, 1\]\}, but configure_response\(\) says"
    ):
        fit(module)


class Broken(Servable):
    def serve_step(self, x):
        return self.layer(x[:5])


def test_a_module_that_fails_to_answer_is_refused():
    with pytest.raises(MisconfigurationException, match="Broken does not answer its request: RuntimeError"):
        fit(Broken())


def test_a_failure_may_be_let_pass():
    validator = fit(Broken(), exit_on_failure=False)
    assert (validator.successful, validator.resp.status_code) == (False, 500)


def test_a_module_that_cannot_be_served_is_told_what_to_inherit():
    with pytest.raises(TypeError, match="BoringModel cannot be served: let it inherit from ServableModule"):
        fit(BoringModel())


@pytest.mark.parametrize("options", [{"server": "torchserve"}, {"optimization": "trace"}], ids=["server", "trace"])
def test_what_is_not_supported_is_refused(options):
    with pytest.raises(NotImplementedError, match="only optimization=None and server='fastapi'"):
        ServableModuleValidator(**options)
