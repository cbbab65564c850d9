"""Draws the learning curves of runs from the `metrics.csv` that `CSVLogger` writes."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["plot_curves"]

_POSITION = ("iteration", "epoch", "optimizer_step")
_SMALLEST_PANEL = (4.0, 3.0)  # inches


def plot_curves(runs: Sequence[str | os.PathLike[str]], picture: str | os.PathLike[str]) -> Path:
    """Draw every number that the runs have logged against the iteration, one panel a quantity.

    A quantity and its validation or test share a panel: ``loss``, ``val_loss`` and ``test_loss``.

    Args:
        runs: directories with a ``metrics.csv``, or such files.
        picture: the file to write; its ending chooses the format.

    Returns:
        The path of the picture.

    Raises:
        FileNotFoundError: a run has no ``metrics.csv``.
        ValueError: nothing was logged.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = {Path(run): _read(Path(run)) for run in runs}
    quantities: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        quantities.setdefault(name.removeprefix("val_").removeprefix("test_"), []).append(name)
    if not quantities:
        raise ValueError(f"Nothing was logged in {', '.join(map(str, tables))}, so there is nothing to draw.")

    columns = min(2, len(quantities))
    rows = -(-len(quantities) // columns)
    width, height = _SMALLEST_PANEL
    figure, panels = pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for panel, (quantity, names) in zip(panels.flat, quantities.items(), strict=False):
        for run, table in tables.items():
            for name in names:
                if name in table:
                    label = name if len(tables) == 1 else f"{run.name} {name}"
                    style = {"marker": "o", "markersize": 3} if len(table[name]) < 50 else {}
                    panel.plot(*zip(*table[name], strict=True), label=label, linewidth=1.2, **style)
        panel.set(xlabel="iteration", ylabel=quantity.replace("_", " "))
        panel.grid(alpha=0.3)
        if len(names) * len(tables) > 1:
            panel.legend(fontsize="small")
    for unused in panels.flat[len(quantities) :]:
        unused.remove()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return Path(picture)


def _read(run: Path) -> dict[str, list[tuple[int, float]]]:
    """By column the pairs of iteration and value."""
    path = run if run.suffix == ".csv" else run / "metrics.csv"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no metrics.csv: attach CSVLogger({str(run)!r}) to the engine that trains.")
    curves: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if name not in _POSITION and cell:
                    curves.setdefault(name, []).append((int(row["iteration"]), float(cell)))
    return curves
