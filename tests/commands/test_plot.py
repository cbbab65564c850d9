"""`camshaft plot` draws the curves of runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camshaft.__main__ import main


def test_a_picture_is_drawn_and_its_path_printed(run: Path, camshaft: Callable[..., Any]) -> None:
    ended = camshaft("plot", "run", "-o", "curves.png")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "curves.png\n", "")
    with Image.open(run.parent / "curves.png") as picture:
        assert picture.width == 800


def test_several_runs_and_files_share_a_picture(run: Path, tmp_path: Path) -> None:
    assert main(["plot", str(run), str(run / "metrics.csv"), "--output", str(tmp_path / "both.svg")]) == 0
    assert (tmp_path / "both.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["nowhere"],
            "nowhere has no metrics.csv, metrics.jsonl or event file of TensorBoard: attach CSVLogger('nowhere')",
        ),
        (["empty.csv"], "Nothing was logged in empty.csv, so there is nothing to draw."),
        (["run", "-o", "nowhere/curves.png"], "nowhere/curves.png: No such file or directory."),
        (["run", "-o", "curves.xyz"], "Format 'xyz' is not supported"),
    ],
)
def test_what_cannot_be_drawn_gives_one_line_and_status_2(
    arguments: list[str],
    complaint: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parent)
    Path("empty.csv").touch()
    assert main(["plot", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"camshaft: {complaint}")


def test_without_matplotlib_it_says_how_to_get_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)  # as if it were not installed
    assert main(["plot", str(run), "-o", str(run / "curves.png")]) == 2
    assert capsys.readouterr().err == "camshaft: plot needs matplotlib: pip install 'camshaft[vision]'.\n"
