"""`camshaft resume` starts the command of a run again, which goes on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camshaft.__main__ import main


def kill_after_two_checkpoints(program: Path) -> None:
    """Start a training of many epochs and end it by SIGKILL."""
    command = [sys.executable, "-B", program.name, "100"]
    with subprocess.Popen(command, cwd=program.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            while len(list(program.parent.glob("run/checkpoints/iteration=*"))) < 2:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.005)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_command_from_another_folder(
    program: Path, camshaft: Callable[..., Any], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(program, moved / program.name)
    kill_after_two_checkpoints(moved / program.name)
    ended = camshaft("resume", "elsewhere/run")
    command, printed = ended.stdout.splitlines()
    assert command == f"cd {moved} && {sys.executable} -B {program.name} 100"
    assert printed == "trained for 100 epochs"
    assert (ended.returncode, ended.stderr.count("\n")) == (0, 1)
    assert ended.stderr.startswith("Going on with run after epoch ")
    lines = (moved / "run" / "metrics.csv").read_text().splitlines()
    iterations = [line.split(",")[0] for line in lines[1:] if line.split(",")[3]]
    assert iterations == [str(iteration) for iteration in range(1, 401)]


def test_a_finished_run_is_left_as_it_is_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["resume", str(run)]) == 0
    first, command, _ = capsys.readouterr().out.splitlines()
    assert first == f"{run} is finished, at epoch 3, iteration 12. It was started by:"
    assert command.endswith(" 3")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_further_arguments_are_added_to_the_command_also_of_a_finished_run(
    run: Path, camshaft: Callable[..., Any]
) -> None:
    record = json.loads((run / "run.json").read_text())
    record |= {"argv": [sys.executable, "-c", "import sys; print(sys.argv)", "3"], "cwd": str(run)}
    (run / "run.json").write_text(json.dumps(record))
    ended = camshaft("resume", "run", "--max-epochs", "5")
    assert ended.stdout.splitlines()[1:] == ["['-c', '3', '--max-epochs', '5']"]


def test_the_status_is_the_commands(run: Path, camshaft: Callable[..., Any]) -> None:
    shutil.rmtree(run / "checkpoints")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"argv": [sys.executable, "-c", "exit(75)"]}))
    assert camshaft("resume", "run").returncode == 75


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"argv": ["/nowhere/python", "train.py"]}, "No such file or directory: /nowhere/python."),
        ({"cwd": "/nowhere"}, "No such file or directory: /nowhere."),
        ({"restartable": False}, "run was started from a notebook or a prompt: run it there again."),
    ],
)
def test_a_command_that_cannot_be_started_gives_one_line_and_status_2(
    change: dict[str, Any],
    complaint: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parent)
    shutil.rmtree(run / "checkpoints")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **change}))
    assert main(["resume", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(complaint)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "run has no run.json, where Checkpoint notes how a run was started."),
        ("", "run/run.json cannot be read (JSONDecodeError: "),
        ("[]", "run/run.json cannot be read (TypeError: "),
        ("{}", "run/run.json cannot be read (KeyError: "),
    ],
)
def test_a_missing_or_broken_record_gives_one_line_and_status_2(
    content: str | None,
    complaint: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parent)
    record = run / "run.json"
    record.unlink() if content is None else record.write_text(content)
    assert main(["resume", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"camshaft: {complaint}")


def test_a_wrong_path_gives_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "nowhere"]) == 2
    assert capsys.readouterr().err == "camshaft: nowhere does not exist.\n"
