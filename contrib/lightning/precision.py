"""What ``precision=`` means."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch

__all__ = ["Precision", "precision_of"]


class Precision(NamedTuple):
    """A precision.

    Attributes:
        name: as Lightning 2.x writes it, such as ``"16-mixed"``.
        amp: what ``AMP`` is told, or None for none.
        dtype: of the weights, or None for as they are.
    """

    name: str
    amp: Any
    dtype: torch.dtype | None


_KNOWN = {
    "32-true": Precision("32-true", None, None),
    "16-mixed": Precision("16-mixed", "fp16", None),
    "bf16-mixed": Precision("bf16-mixed", "bf16", None),
    "16-true": Precision("16-true", None, torch.float16),
    "bf16-true": Precision("bf16-true", None, torch.bfloat16),
    "64-true": Precision("64-true", None, torch.float64),
}
_SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}


def precision_of(precision: Any, accelerator: str = "cuda") -> Precision:
    """The precision that a flag means.

    Args:
        accelerator: the kind of device; on the CPU ``"16-mixed"`` is ``"bf16-mixed"``, as in Lightning, with a warning.
        precision: ``"32-true"``, ``"16-mixed"``, ``"bf16-mixed"``, ``"16-true"``, ``"bf16-true"``, ``"64-true"``, or in
            short 32, 16, ``"bf16"``, 64; None is ``"32-true"``.

    Raises:
        ValueError: another one.

    Example:
        >>> precision_of(16)
        Precision(name='16-mixed', amp='fp16', dtype=None)
    """
    text = "32-true" if precision is None else str(precision)
    text = _SHORT.get(text, text)
    if text not in _KNOWN:
        raise ValueError(f"Trainer(precision={precision!r}) is not supported: there are {', '.join(_KNOWN)}.")
    if text == "16-mixed" and accelerator == "cpu":
        warnings.warn("Trainer(precision='16-mixed') computes in bf16 on the CPU: it is 'bf16-mixed'.", stacklevel=3)
        text = "bf16-mixed"
    return _KNOWN[text]
