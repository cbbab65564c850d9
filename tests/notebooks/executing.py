"""Executes notebooks, each from its first cell to its last in a fresh kernel.

    python tests/notebooks/executing.py                             # all; their outputs are kept in them
    python tests/notebooks/executing.py notebooks/1_first_run.ipynb  # one

What is kept is the same each time, as far as a cell's output is: no times, no random identifiers, no versions.
"""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import count
from pathlib import Path
from time import perf_counter

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

__all__ = ["NOTEBOOKS", "execute", "keep", "outputs_of"]

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

_LONGEST_CELL = 200  # seconds, on a machine that does much else

# Of the whole notebook; a kernel would add the versions of this machine.
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, directory: Path) -> NotebookNode:
    """The notebook as it is after an execution in ``directory``, which is empty.

    The kernel is the interpreter that runs this, whatever kernels are installed for this user.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as settings:
        environment = os.environ | {
            "IPYTHONDIR": settings,  # neither this user's settings nor an entry in their history
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "OMP_NUM_THREADS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a debugger that nobody uses here warns otherwise
        }
        # Connected by files: tests at the same time might contend for a port.
        kernel = {"transport": "ipc", "connection_file": f"{settings}/kernel.json"}
        client = NotebookClient(
            notebook,
            timeout=_LONGEST_CELL,
            kernel_manager_class=ThisInterpreter,
            config=Config({ThisInterpreter.__name__: kernel}),
            record_timing=False,
            coalesce_streams=True,  # else where a pause was is where a new output begins
            resources={"metadata": {"path": str(directory)}},
        )
        client.execute(env=environment)
    return _without_what_changes(notebook)


def keep(path: Path) -> float:
    """Execute a notebook and keep its outputs in it.

    Returns:
        Seconds that it took.
    """
    began_at = perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        notebook = execute(path, Path(directory))
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return perf_counter() - began_at


def outputs_of(notebook: NotebookNode) -> list[tuple[NotebookNode, list[NotebookNode]]]:
    """Each code cell, and what stands below it."""
    return [(cell, cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]


class ThisInterpreter(AsyncKernelManager):  # type: ignore[misc]
    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        return [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file, *(extra_arguments or [])]


def _without_what_changes(notebook: NotebookNode) -> NotebookNode:
    notebook.metadata = nbformat.from_dict(_METADATA)
    numbers = count(1)
    for cell in notebook.cells:
        cell.id = f"cell-{next(numbers)}"
        cell.metadata = nbformat.from_dict({"tags": tags} if (tags := cell.metadata.get("tags")) else {})
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else NOTEBOOKS:
        print(f"{path.name}: {keep(path):.1f} s", flush=True)  # noqa: T201
