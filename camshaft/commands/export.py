"""`camshaft export`: the weights in a checkpoint as a safetensors file, which any framework reads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camshaft.commands import CommandError
from camshaft.commands.run_directory import best_of, state_of, store_of

if TYPE_CHECKING:
    import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run, what of it, and where to."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a run, or of one checkpoint")
    parser.add_argument("--to", metavar="FILE", type=Path, required=True, help="the file to write, FILE.safetensors")
    parser.add_argument(
        "--object", metavar="NAME", default="model", help="what Checkpoint knows by this name (default: %(default)s)"
    )
    parser.add_argument("--ema", action="store_true", help="with the averages of its EMA handler as the weights")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="the name of one of RUN's, or newest (default: the best, or else the newest)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file, print where it is, and return 0."""
    if arguments.to.suffix != ".safetensors":
        raise CommandError(f"{arguments.to} does not end in .safetensors, the format that is written.")
    path, state = state_of(_chosen(arguments.run, arguments.checkpoint))
    tensors = _tensors_of(state, arguments.object, path)
    if arguments.ema:
        tensors |= _averages_of(state, tensors, path)
    _write(tensors, arguments.to, {"format": "pt", "checkpoint": path.name, "object": arguments.object})
    size = sum(tensor.numel() for tensor in tensors.values())
    print(f"{arguments.to}: {len(tensors)} tensors, {size:,} numbers, of {path}")
    return 0


def _chosen(run: Path, name: str | None) -> Path:
    """The directory of a checkpoint, or the run itself for its newest."""
    if (run / "metadata.json").exists() and name is None:
        return run
    store = store_of(run)
    if name is None:
        best = best_of(store.list())
        return run if best is None else best.path
    if name == "newest":
        return run
    path = store.directory / name
    if not path.is_dir():
        names = ", ".join(checkpoint.path.name for checkpoint in store.list())
        raise CommandError(f"{run} has no checkpoint {name}; it has {names}.")
    return path


def _tensors_of(state: Mapping[str, Any], name: str, path: Path) -> dict[str, torch.Tensor]:
    import torch

    if name not in state:
        names = ", ".join(key for key in state if key != "camshaft")
        raise CommandError(f"{path} has no {name!r}; it has {names}.")
    others = [key for key, value in state[name].items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CommandError(
            f"{name!r} in {path} is more than tensors by name, which is all that safetensors holds; it has "
            f"{', '.join(map(repr, others))}."
        )
    return dict(state[name])


def _averages_of(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The averages of the EMA handler whose model this is, in the types of the model."""
    for handler, kept in state["camshaft"]["handlers"].items():
        averages: Mapping[str, torch.Tensor] = kept.get("averages", {}) if handler.split("#")[0] == "EMA" else {}
        if averages and all(key in tensors and tensors[key].shape == item.shape for key, item in averages.items()):
            return {key: average.to(tensors[key].dtype) for key, average in averages.items()}
    raise CommandError(f"{path} has no averages of these tensors: no EMA of the model was attached.")


def _write(tensors: Mapping[str, torch.Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Write beside the target and rename, so that it is whole at every instant."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise CommandError("export needs safetensors: pip install 'camshaft[export]'.") from error
    if not target.parent.is_dir():
        raise CommandError(f"{target} could not be written: there is no directory {target.parent}.")
    beside = target.with_name(f".writing-{target.name}")
    try:
        save_file({name: _own(tensor) for name, tensor in tensors.items()}, beside, metadata)
        beside.replace(target)
    except Exception as error:  # its own class of errors, for a full disk as for a missing directory
        raise CommandError(f"{target} could not be written: {error}.") from error
    finally:
        beside.unlink(missing_ok=True)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """In memory of its own: safetensors refuses tied weights, which share theirs."""
    import torch

    return tensor.clone(memory_format=torch.contiguous_format)
