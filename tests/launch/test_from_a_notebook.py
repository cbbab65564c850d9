"""`camshaft.launch` in a real notebook: one kernel runs the cells below, and the tests read what they gave."""

import base64
import json

import nbformat
import pytest

from tests.notebooks.executing import execute

pytestmark = pytest.mark.distributed

CELLS = [
    """
import functools, json, os, signal, threading, time
import torch, camshaft
from camshaft import Engine, LivePlot

torch.randn(300, 300).mm(torch.randn(300, 300))  # torch's threads, which a fork does not take along

def scaled(factor, number):
    return factor * number + int(os.environ["RANK"])

class Number:
    def __init__(self, value):
        self.value = value

    def __str__(self):
        return f"number {self.value}"

print(json.dumps({
    "function": camshaft.launch(scaled, nproc=2, args=(10, 3)),
    "partial": camshaft.launch(functools.partial(scaled, 10), nproc=2, args=(3,)),
    "closure": camshaft.launch(lambda: scaled(10, 3), nproc=2),
    "argument": camshaft.launch(str, nproc=2, args=(Number(3),)),
}))
""",
    """
camshaft.launch(print, nproc=1, args=(Number(3),));
""",
    """
def train():
    Engine(lambda engine, batch: batch / engine.state.epoch).attach(LivePlot(every=1)).run([4.0, 2.0], max_epochs=2)

camshaft.launch(train, nproc=1);
""",
    """
def waits():
    open("ready", "w").close()
    time.sleep(1000)

def interrupt():
    while not os.path.exists("ready"):
        time.sleep(0.1)
    os.killpg(os.getpgrp(), signal.SIGINT)  # as Jupyter does

threading.Thread(target=interrupt).start()
try:
    camshaft.launch(waits, nproc=1)
except KeyboardInterrupt:
    print("interrupted", camshaft.launch(scaled, nproc=2, args=(1, 1)))
""",
    """
Engine(lambda engine, batch: batch / engine.state.epoch).attach(LivePlot(every=1)).run([4.0, 2.0], max_epochs=2);
""",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[nbformat.NotebookNode]]:
    """What stands below each cell."""
    directory = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    path = directory / "notebook.ipynb"
    nbformat.write(notebook, path)
    return [cell.outputs for cell in execute(path, directory).cells]


@pytest.fixture(scope="module")
def results(outputs: list[list[nbformat.NotebookNode]]) -> dict[str, list[object]]:
    (output,) = outputs[0]
    loaded: dict[str, list[object]] = json.loads(output.text)
    return loaded


@pytest.mark.parametrize("kind", ["function", "partial", "closure"])
def test_what_was_typed_into_a_cell_is_called_on_each_rank(results: dict[str, list[object]], kind: str) -> None:
    assert results[kind] == [30, 31]


def test_an_argument_may_be_of_a_class_that_was_typed_into_a_cell(results: dict[str, list[object]]) -> None:
    assert results["argument"] == ["number 3", "number 3"]


def test_what_a_rank_prints_stands_below_the_cell(outputs: list[list[nbformat.NotebookNode]]) -> None:
    assert [output.text for output in outputs[1]] == ["number 3\n"]


@pytest.mark.parametrize("cell", [2, 4], ids=["on a rank", "in the notebook itself"])
def test_a_live_plot_is_one_picture_below_the_cell(outputs: list[list[nbformat.NotebookNode]], cell: int) -> None:
    (shown,) = outputs[cell]
    assert base64.b64decode(shown.data["image/png"]).startswith(b"\x89PNG")


def test_an_interrupted_cell_ends_the_ranks_and_the_next_launch_works(
    outputs: list[list[nbformat.NotebookNode]],
) -> None:
    assert "interrupted [1, 2]\n" in "".join(output.text for output in outputs[3] if output.name == "stdout")
