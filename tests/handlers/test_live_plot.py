"""The curves are drawn while the run goes on."""

import pytest
from PIL import Image

from camshaft.engine import Engine, Events
from camshaft.handlers import Checkpoint, LivePlot


def step(engine, batch):
    return {"loss": batch / engine.state.epoch}


def curves_of(figure):
    return {line.get_label(): line.get_xydata().tolist() for panel in figure.axes for line in panel.lines}


def test_each_epoch_draws_all_that_was_recorded_until_then(engine_of):
    figures = []
    engine_of(step, LivePlot(every=1, show=figures.append)).run([4.0, 2.0], max_epochs=2)
    assert [curves_of(figure)["training"] for figure in figures] == [
        [[1, 4], [2, 2]],
        [[1, 4], [2, 2], [3, 2], [4, 1]],
    ]


def test_the_picture_is_whole_whenever_somebody_looks(engine_of, tmp_path):
    sizes = []

    def look():
        with Image.open(tmp_path / "curves.png") as picture:
            picture.load()
            sizes.append(picture.width)

    engine = engine_of(step, LivePlot(tmp_path / "curves.png", every=1))
    engine.add_event_handler(Events.EPOCH_STARTED(after=1), look)
    engine.run([4.0, 2.0], max_epochs=2)
    look()
    assert sizes == [400, 400]
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_resumed_run_goes_on_with_the_curves_that_its_checkpoint_knew(tmp_path):
    def train(epochs, figures):
        plot = LivePlot(every=1, show=figures.append)
        Engine(step).attach(plot, Checkpoint(tmp_path)).run([4.0, 2.0], max_epochs=epochs)

    train(1, [])
    resumed: list = []
    train(2, resumed)
    assert curves_of(resumed[-1])["training"] == [[1, 4], [2, 2], [3, 2], [4, 1]]


def test_a_second_run_of_the_engine_begins_anew(engine_of):
    figures = []
    engine = engine_of(step, LivePlot(every=1, show=figures.append))
    for _ in range(2):
        engine.run([4.0, 2.0], max_epochs=1)
    assert curves_of(figures[-1])["training"] == [[1, 4], [2, 2]]


def test_outside_of_a_notebook_it_wants_a_file(engine_of):
    with pytest.raises(ValueError, match=r"this is no notebook\. Name a file, as in LivePlot\('curves\.png'\)"):
        engine_of(step, LivePlot()).run([1.0])


def test_a_file_that_cannot_be_written_ends_the_run_before_it_begins(engine_of, tmp_path):
    (tmp_path / "file").touch()
    began = []
    engine = engine_of(lambda engine, batch: began.append(batch), LivePlot(tmp_path / "file" / "curves.png"))
    with pytest.raises(OSError, match="LivePlot cannot write to"):
        engine.run([1.0])
    assert began == []
