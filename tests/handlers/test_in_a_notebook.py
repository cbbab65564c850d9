"""What handlers show below a cell, in a real kernel."""

import nbformat
import pytest

from tests.notebooks.executing import execute, outputs_of

TRAINING = """
from camshaft import Engine, LivePlot, RichProgress
engine = Engine(lambda engine, batch: {{"loss": batch / engine.state.epoch}}).attach({handler})
_ = engine.run([4.0, 2.0], max_epochs=3)
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Those of a cell in which a LivePlot is attached, and of one with a RichProgress."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = [TRAINING.format(handler=handler) for handler in ("LivePlot(every=1)", "RichProgress()")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / "notebook.ipynb")
    return [shown for _, shown in outputs_of(execute(folder / "notebook.ipynb", folder))]


def test_live_plot_shows_one_picture_which_each_epoch_replaces(outputs):
    (picture,) = outputs[0]
    assert picture.output_type == "display_data"
    assert "image/png" in picture.data


def test_rich_progress_has_a_line_for_each_epoch_where_there_are_no_widgets(outputs):
    (lines,) = outputs[1]
    assert lines.name == "stdout"
    assert [line.partition(":")[0] for line in lines.text.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
