"""Each notebook runs from top to bottom, and what is kept below its cells is what they give.

What a cell with the tag ``exact`` prints is the same everywhere. Of the others the kinds of the outputs are compared:
losses differ between processors in their last digits, and times always do. `make notebooks` keeps the outputs anew.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

from tests.notebooks.executing import NOTEBOOKS, execute, outputs_of

# What must stand in no output that is kept, and why.
UNWANTED = {
    "an absolute path": re.compile(r"(?<![\w:/.)\]<])/\w[\w.-]*/\w"),
    "an address in memory": re.compile(r"\b0x[0-9a-f]{6,}"),
    "a traceback": re.compile(r"Traceback \(most recent call last\)"),
    "a warning": re.compile(r"\w*Warning\b"),
}
WIDEST = 820  # pixels of a figure

of_each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.mark.slow
@of_each_notebook
def test_it_runs_and_gives_what_is_kept_in_it(path: Path, tmp_path: Path) -> None:
    kept, executed = outputs_of(read(path)), outputs_of(execute(path, tmp_path))
    assert [kinds(outputs) for _, outputs in executed] == [kinds(outputs) for _, outputs in kept]
    for (cell, before), (_, after) in zip(kept, executed, strict=True):
        if "exact" in cell.metadata.get("tags", []):
            assert text(after) == text(before), cell.source


@of_each_notebook
def test_nothing_is_kept_that_no_reader_should_see(path: Path) -> None:
    found = [
        f"{what} in {cell.id}: {match[0]!r}"
        for cell, outputs in outputs_of(read(path))
        for what, pattern in UNWANTED.items()
        if (match := pattern.search(text(outputs)))
    ]
    assert not found


@of_each_notebook
def test_it_is_kept_after_one_execution_without_errors(path: Path) -> None:
    cells = outputs_of(read(path))
    assert [cell.execution_count for cell, _ in cells] == list(range(1, len(cells) + 1))
    kinds_kept = [kind for _, outputs in cells for kind in kinds(outputs)]
    assert not [kind for kind in kinds_kept if kind[0] == "error" or "stderr" in kind]


@of_each_notebook
def test_it_shows_figures_that_fit_a_page(path: Path) -> None:
    widths = [width(figure) for _, outputs in outputs_of(read(path)) for figure in figures(outputs)]
    assert widths
    assert max(widths) <= WIDEST


@of_each_notebook
def test_it_has_one_title_in_its_first_cell(path: Path) -> None:
    headings = [
        (number, line)
        for number, cell in enumerate(read(path).cells)
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("# ")
    ]
    assert [number for number, _ in headings] == [0], headings


@of_each_notebook
def test_its_links_lead_to_files_that_are_there(path: Path) -> None:
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", prose) if "://" not in target]
    assert not [target for target in targets if not (path.parent / target).is_file()]


@of_each_notebook
def test_another_execution_would_change_nothing_but_outputs(path: Path) -> None:
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    assert [cell.id for cell in notebook.cells] == [f"cell-{number}" for number in range(1, len(notebook.cells) + 1)]
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def kinds(outputs: list[NotebookNode]) -> list[tuple[str, ...]]:
    """Of each output: text, and on which stream, or in which forms a result is shown."""
    return [(output.output_type, output.get("name", ""), *sorted(output.get("data", {}))) for output in outputs]


def text(outputs: list[NotebookNode]) -> str:
    """All that is printed or shown as text."""
    return "".join(
        output.get("text", "") + "".join(shown for form, shown in forms(output) if form.startswith("text/"))
        for output in outputs
    )


def figures(outputs: list[NotebookNode]) -> list[bytes]:
    return [base64.b64decode(shown) for output in outputs for form, shown in forms(output) if form == "image/png"]


def forms(output: NotebookNode) -> list[tuple[str, Any]]:
    return list(output.get("data", {}).items())


def width(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big")
