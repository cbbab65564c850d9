"""How much a computation computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["measure_flops"]


def measure_flops(
    model: nn.Module, forward_fn: Callable[[], Any], loss_fn: Callable[[Any], Tensor] | None = None
) -> int:
    """The floating-point operations of a forward pass, and of the backward pass where there is a loss.

    Args:
        model: accepted, as Lightning has it; what ``forward_fn`` does counts.
        forward_fn: computes the output.
        loss_fn: computes the loss of the output.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 2)
        >>> measure_flops(layer, lambda: layer(torch.ones(3, 4)))
        48
    """
    counter = FlopCounterMode(display=False)
    with counter:
        output = forward_fn()
        if loss_fn is not None:
            loss_fn(output).backward()
    return counter.get_total_flops()
