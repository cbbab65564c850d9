"""Whether more or less of something is better, by its name; without torch, so that the command line can ask, too."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["best_is", "more_is_better"]

# What is called by the first should become more, unless by the second, too. Short names count only as whole words.
_MORE_IS_BETTER = re.compile(
    r"acc(?!um)|auc|auroc|auprc|f1|precision|recall|sensitivity|specificity|map(?!e|p)|ndcg|mrr|iou(?!s)|dice(?!s)"
    r"|jaccard|kappa|matthews|exact_match|bleu|rouge|meteor|chrf|cider|psnr|ssim|snr|score|r2|correlation|pearson"
    r"|spearman|elbo|likelihood|log_?lik|log_?prob|reward|returns?(?![a-z])|win_rate|success"
    r"|(?<![a-z])(?:ap|ll|mcc)(?![a-z])"
)
_LESS_IS_BETTER = re.compile(
    r"loss|error|distance|divergence|perplexity|nelbo|neg(?:ative)?_(?:elbo|likelihood|log)|nll|cross_?entropy|mse|mape"
    r"|brier|regret|cost|lpips|hausdorff|bits"
    r"|(?<![a-z])(?:mae|err|ce|bce|kl|kld|wer|cer|fid|kid|ece|ppl|bpb|bpc|bpd)(?![a-z])"
)


def best_is(name: str) -> Literal["max", "min"] | None:
    """Which of the values of that name is the best, the largest or the smallest, or None if the name does not tell.

    Example:
        >>> best_is("val_elbo"), best_is("val_loss"), best_is("precision_loss"), best_is("temperature")
        ('max', 'min', 'min', None)
    """
    name = name.lower()
    if _LESS_IS_BETTER.search(name):
        return "min"
    return "max" if _MORE_IS_BETTER.search(name) else None


def more_is_better(name: str) -> bool:
    """Whether the best of what has this name is its maximum; what its name does not tell should become less.

    Example:
        >>> more_is_better("val_accuracy"), more_is_better("val_loss"), more_is_better("temperature")
        (True, False, False)
    """
    return best_is(name) == "max"
