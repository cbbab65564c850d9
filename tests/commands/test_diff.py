"""`camshaft diff` shows where two checkpoints differ, to the bit."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from camshaft.__main__ import main
from camshaft.handlers.checkpoint_store import CheckpointStore

BEST, LAST = "iteration=00000008,epoch=2", "iteration=00000012,epoch=3"


@pytest.fixture
def differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str]]]:
    """The status and the lines of the difference of two states, without the lines that name the two."""

    def compare(a: Mapping[str, Any], b: Mapping[str, Any], *options: str) -> tuple[int, list[str]]:
        metadata = {"iteration": 1, "epoch": 1}
        paths = [str(CheckpointStore(tmp_path).write(name, state, metadata)) for name, state in (("a", a), ("b", b))]
        status = main(["diff", *paths, *options])
        return status, capsys.readouterr().out.splitlines()[2:]

    return compare


def test_a_run_and_its_copy_are_equal(run: Path, camshaft: Callable[..., Any]) -> None:
    shutil.copytree(run, run.parent / "copy")
    ended = camshaft("diff", "run", "copy")
    assert (ended.returncode, ended.stderr) == (0, "")
    newest = "checkpoints/iteration=00000012,finished"
    assert ended.stdout.splitlines()[:2] == [f"A  run/{newest}", f"B  copy/{newest}"]
    assert ended.stdout.splitlines()[2].startswith("equal: ")


def test_two_checkpoints_of_a_run_differ_in_weights_and_position(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *(str(run / "checkpoints" / name) for name in (BEST, LAST))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("model/weight: 2 of 2 elements differ, by at most 0.0") for line in lines)
    assert "camshaft/engine/iteration: 8 in A, 12 in B" in lines
    assert not any(line.startswith("optimizer/param_groups") for line in lines)
    assert " entries differ" in lines[-1]


def test_differing_elements_are_counted_and_the_largest_distance_is_shown(differences: Callable[..., Any]) -> None:
    weight = torch.zeros(2, 3)
    other = weight.clone()
    other[0, 1], other[1, 2] = 0.5, -2.0
    assert differences({"weight": weight}, {"weight": other}) == (
        1,
        ["weight: 2 of 6 elements differ, by at most 2", "1 of 1 entries differ"],
    )


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "float32 (2,) in A, float64 (2,) in B"),
        (torch.zeros(2), torch.zeros(1, 2), "float32 (2,) in A, float32 (1, 2) in B"),
        (torch.tensor(0.0), torch.tensor(-0.0), "1 of 1 elements differ, by at most 0"),
        (torch.tensor([1.0]), torch.tensor([float("nan")]), "1 of 1 elements differ, by NaN"),
        (torch.tensor([True, False]), torch.tensor([True, True]), "1 of 2 elements differ, by at most 1"),
        (torch.tensor([1 + 1j]), torch.tensor([4 + 5j]), "1 of 1 elements differ, by at most 5"),
        (
            torch.tensor([1], dtype=torch.uint8),
            torch.tensor([3], dtype=torch.uint8),
            "1 of 1 elements differ, by at most 2",
        ),
        (torch.zeros(1), 0.0, "float32 (1,) in A, 0.0 in B"),
        (1, 1.0, "1 in A, 1.0 in B"),
        (1, True, "1 in A, True in B"),
        (None, "auto", "None in A, 'auto' in B"),
        ("x" * 100, "", "'" + "x" * 58 + "… in A, '' in B"),
        ([], {}, "[] in A, {} in B"),
    ],
    ids=str,
)
def test_each_kind_of_difference_is_said(
    a: object, b: object, difference: str, differences: Callable[..., Any]
) -> None:
    assert differences({"x": a}, {"x": b})[1] == [f"x: {difference}", "1 of 1 entries differ"]


@pytest.mark.parametrize(
    "value",
    [torch.tensor([float("nan"), 1.0]), float("nan"), torch.zeros(0, 3), torch.zeros(2, 2).T, torch.tensor(3), "a", {}],
    ids=str,
)
def test_equal_values_are_no_difference(value: object, differences: Callable[..., Any]) -> None:
    assert differences({"x": value}, {"x": value}) == (0, ["equal: 1 entries"])


def test_entries_that_one_side_lacks_are_named(differences: Callable[..., Any]) -> None:
    a, b = {"kept": [1, 2], "old": {"lr": 1}}, {"kept": [1], "new": 2}
    status, lines = differences(a, b)
    assert status == 1
    assert lines == ["kept/1: only in A", "old/lr: only in A", "new: only in B", "3 of 4 entries differ"]


def test_entries_can_be_left_out(differences: Callable[..., Any]) -> None:
    a, b = {"x": 1, "time": {"used": 1, "left": 2}}, {"x": 1, "time": {"used": 2, "left": 1}}
    assert differences(a, b, "--ignore", "time/*") == (0, ["equal: 1 entries"])
    assert differences(a, b, "--ignore", "time/used", "--ignore", "x")[0] == 1


def test_the_newest_whole_checkpoint_stands_for_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "iteration=00000012,finished" / "state.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="finished is broken"):
        assert main(["diff", str(run), str(run / "checkpoints" / LAST)]) == 0
    assert LAST in capsys.readouterr().out.splitlines()[0]


def test_a_broken_checkpoint_gives_one_line_and_status_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / BEST / "state.pt").write_bytes(b"")
    assert main(["diff", str(run), str(run / "checkpoints" / BEST)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("camshaft: The checkpoint ")
    assert "is broken: state.pt is not what was written" in line


@pytest.mark.parametrize("path", ["nowhere", "run/run.json", "."])
def test_a_wrong_path_gives_one_line_and_status_2(
    path: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["diff", "run", path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"camshaft: {path} ")
