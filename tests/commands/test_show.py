"""`camshaft show` tells what a run was started with and how it went."""

import json
from pathlib import Path

import pytest
import torch

from camshaft.__main__ import main


def sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("  "):
            found[list(found)[-1]].append(line.strip())
        else:
            found[line] = []
    return found


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[str]]:
    assert main(["show", *arguments]) == 0
    return sections(capsys.readouterr().out)


def change(run: Path, **entries: object) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_it_tells_how_the_run_went(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, str(run))[str(run)]
    assert lines[:2] == ["status    finished", "reached   epoch 3 of 3, iteration 12"]
    assert any(line.startswith("command   cd ") and line.endswith(" train.py 3") for line in lines)
    assert "seed      0" in lines


def test_the_start_is_told_in_whole_seconds_and_the_duration_in_fractions(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(
        run,
        started="2026-01-01T00:00:01.250+00:00",
        ended={"status": "finished", "at": "2026-01-01T00:00:01.950+00:00"},
    )
    lines = shown(capsys, str(run))[str(run)]
    assert "started   2026-01-01T00:00:01+00:00" in lines
    assert "duration  0.7 s" in lines


def test_what_was_typed_into_a_notebook_has_no_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, typed_in=True, argv=["python", "-m", "ipykernel_launcher", "-f", "kernel.json"])
    assert "command   in a notebook or at a prompt" in shown(capsys, str(run))[str(run)]
    assert main(["runs", str(run.parent)]) == 0
    assert "ipykernel" not in capsys.readouterr().out


def test_it_tells_best_values_models_and_what_was_attached(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, str(run))
    assert any(line.split() == ["score", "0.75"] for line in told["best values"])
    assert told["models"] == ["model  Linear, 3 parameters, 3 of them trained"]
    assert "OptimizerStep(SGD)" in told["attached"]


def test_it_tells_versions_and_hardware(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, str(run))
    assert any(line.split() == ["torch", torch.__version__] for line in told["versions"])
    assert [line.split()[0] for line in told["hardware"]][:4] == ["machine", "platform", "processor", "cores"]


def test_it_tells_the_configuration(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(run, configuration={"learning_rate": 0.1, "layers": [1, 2]})
    assert shown(capsys, str(run))["configuration"] == ["learning_rate  0.1", "layers         [1, 2]"]


def test_it_tells_the_commit_and_whether_there_were_changes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diff = "diff --git a/train.py b/train.py\n-a\n+b\n"
    change(run, git={"commit": "c0ffee", "branch": "main", "diff": diff, "untracked": ["a", "b", "c", "d"]})
    assert shown(capsys, str(run))["code"] == [
        "commit     c0ffee (main)",
        "changes    1 file differs from the commit: add --diff to see how",
        "untracked  a, b, c and 1 more",
    ]
    main(["show", str(run), "--diff"])
    assert capsys.readouterr().out == diff


def test_it_prints_the_table_of_events(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", str(run), "--events"])
    assert "OptimizerStep(SGD).begin" in capsys.readouterr().out


def test_it_tells_the_error_that_ended_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in (run / "checkpoints").glob("*finished*"):
        checkpoint.rename(checkpoint.with_name(".gone"))
    change(run, ended={"status": "failed", "error": "ValueError: x", "at": "2026-01-01T00:00:00+00:00"})
    assert shown(capsys, str(run))[str(run)][:2] == ["status    failed", "error     ValueError: x"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere does not exist."),
        (["."], ". is no run: it has no run.json, where Checkpoint and RunRecord note how it was started."),
        (["run", "--diff"], "run was not started from a repository of git."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_shown_gives_one_line_and_status_2(
    arguments: list[str],
    complaint: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["show", *arguments]) == 2
    assert capsys.readouterr().err == f"camshaft: {complaint}\n"
