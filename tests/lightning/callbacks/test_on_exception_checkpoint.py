"""A checkpoint that an exception leaves."""

import pytest
import torch

from camshaft.contrib.lightning.callbacks import LambdaCallback, OnExceptionCheckpoint


def fail(trainer, module, outputs, batch, batch_idx):
    if trainer.global_step == 4:
        raise KeyboardInterrupt


def test_an_exception_leaves_a_checkpoint_with_which_the_run_goes_on(fit, model_class, tmp_path):
    path = tmp_path / "runs" / "failed.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fit(
            model := model_class(),
            OnExceptionCheckpoint(tmp_path / "runs", "failed"),
            LambdaCallback(on_train_batch_end=fail),
        )
    assert torch.load(path, weights_only=True)["global_step"] == 4
    fit(resumed := model_class(), ckpt_path=path)
    fit(whole := model_class())
    assert not torch.equal(model.head.weight, whole.head.weight)
    assert torch.equal(resumed.head.weight, whole.head.weight)


def test_it_is_deleted_when_a_later_fit_succeeds_but_not_by_anything_else(trainer_with, model_class, batches, tmp_path):
    trainer = trainer_with(OnExceptionCheckpoint(tmp_path), failing := LambdaCallback(on_train_batch_end=fail))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(model_class(), batches)
    trainer.callbacks.remove(failing)
    trainer.test(model_class(), batches, verbose=False)
    assert (tmp_path / "on_exception.ckpt").exists()
    trainer.fit(model_class(), batches)
    assert not (tmp_path / "on_exception.ckpt").exists()


def test_an_empty_name_is_refused():
    with pytest.raises(ValueError, match="needs the name of a file"):
        OnExceptionCheckpoint("runs", "")
