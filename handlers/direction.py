"""Whether more or less of something is better, by its name; without torch, so that the command line can ask, too."""

from __future__ import annotations

import re

__all__ = ["more_is_better"]

# What is called by the first should become more, unless by the second, too; anything else should become less.
_MORE_IS_BETTER = re.compile(
    r"acc(?!um)|auc|auroc|f1|precision|recall|map(?!e)|iou|dice|bleu|rouge|psnr|ssim|score|r2|reward"
)
_LESS_IS_BETTER = re.compile(r"loss|error|distance|divergence|perplexity")


def more_is_better(name: str) -> bool:
    """Whether the best of what has this name is its maximum.

    Example:
        >>> more_is_better("val_accuracy"), more_is_better("val_loss"), more_is_better("precision_loss")
        (True, False, False)
    """
    name = name.lower()
    return bool(_MORE_IS_BETTER.search(name)) and not _LESS_IS_BETTER.search(name)
