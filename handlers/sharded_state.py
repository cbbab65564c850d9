"""Tensors whose parts lie on several processes (``DTensor``, as FSDP2 makes them), in a checkpoint.

They are written by ``torch.distributed.checkpoint``, each process its parts, into a folder of the checkpoint; in its
other files stands only where they belong. Reading puts them together for any number of processes, also one.
"""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from camshaft.engine.distributed import rank
from camshaft.handlers.checkpoint_store import SHARDS_FOLDER, BrokenCheckpointError, CheckpointStore
from camshaft.handlers.ema import unwrapped

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

__all__ = ["Layouts", "put_back", "read_shards", "read_whole", "sharded_names", "take_out", "write_shards"]

_MARK = "camshaft.sharded"  # {_MARK: name} stands in the place of a sharded tensor

Shards = dict[str, torch.Tensor]


def take_out(state: Any) -> tuple[Any, Shards]:
    """``state`` with marks in the place of sharded tensors, and these by name, such as ``model/0.weight``.

    Example:
        >>> take_out({"model": {"weight": 1}})
        ({'model': {'weight': 1}}, {})
    """
    kind = _sharded_kind()
    shards: Shards = {}
    return (state if kind is None else _taken_out(state, "", kind, shards)), shards


def _taken_out(value: Any, name: str, kind: Any, shards: Shards) -> Any:
    if isinstance(value, kind):
        shards[name] = value
        return {_MARK: name}
    return _rebuilt(value, name, lambda item, inner: _taken_out(item, inner, kind, shards))


