"""The sizes of gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

__all__ = ["grad_norm"]


def grad_norm(module: nn.Module, norm_type: float | str, group_separator: str = "/") -> dict[str, Tensor]:
    """The norm of each parameter's gradient, and that of all gradients as one vector.

    Nothing waits for the device; log it as it is: ``self.log_dict(grad_norm(self, norm_type=2))``.

    Args:
        module: whose parameters; those without a gradient are left out.
        norm_type: the p of the norm, above 0, or ``"inf"``.
        group_separator: between the name of the norm and that of the parameter.

    Raises:
        ValueError: a p that is not above 0.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = (layer.weight.sum() * 3 + layer.bias.sum()).backward()
        >>> norms = grad_norm(layer, 2)
        >>> sorted(norms)
        ['grad_2.0_norm/bias', 'grad_2.0_norm/weight', 'grad_2.0_norm_total']
        >>> norms["grad_2.0_norm_total"].square()
        tensor(19.0000)
    """
    p = float(norm_type)
    if not p > 0:
        raise ValueError(f"grad_norm(norm_type=...) is a number above 0 or 'inf', but got {norm_type!r}.")
    norms = {
        f"grad_{p}_norm{group_separator}{name}": vector_norm(parameter.grad.detach(), p)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        device = next(iter(norms.values())).device
        norms[f"grad_{p}_norm_total"] = vector_norm(torch.stack([norm.to(device) for norm in norms.values()]), p)
    return norms
