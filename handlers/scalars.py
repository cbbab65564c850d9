"""Numbers that lie on devices: fetched all at once, and without waiting where the reader can come back later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["Scalars"]

# Where a copy to the host can go on beside other work, and an event tells when it is done.
_ASYNCHRONOUS = ("cuda", "xpu")


class Scalars:
    """Copies of some numbers on their way to the host: one transfer for each device and type.

    Args:
        values: tensors of one element on any device, and plain numbers.

    Example:
        >>> loss = torch.tensor(0.5)
        >>> scalars = Scalars([loss, 3, torch.ones(1, dtype=torch.int64)])
        >>> loss += 1  # the copy is made already
        >>> scalars.arrived, scalars.numbers()
        (True, [0.5, 3, 1])
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._numbers: list[Any] = [value if isinstance(value, (int, float)) else None for value in values]
        self._copies: list[tuple[list[int], torch.Tensor]] = []
        self._events: list[Any] = []
        alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, value in enumerate(values):
            if isinstance(value, torch.Tensor):
                alike.setdefault((value.device, value.dtype), []).append(index)
            elif self._numbers[index] is None:  # one of NumPy's
                self._numbers[index] = value.item()
        for (device, _), indices in alike.items():
            on_device = torch.stack([values[index].detach().reshape(()) for index in indices])
            asynchronous = device.type in _ASYNCHRONOUS
            self._copies.append((indices, on_device.to("cpu", non_blocking=asynchronous)))
            if asynchronous:
                self._events.append(torch.get_device_module(device).Event())
                self._events[-1].record(torch.get_device_module(device).current_stream(device))

    @property
    def arrived(self) -> bool:
        """Whether :meth:`numbers` would not wait."""
        return all(event.query() for event in self._events)

    def numbers(self) -> list[float]:
        """The numbers, in the order of the values; waits until they have arrived."""
        for event in self._events:
            event.synchronize()
        for indices, copy in self._copies:
            for index, number in zip(indices, copy.tolist(), strict=True):
                self._numbers[index] = number
        return [int(number) if isinstance(number, bool) else number for number in self._numbers]