def put_back(state: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The reverse of :func:`take_out`.

    Example:
        >>> put_back({"model": {"weight": {"camshaft.sharded": "model/weight"}}}, {"model/weight": torch.ones(1)})
        {'model': {'weight': tensor([1.])}}
    """
    if isinstance(state, Mapping) and list(state) == [_MARK]:
        return tensors[state[_MARK]]
    return _rebuilt(state, "", lambda item, _: put_back(item, tensors))


def sharded_names(state: Any) -> set[str]:
    """The names of all sharded tensors that belong into a state."""
    if isinstance(state, Mapping):
        if list(state) == [_MARK]:
            return {state[_MARK]}
        return set().union(*map(sharded_names, state.values()))
    return set().union(*map(sharded_names, state)) if isinstance(state, (list, tuple)) else set()


def _rebuilt(value: Any, name: str, change: Any) -> Any:
    """A mapping, list or tuple of changed items; anything else as it is."""
    if isinstance(value, Mapping):
        content: Any = {key: change(item, f"{name}/{key}" if name else str(key)) for key, item in value.items()}
        if hasattr(value, "_metadata"):  # a module's, with the versions of its parts
            content = OrderedDict(content)
            content._metadata = value._metadata
        elif type(value) is not dict:
            content = type(value)(content)  # type: ignore[call-arg]
        return content
    if isinstance(value, (list, tuple)):
        return type(value)(change(item, f"{name}/{index}") for index, item in enumerate(value))
    return value


def _sharded_kind() -> Any:
    """``DTensor``, or None as long as nothing can be one: its module takes a second to import."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


# ---------------------------------------------------------------------------------------------------------- layouts


class Layouts:
    """How the tensors of modules and optimizers are sharded just now, and therefore what is loaded into them.

    Args:
        objects: modules, optimizers and others, by name.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._by_name: dict[str, Any] = {}
        self._parameters: dict[str, Any] = {}  # by the names that they have in their modules
        kind = _sharded_kind()
        for name, wrapped in objects.items() if kind is not None else ():
            thing: Any = unwrapped(wrapped)
            if isinstance(thing, torch.nn.Module):
                own = {key: value for key, value in thing.state_dict().items() if isinstance(value, kind)}
                self._parameters.update(own)
                self._by_name.update({f"{name}/{key}": value for key, value in own.items()})
            elif isinstance(thing, torch.optim.Optimizer):
                every = [parameter for group in thing.param_groups for parameter in group["params"]]
                self._by_name.update(
                    {f"{name}/state/{index}": each for index, each in enumerate(every) if isinstance(each, kind)}
                )

    def like(self, name: str, shape: torch.Size) -> Any:
        """The sharded tensor of this shape that a tensor of this name in a checkpoint goes with, or None.

        For the state of an optimizer that is the parameter; for what handlers keep, such as averages, the parameter
        whose name it bears, or else (gradients, which bear none) one of this shape.
        """
        if not self._by_name:
            return None
        candidates = [self._by_name.get(name), self._by_name.get(name.rpartition("/")[0])]
        if "/handlers/" in name:
            candidates.append(self._parameters.get(name.rpartition("/")[2]))
            if "/gradients/" in name:
                candidates += self._by_name.values()
        return next((one for one in candidates if one is not None and one.shape == shape), None)

    def target(self, name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Memory to read a tensor into: sharded where it is to be loaded into something sharded, else whole."""
        like = self.like(name, shape)
        if like is None:
            return torch.empty(shape, dtype=dtype)
        from torch.distributed import tensor  # noqa: PLC0415 - a second

        return tensor.empty(shape, dtype=dtype, device_mesh=like.device_mesh, placements=like.placements)

    def distributed(self, content: dict[str, Any]) -> dict[str, Any]:
        """``content`` with whole tensors cut into shards where they are to be loaded into something sharded."""
        if not self._by_name:
            return content
        changed: dict[str, Any] = self._distributed(content, "")
        return changed

    def _distributed(self, value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            like = None if isinstance(value, _sharded_kind() or ()) else self.like(name, value.shape)
            if like is None:
                return value
            from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - a second

            # Each process has all of it already, so none need send it to the others.
            return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        return _rebuilt(value, name, self._distributed)


# --------------------------------------------------------------------------------------------------- on the disk


def write_shards(store: CheckpointStore, name: str, shards: Shards, group: Any) -> dict[str, Any]:
    """Write this process's part of all sharded tensors; all processes must call it together.

    Returns:
        The entries of the files that this process has written, for the checkpoint's metadata.

    Raises:
        OSError: some process could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415 - a second
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415

    folder = store.writing(name) / SHARDS_FOLDER
    with store.telling(name):
        try:
            save(dict(shards), storage_writer=FileSystemWriter(str(folder)), process_group=group)
        except CheckpointException as failed:  # no Exception; it holds those of the processes
            raise OSError(None, _first_reason([error for error, _ in failed.failures.values()])) from None
    own = [path for path in sorted(folder.iterdir()) if path.name.startswith(f"__{rank()}_")]
    if rank() == 0:
        own.append(folder / ".metadata")
    return {file: entry for path in own for file, entry in store.entry_of(name, path).items()}


def _first_reason(errors: list[Any]) -> str:
    for error in errors:
        cause = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.strerror:
                return cause.strerror
            cause = cause.__cause__ or cause.__context__
    return str(errors[0]).splitlines()[0] if errors else "torch.distributed.checkpoint could not write"


def read_shards(path: Path, names: set[str], layouts: Layouts) -> Shards:
    """Read sharded tensors of a checkpoint, each process what it needs.

    Args:
        path: of the checkpoint.
        names: which.
        layouts: what they are to be loaded into.

    Raises:
        BrokenCheckpointError: they are not there, or the folder holds something else than tensors.
    """
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415 - a second

    metadata = _metadata_of(path)
    missing = sorted(names - set(metadata.state_dict_metadata))
    if missing:
        raise BrokenCheckpointError(f"The checkpoint {path} is broken: {SHARDS_FOLDER} has no {missing[0]!r}.")
    targets: Shards = {}
    for name in sorted(names):
        stored: Any = metadata.state_dict_metadata[name]
        targets[name] = layouts.target(name, stored.size, stored.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it reads what it needs by itself
        load(dict(targets), storage_reader=_reader(path, metadata), no_dist=True)
    return targets


def read_whole(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state with what is sharded put together on this process.

    Args:
        path: of the checkpoint.
        state: of its main file.

    Raises:
        BrokenCheckpointError: the shards cannot be read.
    """
    names = sharded_names(state)
    whole: dict[str, Any] = put_back(state, read_shards(path, names, Layouts({}))) if names else state
    return whole


def _reader(path: Path, metadata: Metadata) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415 - a second
    from torch.distributed.checkpoint.metadata import StorageMeta  # noqa: PLC0415

    class CheckedReader(FileSystemReader):
        """Does not unpickle the folder's metadata again, as torch's would, without restriction."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    return CheckedReader(str(path / SHARDS_FOLDER))


_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}


class _Unpickler(pickle.Unpickler):
    """Makes what describes tensors, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which does not describe a tensor")


def _metadata_of(path: Path) -> Metadata:
    """What the folder says it holds: a pickle, of which nothing is run.

    Raises:
        BrokenCheckpointError: it cannot be read, or holds something else.
    """
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata  # noqa: PLC0415 - a second

    file = path / SHARDS_FOLDER / ".metadata"
    try:
        metadata = _Unpickler(io.BytesIO(file.read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise TypeError(f"it holds {type(metadata).__name__}")
        for name, stored in metadata.state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata):  # of other things torch would unpickle the content
                raise TypeError(f"{name} is not a tensor")
    except Exception as error:
        raise BrokenCheckpointError(f"The checkpoint {path} is broken: {file.name} of its shards: {error}.") from error
    return metadata
