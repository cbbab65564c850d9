"""What `make notebooks` does to a notebook."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.notebooks.executing import keep

CELLS = (
    "import os\nprint(os.listdir(), os.environ['OMP_NUM_THREADS'])",
    "from pathlib import Path\nPath('written').touch()",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
)


def write(path: Path, *cells: str) -> Path:
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title"), *map(new_code_cell, cells)]), path)
    return path


@pytest.mark.slow
def test_a_second_execution_changes_nothing_and_each_begins_in_an_empty_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "notebook.ipynb", *CELLS)
    keep(path)
    once = path.read_text()
    keep(path)
    assert path.read_text() == once
    assert nbformat.reads(once, as_version=4).cells[1].outputs[0].text == "[] 1\n"
    assert [file.name for file in tmp_path.iterdir()] == ["notebook.ipynb"]


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_notebook_stays_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "notebook.ipynb", "divisor = 0", "1 / divisor")
    before = path.read_text()
    with pytest.raises(CellExecutionError, match=r"1 / divisor(.|\n)*ZeroDivisionError"):
        keep(path)
    assert path.read_text() == before
