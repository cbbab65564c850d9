"""The picture shows what was logged, with names that a reader understands."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from camshaft import CSVLogger, Engine, Events, JSONLinesLogger, TensorBoardLogger
from camshaft.curves import draw_curves, plot_curves, read_curves

Texts = Callable[..., list[str]]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Texts:
    """The texts in the picture of runs, in the order in which they are drawn."""
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # texts as texts, not as their outlines

    def draw(*runs: Path) -> list[str]:
        picture = ElementTree.parse(plot_curves(runs, tmp_path / "curves.svg"))
        return ["".join(element.itertext()) for element in picture.iter("{http://www.w3.org/2000/svg}text")]

    return draw


def run_with(folder: Path, table: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(table)
    return folder


SMALL = "iteration,epoch,optimizer_step,learning_rate,loss,val_loss\n1,1,1,0.1,2.5,\n2,1,2,0.1,1.5,\n2,1,2,,,2.0\n"


def test_a_picture_of_one_run_names_axes_and_the_parts_of_the_data(texts: Texts, tmp_path: Path) -> None:
    shown = texts(run_with(tmp_path / "run", SMALL))
    assert shown.count("iteration") == 2
    assert {"loss", "learning rate", "training", "validation"} <= set(shown)
    assert "run" not in shown


def test_the_quantities_of_training_and_validation_come_first(texts: Texts, tmp_path: Path) -> None:
    shown = texts(run_with(tmp_path / "run", SMALL))
    assert shown.index("loss") < shown.index("learning rate")


def test_several_runs_are_told_apart_by_their_names(texts: Texts, tmp_path: Path) -> None:
    shown = texts(run_with(tmp_path / "slow", SMALL), run_with(tmp_path / "fast", SMALL))
    assert [shown.count(name) for name in ("slow", "fast", "training", "validation")] == [1, 1, 1, 1]


def test_runs_of_one_name_are_told_apart_by_the_ends_of_their_paths(texts: Texts, tmp_path: Path) -> None:
    runs = [run_with(tmp_path / folder / "run", SMALL) for folder in "ab"]
    assert {"a/run", "b/run"} <= set(texts(*runs))


def test_a_run_that_is_named_twice_is_drawn_once(texts: Texts, tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", SMALL)
    assert texts(run, run) == texts(run)


def test_of_a_long_name_the_legend_has_the_beginning_and_the_end(texts: Texts, tmp_path: Path) -> None:
    runs = [run_with(tmp_path / (name * 50 + "z" * 50), SMALL) for name in "ab"]
    shown = texts(*runs)
    assert "a" * 15 + "…" + "z" * 16 in shown
    assert "b" * 15 + "…" + "z" * 16 in shown


def test_a_value_that_one_run_lacks_is_drawn_for_the_other(texts: Texts, tmp_path: Path) -> None:
    other = run_with(tmp_path / "other", "iteration,epoch,optimizer_step,accuracy\n1,1,1,0.5\n")
    shown = texts(run_with(tmp_path / "run", SMALL), other)
    assert "accuracy" in shown
    assert "other, training" not in shown


def test_values_that_are_not_finite_are_left_out(texts: Texts, tmp_path: Path) -> None:
    table = "iteration,epoch,optimizer_step,loss\n1,1,1,1.0\n2,1,2,nan\n3,1,3,inf\n4,1,4,2.0\n"
    assert "loss" in texts(run_with(tmp_path / "run", table))


def test_a_png_of_two_columns_is_800_wide(tmp_path: Path) -> None:
    with Image.open(plot_curves([run_with(tmp_path / "run", SMALL)], tmp_path / "curves.png")) as picture:
        assert picture.size == (800, 300)


def test_the_lines_go_through_the_values_that_were_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: (drawn.append(figure), save(figure, *args, **kwargs))
    )
    trainer = Engine(lambda engine, batch: {"loss": batch})
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: trainer.state.metrics.update(val_loss=trainer.state.epoch / 2)
    )
    trainer.attach(CSVLogger(tmp_path, every=1)).run([1.0, 0.5], max_epochs=2)
    plot_curves([tmp_path], tmp_path / "curves.png")
    lines = {line.get_label(): line.get_xydata().tolist() for panel in drawn[0].axes for line in panel.lines}
    assert lines == {"training": [[1, 1], [2, 0.5], [3, 1], [4, 0.5]], "validation": [[2, 0.5], [4, 1]]}


def test_drawing_chooses_no_backend_for_the_process(tmp_path: Path) -> None:
    program = f"""if True:
        import sys
        from camshaft.curves import plot_curves
        plot_curves([{str(run_with(tmp_path / "run", SMALL))!r}], {str(tmp_path / "curves.png")!r})
        sys.exit("matplotlib.pyplot" in sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "DISPLAY": ""})


