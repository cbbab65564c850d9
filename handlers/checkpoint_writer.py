"""Writing checkpoints in the background, while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["BackgroundWriter"]


class BackgroundWriter:
    """Calls ``write(name, state, metadata)`` in a thread, with a copy of the state as it is now.

    The copy stays in memory for the next one, so that only the first costs the making of it. There is one write at a
    time: a second waits for the first.

    Args:
        write: what writes; an error in it is raised by the next call of any method here.

    Example:
        >>> written = []
        >>> writer = BackgroundWriter(lambda name, state, metadata: written.append((name, state)))
        >>> weight = torch.zeros(1)
        >>> writer.write("before", {"weight": weight}, {})
        >>> _ = weight.add_(1)
        >>> writer.wait()
        >>> written
        [('before', {'weight': tensor([0.])})]
    """

    def __init__(self, write: Callable[[str, Mapping[str, Any], Mapping[str, Any]], Any]) -> None:
        self._write = write
        self._copy: dict[str, Any] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="camshaft-checkpoint")
        self._underway: Future[Any] | None = None

    def write(self, name: str, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Copy the state and return; the rest happens in the thread."""
        self.wait()
        self._copy = _copied(state, self._copy)
        self._underway = self._thread.submit(self._write, name, self._copy, metadata)

    def raise_error(self) -> None:
        """Raise the error of a write that has failed; costs a look when there is none."""
        if self._underway is not None and self._underway.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is under way, or raise the error of what was."""
        underway, self._underway = self._underway, None
        if underway is not None:
            underway.result()


def _copied(value: Any, before: Any) -> Any:
    """A deep copy on the CPU, which takes the memory of the copy made before where that fits."""
    if isinstance(value, torch.Tensor):
        if isinstance(before, torch.Tensor) and (before.shape, before.dtype) == (value.shape, value.dtype):
            return before.copy_(value)
        return torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format).copy_(value)
    if isinstance(value, dict):
        before = before if isinstance(before, dict) else {}
        copied = type(value)((key, _copied(item, before.get(key))) for key, item in value.items())
        if hasattr(value, "_metadata"):  # a module's, with the versions of its parts
            copied._metadata = value._metadata  # type: ignore[attr-defined]
        return copied
    if isinstance(value, (list, tuple)):
        if not (isinstance(before, (list, tuple)) and len(before) == len(value)):
            before = [None] * len(value)
        return type(value)(_copied(item, earlier) for item, earlier in zip(value, before, strict=True))
    return value
