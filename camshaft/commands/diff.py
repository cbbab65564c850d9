"""`camshaft diff`: where two checkpoints differ, to the bit."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camshaft.commands.run_directory import state_of
from camshaft.handlers.checkpoint_store import CheckpointStore

if TYPE_CHECKING:
    import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two checkpoints and what to leave out."""
    for name in ("a", "b"):
        parser.add_argument(
            name, metavar=name.upper(), type=Path, help="a checkpoint's directory, or a run's for its newest whole one"
        )
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out the entries of such a name, as in --ignore 'camshaft/handlers/TimeLimit/*'; can be repeated",
    )
    parser.epilog = "The status is 0 if they are equal and 1 if they differ."


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each entry that differs; return 0 if none does, else 1."""
    (path_a, state_a), (path_b, state_b) = state_of(arguments.a), state_of(arguments.b)
    print(f"A  {path_a}\nB  {path_b}")
    a, b = (
        dict(_entries({**state, **_states_of_other_ranks(path)}))
        for path, state in ((path_a, state_a), (path_b, state_b))
    )
    names = [
        name for name in dict.fromkeys([*a, *b]) if not any(fnmatchcase(name, pattern) for pattern in arguments.ignore)
    ]
    differing = 0
    for name in names:
        if name not in a or name not in b:
            difference: str | None = f"only in {'A' if name in a else 'B'}"
        else:
            difference = _difference(a[name], b[name])
        if difference is not None:
            print(f"{name}: {difference}")
            differing += 1
    print(f"{differing} of {len(names)} entries differ" if differing else f"equal: {len(names)} entries")
    return int(differing > 0)


def _states_of_other_ranks(path: Path) -> dict[str, Any]:
    """What each rank but the first had of its own, where several processes have saved."""
    store = CheckpointStore(path.parent)
    return {file.stem: store.load(path, file.name) for file in sorted(path.glob("rank-*.pt"))}


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and plain values of a state with their names, ``optimizer/param_groups/0/lr``."""
    if isinstance(value, Mapping) and value:
        items: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, (list, tuple)) and value:
        items = iter(enumerate(value))
    else:
        yield name, value
        return
    for key, item in items:
        yield from _entries(item, f"{name}/{key}" if name else str(key))


def _difference(a: Any, b: Any) -> str | None:
    """How two entries differ, or None if they are equal to the bit."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return _difference_of_tensors(a, b)
    same = type(a) is type(b) and (a == b or repr(a) == repr(b) == "nan")
    return None if same else f"{_shown(a)} in A, {_shown(b)} in B"


def _difference_of_tensors(a: torch.Tensor, b: torch.Tensor) -> str | None:
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{_shown(a)} in A, {_shown(b)} in B"
    different = _bytes_of_elements(a).ne(_bytes_of_elements(b)).any(dim=1)  # (elements,)
    count = int(different.sum())
    if not count:
        return None
    of = f"{count} of {a.numel()} elements differ"
    precise = torch.complex128 if a.is_complex() else torch.float64
    pairs = (tensor.reshape(-1)[different].to(precise) for tensor in (a, b))
    distances = torch.sub(*pairs).abs()
    distances = distances[~distances.isnan()]
    return f"{of}, by at most {distances.max().item():.3g}" if len(distances) else f"{of}, by NaN"


def _bytes_of_elements(tensor: torch.Tensor) -> torch.Tensor:
    """As bytes, so that 0.0 and -0.0 differ, and a NaN is equal to itself."""
    import torch

    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)  # (elements, bytes of an element)


def _shown(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
