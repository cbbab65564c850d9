"""Draws the learning curves of runs from the `metrics.csv` that `CSVLogger` writes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["plot_curves"]

_POSITION = ("iteration", "epoch", "optimizer_step")
_PANEL = (4.0, 3.0)  # inches; two beside each other make 800 pixels
_DOTS_PER_INCH = 100
_FEW_POINTS = 50  # of a curve, below which each is marked


class Part(NamedTuple):
    """A part of the data that a quantity can be measured on."""

    prefix: str  # of the names of its columns
    label: str
    line: str
    marker: str


# The first whose prefix fits.
_PARTS = (
    Part("val_", "validation", "--", "o"),
    Part("test_", "test", "", "*"),
    Part("", "training", "-", "."),
)

Curve = list[tuple[int, float]]  # iterations and values


def plot_curves(runs: Sequence[str | os.PathLike[str]], picture: str | os.PathLike[str]) -> Path:
    """Draw every number that the runs have logged against the iteration, one panel a quantity.

    A quantity and its validation or test share a panel: ``loss``, ``val_loss`` and ``test_loss``. Of several runs each
    has a colour, and the parts of the data differ in their lines.

    Args:
        runs: directories with a ``metrics.csv``, or such files.
        picture: the file to write; its ending chooses the format.

    Returns:
        The path of the picture.

    Raises:
        FileNotFoundError: a run has no ``metrics.csv``.
        ValueError: nothing was logged, or the format is unknown.
        OSError: the picture cannot be written.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> _ = (directory / "metrics.csv").write_text("iteration,epoch,loss,val_loss\\n1,1,0.5,\\n2,1,0.4,0.6\\n")
        >>> plot_curves([directory], directory / "curves.png").name
        'curves.png'
    """
    # Without pyplot, which would choose a backend for the whole process.
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    tables = {label: _read(Path(run)) for label, run in zip(_labels(runs), runs, strict=True)}
    quantities = _quantities(name for table in tables.values() for name in table)
    if not quantities:
        raise ValueError(f"Nothing was logged in {', '.join(map(str, runs))}, so there is nothing to draw.")

    columns = min(2, len(quantities))
    rows = -(-len(quantities) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=len(quantities) % columns == 0)
    for panel, (quantity, names) in zip(panels.flat, quantities.items(), strict=False):
        for index, (run, table) in enumerate(tables.items()):
            for name in names:
                if name not in table:
                    continue
                part = _part_of(name)
                color = f"C{index if len(tables) > 1 else _PARTS[::-1].index(part)}"
                panel.plot(*zip(*table[name], strict=True), color=color, **_style(part, len(table[name])))
                panel.lines[-1].set_label(_label(run, part, one_run=len(tables) == 1, one_part=len(names) == 1))
        panel.set(ylabel=quantity.replace("_", " "), xlabel="iteration")
        panel.tick_params(labelbottom=True)
        panel.grid(alpha=0.3)
        if len(names) * len(tables) > 1:
            panel.legend(fontsize="small").set_in_layout(False)  # a long name takes no room from the curves
    for unused in panels.flat[len(quantities) :]:
        unused.remove()
    figure.savefig(picture, dpi=_DOTS_PER_INCH)
    return Path(picture)


def _quantities(names: Iterable[str]) -> dict[str, list[str]]:
    """The columns of each panel: first those that are measured on several parts of the data."""
    quantities: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        quantities.setdefault(name.removeprefix(_part_of(name).prefix), []).append(name)
    return dict(sorted(quantities.items(), key=lambda item: len(item[1]) == 1))


def _part_of(name: str) -> Part:
    return next(part for part in _PARTS if name.startswith(part.prefix))


def _style(part: Part, points: int) -> Mapping[str, str | float]:
    marker = part.marker if points < _FEW_POINTS or not part.line else ""
    return {"linestyle": part.line, "marker": marker, "markersize": 4 if part.line else 9, "linewidth": 1.2}


def _label(run: str, part: Part, *, one_run: bool, one_part: bool) -> str:
    if one_run:
        return part.label
    return run if one_part else f"{run}, {part.label}"


def _labels(runs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """As many of the last parts of each path as tell them apart; a run that is named twice is drawn once."""
    parts = [Path(run).absolute().parts for run in runs]
    tails = ([str(Path(*path[-length:])) for path in parts] for length in range(1, max(map(len, parts)) + 1))
    return next(names for names in tails if len(set(names)) == len(set(parts)))


def _read(run: Path) -> dict[str, Curve]:
    """The curve of each column."""
    path = run if run.suffix == ".csv" else run / "metrics.csv"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no metrics.csv: attach CSVLogger({str(run)!r}) to the engine that trains.")
    curves: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if name not in _POSITION and cell:
                    curves.setdefault(name, []).append((int(row["iteration"]), float(cell)))
    return curves
