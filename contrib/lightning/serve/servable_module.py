"""A module that says how it answers requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["ServableModule"]


class ServableModule(ABC, nn.Module):
    """Mixed into a ``LightningModule``: how requests become tensors, and tensors answers.

    Example:
        >>> import torch
        >>> class Doubles(ServableModule):
        ...     def configure_payload(self):
        ...         return {"body": {"x": [1, 2]}}
        ...     def configure_serialization(self):
        ...         return {"x": torch.tensor}, {"output": torch.Tensor.tolist}
        ...     def serve_step(self, x):
        ...         return {"output": 2 * x}
        ...     def configure_response(self):
        ...         return {"output": [2, 4]}
        >>> Doubles().serve_step(torch.tensor([1, 2]))
        {'output': tensor([2, 4])}
    """

    @abstractmethod
    def configure_payload(self) -> dict[str, Any]:
        """A request to try: ``{"body": {name: value}}`` with values that JSON can hold."""

    @abstractmethod
    def configure_serialization(self) -> tuple[dict[str, Callable[..., Any]], dict[str, Callable[..., Any]]]:
        """By name, what makes a value of the request an input, and what makes an output a value of the answer."""

    @abstractmethod
    def serve_step(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """The outputs for the inputs."""

    @abstractmethod
    def configure_response(self) -> dict[str, Any]:
        """The answer that the request is to get."""
