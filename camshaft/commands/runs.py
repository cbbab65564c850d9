"""`camshaft runs`: the runs in a directory, with their status, best values, duration and command."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from camshaft.commands import CommandError
from camshaft.commands.run_directory import check_directory
from camshaft.commands.run_overview import RunOverview, duration, mode_of, runs_in

_MOST_VALUES = 4  # columns of best values, unless they are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A directory, and which values to show."""
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path("runs"), help="(default: runs)")
    parser.add_argument(
        "--best",
        metavar="NAME",
        action="append",
        help="show the best of this value, as in --best val_loss; can be repeated (default: the validation's, at most "
        f"{_MOST_VALUES})",
    )
    parser.add_argument("--sort", metavar="NAME", help="sort by the best of this value, the best run first")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each run, and return 0."""
    check_directory(arguments.directory)
    runs = runs_in(arguments.directory)
    if not runs:
        raise CommandError(f"There are no runs in {arguments.directory}.")
    known = list(dict.fromkeys(name for one in runs for name in one.values))
    for name in (*(arguments.best or ()), *([arguments.sort] if arguments.sort else ())):
        if name not in known:
            raise CommandError(f"No run has logged {name!r}. There is: {', '.join(known) or 'nothing'}.")
    names = arguments.best or _most_telling(known)
    if arguments.sort:
        _sort(runs, arguments.sort)
        names = list(dict.fromkeys([arguments.sort, *names]))
    modes = {name: mode_of(name, runs) for name in names}
    headings = [f"{'best' if mode else 'last'} {name}" for name, mode in modes.items()]
    rows = [["run", "status", "epoch", *headings, "duration", "command"]]
    rows += [_row(one, modes, arguments.directory) for one in runs]
    _print_table(rows)
    return 0


def _sort(runs: list[RunOverview], name: str) -> None:
    """By the best of a value, those without it last; by the last of it, the least first, if nobody knows the best."""
    mode = mode_of(name, runs)
    sign = -1 if mode == "max" else 1
    runs.sort(key=lambda one: (name not in one.values, sign * one.values[name].best(mode) if name in one.values else 0))


def _most_telling(names: list[str]) -> list[str]:
    """Those of validations, where there are any, else those of tests, else of training."""
    for prefix in ("val_", "test_", ""):
        telling = [name for name in names if name.startswith(prefix)]
        if telling:
            return telling[:_MOST_VALUES]
    return []


def _row(one: RunOverview, modes: dict[str, str | None], directory: Path) -> list[str]:
    name = str(one.directory.relative_to(directory))
    epochs = one.record.get("run", {}).get("max_epochs")
    epoch = "" if one.epoch is None else f"{one.epoch}/{epochs}" if epochs else str(one.epoch)
    values = [f"{one.values[value].best(mode):.4g}" if value in one.values else "" for value, mode in modes.items()]
    return [str(directory) if name == "." else name, one.status, epoch, *values, duration(one.seconds), one.command]


def _print_table(rows: list[list[str]]) -> None:
    """Words aligned to the left, numbers to the right; in a terminal, a command that is too long is cut."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for row in rows:
        cells = [
            cell.ljust(width) if number < 2 or number == len(row) - 1 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        print(f"{line[: width - 1]}…" if 0 < width < len(line) else line)