def test_a_run_without_a_table_is_refused_with_what_to_attach(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has no metrics\.csv, metrics\.jsonl or event file of TensorBoard: attach CSVLogger\("
    ):
        plot_curves([tmp_path], tmp_path / "curves.png")


def test_runs_without_a_number_are_refused(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", "iteration,epoch,optimizer_step\n1,1,1\n")
    with pytest.raises(ValueError, match=r"Nothing was logged in .*run, so there is nothing to draw"):
        plot_curves([run], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_json_lines_and_tensorboard_files_are_read_like_a_table(tmp_path: Path) -> None:
    trainer = Engine(lambda engine, batch: {"loss": batch})
    trainer.attach(
        CSVLogger(tmp_path / "csv", every=1),
        JSONLinesLogger(tmp_path / "json", every=1),
        TensorBoardLogger(tmp_path / "board" / "tensorboard", every=1),
    )
    trainer.run([1.0, 0.5, float("nan")])
    table, *others = (read_curves(tmp_path / name) for name in ("csv", "json", "board"))
    assert table["loss"][:2] == [(1, 1.0), (2, 0.5)]
    assert [repr(other) for other in others] == [repr(table)] * 2


def test_what_a_later_start_of_a_run_has_replaced_in_tensorboards_files_is_left_out(tmp_path: Path) -> None:
    for losses in ([3.0, 2.0, 1.0], [6.0, 5.0]):  # the second is a new run in the same directory
        logger = TensorBoardLogger(tmp_path, every=1)
        Engine(lambda engine, batch: {"loss": batch}).attach(logger).run(losses)
    assert read_curves(tmp_path) == {"loss": [(1, 6.0), (2, 5.0)]}


def test_a_file_that_a_kill_has_cut_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    Engine(lambda engine, batch: {"loss": batch}).attach(TensorBoardLogger(tmp_path, every=1)).run([1.0, 0.5])
    (events,) = tmp_path.iterdir()
    events.write_bytes(events.read_bytes()[:-3])
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "loss": 2.0}\n{"iteration": 2, "lo')
    assert read_curves(events) == {"loss": [(1, 1.0)]}
    assert read_curves(tmp_path / "metrics.jsonl") == {"loss": [(1, 2.0)]}


def test_the_table_of_lightnings_logger_is_read_too(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", "epoch,loss,step\n0,0.5,9\n0,,9\n")
    assert read_curves(run) == {"loss": [(9, 0.5)]}


def test_what_differs_behind_a_slash_shares_a_panel(tmp_path: Path) -> None:
    curves = {"learning_rate/0": [(1, 0.1)], "learning_rate/1": [(1, 0.2)], "loss": [(1, 1.0)]}
    rates, loss = draw_curves({"run": curves}).axes
    assert [line.get_label() for line in rates.lines] == ["0", "1"]
    assert len(loss.lines) == 1


def test_of_many_layers_as_many_are_drawn_as_there_are_colours() -> None:
    curves = {f"gradient_norm/layer{number}": [(1, 1.0)] for number in range(12)}
    (panel,) = draw_curves({"run": curves}).axes
    assert len(panel.lines) == 10
    assert panel.get_title() == "2 more are not drawn"


def test_a_gradient_norm_that_changes_by_much_has_a_logarithmic_axis() -> None:
    curves = {"gradient_norm": [(1, 0.01), (2, 10.0)], "loss": [(1, 0.01), (2, 10.0)]}
    panels = {panel.get_ylabel(): panel.get_yscale() for panel in draw_curves({"run": curves}).axes}
    assert panels == {"gradient norm": "log", "loss": "linear"}


def test_a_quantity_that_only_the_validation_has_says_so() -> None:
    (panel,) = draw_curves({"run": {"val_accuracy": [(1, 0.5)]}}).axes
    assert panel.get_ylabel() == "validation accuracy"


def test_a_time_has_its_unit() -> None:
    (panel,) = draw_curves({"run": {"epoch_seconds": [(1, 0.5)]}}).axes
    assert panel.get_ylabel() == "epoch seconds (s)"
