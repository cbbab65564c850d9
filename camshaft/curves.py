"""Draws the learning curves of runs, from what `CSVLogger`, `JSONLinesLogger` or `TensorBoardLogger` have written."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Curve", "Curves", "draw_curves", "plot_curves", "read_curves"]

_POSITION = ("iteration", "epoch", "optimizer_step", "time", "step")
_PANEL = (4.0, 3.0)  # inches; two beside each other make 800 pixels
_DOTS_PER_INCH = 100
_FEW_POINTS = 50  # of a curve, below which each is marked
_MOST_LINES = 10  # of a panel: as many as there are colours
_WIDE_RANGE = {"norm": 10, "learning_rate": 100}  # from which ratio of the largest value on an axis is logarithmic
_FEW_DECADES = 1000  # the ratio below which a logarithmic axis has more ticks than powers of ten
_CHARACTER, _LINE = 0.075, 0.6  # inches in a legend: of a character, and of the line before a name
_LONGEST_LABEL = 32  # characters of a name in a legend

# What a panel shows, by the end of its quantity's name, and the unit beside it.
_UNITS = {"seconds": "s", "time": "s", "memory": "bytes", "tokens_per_second": "tokens/s"}


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

Curve = list[tuple[int, float]]
"""Iterations and values."""

Curves = dict[str, Curve]
"""The curves of a run, by name."""


def plot_curves(runs: Sequence[str | os.PathLike[str]], picture: str | os.PathLike[str]) -> Path:
    """Draw every number that the runs have logged against the iteration, one panel a quantity.

    A quantity and its validation or test share a panel: ``loss``, ``val_loss`` and ``test_loss``; so do those whose
    names differ behind a slash: ``learning_rate/0`` and ``learning_rate/1``. Of several runs each has a colour, and the
    parts of the data differ in their lines. Gradient norms and learning rates that change by much are drawn on a
    logarithmic axis.

    Args:
        runs: directories with a ``metrics.csv``, a ``metrics.jsonl`` or event files of TensorBoard, or such files.
        picture: the file to write; its ending chooses the format.

    Returns:
        The path of the picture.

    Raises:
        FileNotFoundError: a run has none of these.
        ValueError: nothing was logged, or the format is unknown.
        OSError: the picture cannot be written.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> _ = (directory / "metrics.csv").write_text("iteration,epoch,loss,val_loss\\n1,1,0.5,\\n2,1,0.4,0.6\\n")
        >>> plot_curves([directory], directory / "curves.png").name
        'curves.png'
    """
    tables = {label: read_curves(run) for label, run in zip(_labels(runs), runs, strict=True)}
    if not any(tables.values()):
        raise ValueError(f"Nothing was logged in {', '.join(map(str, runs))}, so there is nothing to draw.")
    draw_curves(tables).savefig(picture, dpi=_DOTS_PER_INCH)
    return Path(picture)


def draw_curves(tables: Mapping[str, Curves]) -> Figure:
    """A figure of the curves of runs, as :func:`plot_curves` describes it; 800 pixels wide at 100 dots per inch.

    Args:
        tables: the curves of each run by its name, at least one.

    Example:
        >>> figure = draw_curves({"run": {"loss": [(1, 0.5), (2, 0.4)], "val_loss": [(2, 0.6)]}})
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['training', 'validation']
    """
    # Without pyplot, which would choose a backend for the whole process.
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    quantities = _quantities(name for table in tables.values() for name in table)
    columns = min(2, len(quantities))
    rows = -(-len(quantities) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=len(quantities) % columns == 0)
    for panel, (quantity, names) in zip(panels.flat, quantities.items(), strict=False):
        _draw(panel, quantity, names, tables)
    for unused in panels.flat[len(quantities) :]:
        unused.remove()
    if len(tables) > 1:
        _explain(figure, list(tables), {_part_of(name) for names in quantities.values() for name in names})
    return figure


def read_curves(run: str | os.PathLike[str]) -> Curves:
    """The curve of each number that a run has logged: from its CSV file, else its JSON lines, else TensorBoard's files.

    Args:
        run: a directory, or such a file.

    Raises:
        FileNotFoundError: there is none of these.
        ValueError: the file is something else.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> _ = (directory / "metrics.jsonl").write_text('{"iteration": 1, "epoch": 1, "loss": 0.5}\\n')
        >>> read_curves(directory)
        {'loss': [(1, 0.5)]}
    """
    run = Path(run)
    readers: dict[str, Callable[[Path], Curves]] = {"csv": _read_csv, "jsonl": _read_json_lines}
    for ending, read in readers.items():
        path = run if run.suffix == f".{ending}" else run / f"metrics.{ending}"
        if path.is_file():
            return read(path)
    events = [run] if run.is_file() and "tfevents" in run.name else _event_files(run)
    if events:
        return _read_tensorboard(events)
    raise FileNotFoundError(
        f"{run} has no metrics.csv, metrics.jsonl or event file of TensorBoard: attach CSVLogger({str(run)!r}) to the "
        "engine that trains."
    )


# ---------------------------------------------------------------------------------------------------- drawing


def _draw(panel: Any, quantity: str, names: Sequence[str], tables: Mapping[str, Curves]) -> None:
    """One panel."""
    one_run = len(tables) == 1
    several = len({_beyond_slash(name) for name in names}) > 1  # groups of parameters, layers
    shown = [name for name in names if not several or _beyond_slash(name)] or list(names)
    left_out = len(shown) - _MOST_LINES
    for index, (run, table) in enumerate(tables.items()):
        for number, name in enumerate(shown[:_MOST_LINES]):
            if name not in table:
                continue
            part = _part_of(name)
            color = index if not one_run else number if several else _PARTS[::-1].index(part)
            panel.plot(*zip(*table[name], strict=True), color=f"C{color}", **_style(part, len(table[name])))
            label = _label(run, part, one_run=one_run, one_part=len(shown) == 1)
            panel.lines[-1].set_label(_beyond_slash(name) if several and one_run else label)
    values = [value for table in tables.values() for name in names for _, value in table.get(name, ())]
    if _is_wide(quantity, values):
        panel.set_yscale("log")
        _name_ticks(panel.yaxis, values)
    unit = next((f" ({unit})" for ending, unit in _UNITS.items() if quantity.endswith(ending)), "")
    parts = {_part_of(name) for name in shown}
    of_part = f"{parts.pop().label} " if len(parts) == 1 and _PARTS[-1] not in parts else ""
    panel.set(ylabel=of_part + quantity.replace("_", " ") + unit, xlabel="iteration")
    if left_out > 0:
        panel.set_title(f"{left_out} more are not drawn", fontsize="small")
    panel.tick_params(labelbottom=True)
    panel.grid(alpha=0.3)
    if one_run and len(shown) > 1:
        # Within the panel: a long name takes no room from the curves.
        panel.legend(fontsize="small", framealpha=0.6).set_in_layout(False)


def _explain(figure: Figure, runs: Sequence[str], parts: set[Part]) -> None:
    """One legend above all panels: a colour for each run, a line for each part of the data."""
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an optional dependency

    handles = [Line2D([], [], color=f"C{index}", label=_shortened(run)) for index, run in enumerate(runs)]
    if len(parts) > 1:
        for part in _PARTS[::-1]:
            if part in parts:
                handles.append(Line2D([], [], color="black", label=part.label))
                handles[-1].update({**_style(part, 1)})
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(figure.get_figwidth() / (_CHARACTER * longest + _LINE)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize="small", frameon=False)


def _quantities(names: Iterable[str]) -> dict[str, list[str]]:
    """The columns of each panel: first those that are measured on several parts of the data."""
    quantities: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        quantity = name.removeprefix(_part_of(name).prefix).partition("/")[0]
        quantities.setdefault(quantity, []).append(name)
    several_parts = {quantity for quantity, of_it in quantities.items() if len({*map(_part_of, of_it)}) > 1}
    return dict(sorted(quantities.items(), key=lambda item: item[0] not in several_parts))


def _part_of(name: str) -> Part:
    return next(part for part in _PARTS if name.startswith(part.prefix))


def _beyond_slash(name: str) -> str:
    return name.partition("/")[2]


def _is_wide(quantity: str, values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows these better: of what is positive and spans orders of magnitude."""
    finite = [value for value in values if math.isfinite(value)]
    ratio = next((ratio for name, ratio in _WIDE_RANGE.items() if name in quantity), math.inf)
    return bool(finite) and min(finite) > 0 and max(finite) >= ratio * min(finite)


