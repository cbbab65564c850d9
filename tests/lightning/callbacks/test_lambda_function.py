"""Callbacks made of functions."""

import inspect

import pytest

from camshaft.contrib.lightning.callbacks import LambdaCallback


def test_its_functions_are_called_at_their_hooks(fit, model_class):
    calls = []
    callback = LambdaCallback(
        on_fit_start=lambda trainer, module: calls.append("fit starts"),
        on_train_batch_end=lambda trainer, module, outputs, batch, batch_idx: calls.append(batch_idx),
    )
    fit(model_class(), callback, max_epochs=1)
    assert calls == ["fit starts", 0, 1, 2]


def test_none_is_no_function(fit, model_class):
    fit(model_class(), LambdaCallback(setup=None), max_epochs=1)


def test_a_hook_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="on_train_batch_ends is none of them"):
        LambdaCallback(on_train_batch_ends=print)


def test_its_signature_names_the_hooks():
    parameters = inspect.signature(LambdaCallback).parameters
    assert {"setup", "on_train_batch_end", "on_before_zero_grad", "on_exception"} <= set(parameters)
