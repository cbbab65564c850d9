"""Which of the values of a name is the best is told by the name, or not at all."""

import pytest

from camshaft.handlers.direction import best_is, more_is_better


@pytest.mark.parametrize(
    "name",
    [
        "val_accuracy", "top5_acc", "AUROC", "mAP50", "val_ap", "mIoU", "dice", "bleu", "rougeL", "psnr", "ssim", "r2",
        "val_elbo", "log_likelihood", "loglik", "log_prob", "reward", "episode_return", "returns/cartpole", "kappa",
    ],
)  # fmt: skip
def test_more_of_these_is_better(name: str) -> None:
    assert best_is(name) == "max"


@pytest.mark.parametrize(
    "name",
    [
        "loss", "val_error", "mape", "rmse", "val_mae", "accumulated_loss", "f1_loss", "perplexity", "elbo_loss",
        "nelbo", "negative_log_likelihood", "neg_elbo", "val_nll", "brier_score", "kl", "wer", "val_bits", "top5_err",
    ],
)  # fmt: skip
def test_less_of_these_is_better(name: str) -> None:
    assert best_is(name) == "min"


@pytest.mark.parametrize("name", ["temperature", "kept", "returned_tokens", "previous", "indices", "feature_mapping"])
def test_of_others_nothing_is_known(name: str) -> None:
    assert best_is(name) is None
    assert not more_is_better(name)
