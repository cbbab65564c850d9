"""Writing checkpoints in the background, while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["BackgroundWriter"]


class BackgroundWriter:
    """Calls ``write(name, state, metadata)`` in a thread, with a copy of the state as it is now.

    There is one write at a time: a second waits for the first.

    Args:
        write: what writes; an error in it is raised by the next call of any method here.

    Example:
        >>> written = []
        >>> writer = BackgroundWriter(lambda name, state, metadata: written.append((name, state["weight"].clone())))
        >>> weight = torch.zeros(1)
        >>> writer.write("before", {"weight": weight}, {})
        >>> _ = weight.add_(1)
        >>> writer.wait()
        >>> written
        [('before', tensor([0.]))]
    """

    def __init__(self, write: Callable[[str, Mapping[str, Any], Mapping[str, Any]], Any]) -> None:
        self._write = write
        self._copies = _Copies()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="camshaft-checkpoint")
        self._underway: Future[Any] | None = None

    def write(self, name: str, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Copy the state and return; the rest happens in the thread."""
        self.wait()
        self._underway = self._thread.submit(self._write, name, self._copies.of(state), metadata)

    def raise_error(self) -> None:
        """Raise the error of a write that has failed; costs a look when there is none."""
        if self._underway is not None and self._underway.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is under way, or raise the error of what was."""
        underway, self._underway = self._underway, None
        if underway is not None:
            underway.result()


class _Copies:
    """Makes copies of nested states on the CPU, each in the memory of the one before, as far as that fits.

    Tensors that share memory, such as tied weights, share that of their copies, too.
    """

    def __init__(self) -> None:
        self._storages: list[torch.UntypedStorage] = []

    def of(self, state: Mapping[str, Any]) -> Any:
        """A copy of ``state``; the one before is gone."""
        free: dict[int, list[torch.UntypedStorage]] = {}
        for storage in self._storages:
            free.setdefault(storage.nbytes(), []).append(storage)
        copies: dict[int, torch.UntypedStorage] = {}  # by the address of the original
        copied = _copied(state, copies, free)
        self._storages = list(copies.values())
        return copied


def _copied(value: Any, copies: dict[int, torch.UntypedStorage], free: dict[int, list[torch.UntypedStorage]]) -> Any:
    if isinstance(value, torch.Tensor):
        if not _is_plain(value):
            return value.detach().cpu().clone()
        original = value.untyped_storage()
        if original.data_ptr() not in copies:
            same_size = free.get(original.nbytes())
            copy = same_size.pop() if same_size else _new_storage(original)
            copies[original.data_ptr()] = copy.copy_(original)
        copied = torch.empty(0, dtype=value.dtype)
        return copied.set_(copies[original.data_ptr()], value.storage_offset(), value.shape, value.stride())
    if isinstance(value, dict):
        content = {key: _copied(item, copies, free) for key, item in value.items()}
        if type(value) is dict:
            return content
        made: Any = type(value)(content)
        if hasattr(value, "_metadata"):  # a module's, with the versions of its parts
            made._metadata = value._metadata
        return made
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item, copies, free) for item in value)
    return value


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is its storage, seen by a shape and strides, and nothing more."""
    kind = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    return kind and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def _new_storage(original: torch.UntypedStorage) -> torch.UntypedStorage:
    storage = torch.UntypedStorage(original.nbytes())
    return storage.pin_memory() if original.is_cuda else storage  # which makes later copies several times faster