def _name_ticks(axis: Any, values: Sequence[float]) -> None:
    """Write plain numbers on a logarithmic axis, unless it spans many powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415 - an optional dependency

    finite = [value for value in values if math.isfinite(value)]
    if max(finite) < _FEW_DECADES * min(finite):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _style(part: Part, points: int) -> Mapping[str, str | float]:
    marker = part.marker if points < _FEW_POINTS or not part.line else ""
    return {"linestyle": part.line, "marker": marker, "markersize": 4 if part.line else 9, "linewidth": 1.2}


def _label(run: str, part: Part, *, one_run: bool, one_part: bool) -> str:
    if one_run:
        return part.label
    return _shortened(run) if one_part else f"{_shortened(run)}, {part.label}"


def _shortened(run: str) -> str:
    """A name that fits into a legend; runs differ in the first part of their paths, or in the last."""
    if len(run) <= _LONGEST_LABEL:
        return run
    return f"{run[: _LONGEST_LABEL // 2 - 1]}…{run[-_LONGEST_LABEL // 2 :]}"


def _labels(runs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """As many of the last parts of each path as tell them apart; a run that is named twice is drawn once."""
    parts = [Path(run).absolute().parts for run in runs]
    tails = ([str(Path(*path[-length:])) for path in parts] for length in range(1, max(map(len, parts)) + 1))
    return next(names for names in tails if len(set(names)) == len(set(parts)))


# ---------------------------------------------------------------------------------------------------- reading


def _read_csv(path: Path) -> Curves:
    curves: Curves = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            position = row.get("iteration") or row.get("step")  # the latter in the files of Lightning's logger
            for name, cell in row.items():
                if position and cell and name not in _POSITION:
                    curves.setdefault(name, []).append((int(position), float(cell)))
    return curves


def _read_json_lines(path: Path) -> Curves:
    curves: Curves = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):  # of a run that was killed as it wrote it
                break
            record = json.loads(line)
            for name, value in record.items():
                if name not in _POSITION:
                    curves.setdefault(name, []).append((record["iteration"], float(value)))
    return curves


def _event_files(run: Path) -> list[Path]:
    """Those of TensorBoard in a run's directory, or in its folder `tensorboard`, in the order of their making."""
    folders = [folder for folder in (run, run / "tensorboard") if folder.is_dir()]
    found = ([path for path in sorted(folder.iterdir()) if "tfevents" in path.name] for folder in folders)
    return next((files for files in found if files), [])


def _read_tensorboard(files: Sequence[Path]) -> Curves:
    """The scalars of event files, without those that a later start of the run has replaced."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415 - takes half a second

    curves: Curves = {}
    for path in files:
        content = path.read_bytes()
        position = 0
        while position + 12 <= len(content):  # a record is a length, its checksum, an event, and its checksum
            begin = position + 12
            position = begin + int.from_bytes(content[position : position + 8], "little") + 4
            if position > len(content):  # of a run that was killed as it wrote it
                break
            event = Event.FromString(content[begin : position - 4])
            if event.session_log.status == SessionLog.START:
                for name, curve in curves.items():
                    curves[name] = [point for point in curve if point[0] < event.step]
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind == "simple_value":
                    number = value.simple_value
                elif kind == "tensor" and len(value.tensor.float_val) == 1:  # as torch.utils.tensorboard may write it
                    number = value.tensor.float_val[0]
                else:
                    continue
                curves.setdefault(value.tag, []).append((event.step, number))
    return curves
