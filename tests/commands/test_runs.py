"""`camshaft runs` lists the runs in a directory."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from camshaft.__main__ import main
from camshaft.handlers.checkpoint_store import CheckpointStore


@pytest.fixture
def runs(run: Path, tmp_path: Path) -> Path:
    """The run of the fixture `run`, and two of which only a record and a table are left."""
    folder = tmp_path / "runs"
    folder.mkdir()
    run.rename(folder / "trained")
    for name, ended, loss in (("sweep/a", {"status": "finished", "epoch": 2}, 0.25), ("sweep/b", None, 0.75)):
        (folder / name).mkdir(parents=True)
        record: dict[str, Any] = {"argv": ["/usr/bin/python", "train.py", "--name", "a b"], "seconds_before": 60}
        record["started"] = "2026-01-01T00:00:00+00:00"
        if ended:
            record["ended"] = {**ended, "at": "2026-01-01T00:01:30+00:00"}
        (folder / name / "run.json").write_text(json.dumps(record))
        (folder / name / "metrics.csv").write_text(f"iteration,epoch,loss,val_loss\n1,1,1.0,\n2,1,{loss},{loss}\n")
    return folder


def table(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split("  ") for line in capsys.readouterr().out.splitlines()]


def cells(line: list[str]) -> list[str]:
    return [cell.strip() for cell in line if cell.strip()]


def test_each_run_has_a_line_with_status_epoch_best_value_duration_and_command(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(runs)]) == 0
    header, first, second, trained = map(cells, table(capsys))
    assert header == ["run", "status", "epoch", "best val_loss", "duration", "command"]
    assert first == ["sweep/a", "finished", "2", "0.25", "2 min 30 s", "python train.py --name 'a b'"]
    assert second[:4] == ["sweep/b", "stopped", "1", "0.75"]
    assert trained[:3] == ["trained", "finished", "3/3"]
    assert trained[-1].endswith("python train.py 3") or trained[-1].endswith("train.py 3")


def test_they_are_sorted_by_the_best_of_a_value(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "--sort", "score"]) == 0
    names = [cells(line)[0] for line in table(capsys)]
    assert names == ["run", "trained", "sweep/a", "sweep/b"]
    assert main(["runs", str(runs / "sweep"), "--sort", "loss", "--best", "val_loss"]) == 0
    header, first, _ = map(cells, table(capsys))
    assert header[2:5] == ["epoch", "best loss", "best val_loss"]
    assert first[0] == "a"


def test_a_run_that_trains_now_is_running(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = """if True:
        import fcntl, sys
        file = open(sys.argv[1])
        fcntl.flock(file, fcntl.LOCK_EX)
        print(flush=True)
        sys.stdin.read()
    """
    lock = str(runs / "trained" / ".lock")
    with subprocess.Popen(
        [sys.executable, "-c", holder, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        main(["runs", str(runs / "trained")])
        process.kill()
    assert cells(table(capsys)[1])[1] == "running"


def test_a_run_without_checkpoints_is_running_as_long_as_its_process(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"argv": ["python"], "started": "2026-01-01T00:00:00+00:00", "hardware": {"machine": platform.node()}}
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    for pid, status in ((os.getpid(), "running"), (finished.pid, "stopped")):
        (runs / "sweep" / "b" / "run.json").write_text(json.dumps({**record, "pid": pid}))
        main(["runs", str(runs / "sweep" / "b")])
        assert cells(table(capsys)[1])[1] == status


def test_a_record_that_cannot_be_read_leaves_what_else_is_known(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "sweep" / "b" / "run.json").write_text("{")
    assert main(["runs", str(runs / "sweep" / "b")]) == 0
    assert cells(table(capsys)[1])[1:] == ["unknown", "1", "0.75"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.csv", "iteration,epoch,loss\n1,1,0.5\n2,2,0.25\n"),
        (
            "metrics.jsonl",
            '{"iteration": 1, "epoch": 1, "loss": 0.5}\n{"iteration": 2, "epoch": 2, "loss": 0.25}\n{"it',
        ),
    ],
    ids=["csv", "json lines"],
)
def test_of_a_run_with_a_log_alone_the_epoch_is_known_but_not_how_it_ended(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    main(["runs", str(tmp_path)])
    assert cells(table(capsys)[1])[1:] == ["unknown", "2", "0.25"]
    main(["show", str(tmp_path)])
    assert "reached  epoch 2, iteration 2" in capsys.readouterr().out


# The best


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    (tmp_path / "metrics.csv").write_text(
        "iteration,epoch,val_elbo,val_width\n1,1,-252.6,3\n2,2,-221.9,5\n3,3,-235.2,4\n"
    )
    return tmp_path


def test_the_best_of_a_lower_bound_is_the_largest_and_of_what_nobody_knows_the_last_is_shown(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["runs", str(logged)])
    header, row = map(cells, table(capsys))
    assert header[3:5] == ["best val_elbo", "last val_width"]
    assert row[3:5] == ["-221.9", "4"]
    main(["show", str(logged)])
    assert "best values\n  val_elbo  -221.9\nlast values\n  val_width  4\n" in capsys.readouterr().out


@pytest.mark.parametrize(("mode", "best"), [("min", "3"), ("max", "5")])
def test_what_a_checkpoint_monitors_is_best_in_its_direction(
    mode: str, best: str, logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {"iteration": 3, "epoch": 3, "value": 4.0, "finished": False, "monitor": "val_width", "mode": mode}
    CheckpointStore(logged / "checkpoints").write("iteration=3", {}, metadata)
    main(["runs", str(logged), "--best", "val_width"])
    header, row = map(cells, table(capsys))
    assert (header[3], row[1], row[3]) == ("best val_width", "stopped", best)


def test_runs_that_monitor_it_in_two_directions_have_no_best_in_common(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode in ("min", "max"):
        folder = logged / "runs" / mode
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text((logged / "metrics.csv").read_text())
        metadata = {"iteration": 3, "epoch": 3, "value": 4.0, "finished": False, "monitor": "val_width", "mode": mode}
        CheckpointStore(folder / "checkpoints").write("iteration=3", {}, metadata)
    main(["runs", str(logged / "runs"), "--sort", "val_width"])
    assert cells(table(capsys)[0])[3] == "last val_width"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere does not exist."),
        (["empty"], "There are no runs in empty."),
        (["runs", "--best", "accuracy"], "No run has logged 'accuracy'. There is: loss, val_loss, "),
        (["runs", "--sort", "accuracy"], "No run has logged 'accuracy'. There is: loss, val_loss, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_listed_gives_one_line_and_status_2(
    arguments: list[str],
    complaint: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs.parent)
    Path("empty").mkdir()
    assert main(["runs", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"camshaft: {complaint}")


def test_it_answers_without_importing_torch(runs: Path, tmp_path: Path) -> None:
    program = """if True:
        import sys
        from camshaft.__main__ import main
        main(["runs", sys.argv[1]])
        sys.exit(sorted({"torch", "ignite", "numpy", "matplotlib"} & sys.modules.keys()) or 0)
    """
    subprocess.run([sys.executable, "-c", program, str(runs)], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)


def test_a_reader_that_has_read_enough_ends_it_without_a_traceback(runs: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "camshaft", "runs", str(runs)]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")
