"""`camshaft checkpoints`: what there is to go on with, and whether it is whole."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from camshaft.commands.run_directory import best_of, directories_of, store_of
from camshaft.handlers.checkpoint_store import BrokenCheckpointError, CheckpointStore, SavedCheckpoint


class Row(NamedTuple):
    """A checkpoint as it is printed."""

    name: str
    iteration: str
    epoch: str
    value: str
    size: str
    state: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a run")
    parser.epilog = "Every byte is compared with its digest. The status is 1 if a checkpoint is broken, else 0."


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each checkpoint, the oldest first; return 1 if one is broken."""
    store = store_of(arguments.run)
    checkpoints = {checkpoint.path: checkpoint for checkpoint in store.list()}
    best = best_of(list(checkpoints.values()))
    monitored = [checkpoint.monitor for checkpoint in checkpoints.values() if checkpoint.monitor]
    rows = [Row("checkpoint", "iteration", "epoch", monitored[-1] if monitored else "", "size", "state")]
    broken = 0
    for path in directories_of(store):
        reason = _what_is_wrong(store, path)
        broken += reason is not None
        checkpoint = checkpoints.get(path)
        notes = [f"broken: {reason}" if reason else "whole"]
        if checkpoint is not None:
            notes += ["best"] * (checkpoint is best) + ["finished"] * checkpoint.finished
            if checkpoint.processes > 1:
                notes.append(f"of {checkpoint.processes} processes")
        rows.append(Row(path.name, *_position(checkpoint), _size(path), ", ".join(notes)))
    _print_table(rows if monitored else [(*row[:3], *row[4:]) for row in rows])
    return int(broken > 0)


def _what_is_wrong(store: CheckpointStore, path: Path) -> str | None:
    try:
        store.verify(path)
    except BrokenCheckpointError as error:
        return str(error).removeprefix(f"The checkpoint {path} is broken: ").removesuffix(".")
    return None


def _position(checkpoint: SavedCheckpoint | None) -> tuple[str, str, str]:
    if checkpoint is None:  # its metadata cannot be read
        return "", "", ""
    value = "" if checkpoint.value is None else f"{checkpoint.value:.6g}"
    return str(checkpoint.iteration), str(checkpoint.epoch), value


def _size(path: Path) -> str:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """The name and the state aligned to the left, the numbers between them to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True))
        print("  ".join([row[0].ljust(widths[0]), *numbers, row[-1]]))
