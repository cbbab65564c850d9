"""Draws the learning curves while the run goes on, in a notebook or into a file; when, says
:mod:`camshaft.handlers.logger`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camshaft.curves import Curves, draw_curves
from camshaft.engine.notebook import notebook_shell
from camshaft.handlers.logger import Logger, Record, check_directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LivePlot"]


class LivePlot(Logger):
    """Shows the curves of ``camshaft plot`` while the run goes on, drawn anew at the end of each epoch.

    In a notebook they are one picture below the cell, which is replaced by the next. Outside of one, name a file, which
    an image viewer or a browser may show; it is whole at every instant. It needs matplotlib. A resumed run goes on with
    the curves that its checkpoint knew.

    Args:
        picture: a file to draw into; its ending chooses the format. Left out, the picture is shown in the notebook.
        every: record what the step returns at each N-th iteration.
        show: called with each figure (matplotlib's) instead.

    Raises:
        ValueError: as :class:`Logger`; when the run starts, if there is no notebook to show anything in.
        OSError: when the run starts, if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from camshaft import Engine
        >>> directory = tempfile.TemporaryDirectory()
        >>> plot = LivePlot(Path(directory.name) / "curves.png", every=1)
        >>> state = Engine(lambda engine, batch: batch / 2).attach(plot).run([1, 2, 3, 4])
        >>> plot.path.exists()
        True
        >>> directory.cleanup()
    """

    writes_in_background = False  # matplotlib draws in one thread at a time, and a notebook shows what the cell's does

    def __init__(
        self,
        picture: str | os.PathLike[str] | None = None,
        *,
        every: int = 50,
        show: Callable[[Figure], object] | None = None,
    ) -> None:
        super().__init__(every=every)
        self.path = None if picture is None else Path(picture)
        self._show = show
        self._curves: Curves = {}
        self._in_notebook: Any = None  # IPython's handle on what is shown

    def check_destination(self) -> None:
        if self._show is None and self.path is None and notebook_shell() is None:
            raise ValueError(
                "LivePlot has nowhere to show its picture: this is no notebook. Name a file, as in "
                "LivePlot('curves.png')."
            )
        if self.path is not None:
            check_directory(self.path.parent, self)

    def open(self, iteration: int) -> None:
        if self.records_written is None:  # of an earlier run of this object, or none
            self._curves = {}
        self._curves = {
            name: kept
            for name, curve in self._curves.items()
            if (kept := [point for point in curve if point[0] <= iteration])
        }

    def write(self, records: list[Record]) -> None:
        for record in records:
            for name, number in record.values.items():
                self._curves.setdefault(name, []).append((record.iteration, number))
        if self._curves:
            self._draw(draw_curves({"run": self._curves}))

    def _draw(self, figure: Figure) -> None:
        if self._show is not None:
            self._show(figure)
        if self.path is not None:
            beside = self.path.with_name(f".drawing-{self.path.name}")
            figure.savefig(beside, dpi=100)
            beside.replace(self.path)
        elif self._show is None:
            png = BytesIO()  # the figure itself is shown as text unless something has imported pyplot
            figure.savefig(png, format="png", dpi=100)
            shown = import_module("IPython.display")  # it is there: this is a notebook
            picture = shown.Image(png.getvalue())
            if self._in_notebook is None:
                self._in_notebook = shown.display(picture, display_id=True)
            else:
                self._in_notebook.update(picture)

    def close(self) -> None:
        self._in_notebook = None  # the next run has a picture of its own

    def state_dict(self) -> dict[str, Any]:
        """The curves, too: nowhere else are the numbers kept."""
        state = super().state_dict()  # which draws what waits
        return {**state, "curves": {name: [list(point) for point in curve] for name, curve in self._curves.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._curves = {
            name: [(int(iteration), value) for iteration, value in curve]
            for name, curve in state_dict["curves"].items()
        }
