"""The main job: `examples/digits.py` learns real digits, ends in the same bits, and survives being killed."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from camshaft.__main__ import main as camshaft
from tests.examples.running import Run, digest_of

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "digits.py"
ENDED_BY_SIGTERM = 75  # what Preemption leaves with


@pytest.fixture
def digits(example: Callable[[str], Run]) -> Run:
    return example("digits.py")


def accuracy_of(out: str) -> float:
    return float(re.search(r"^test accuracy +([\d.]+)% of 257 images", out, re.MULTILINE)[1])


# What it prints and writes


@pytest.mark.slow
def test_the_complete_run_recognises_more_than_98_5_percent_of_new_digits(digits: Run) -> None:
    ended = digits("--run-dir", "run")
    assert ended.status == 0
    assert accuracy_of(ended.out) >= 98.5


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(digits: Run) -> None:
    first, same, other = (
        digest_of(digits("--max-epochs", "2", "--seed", seed, "--run-dir", folder).out)
        for seed, folder in (("1", "a"), ("1", "b"), ("2", "c"))
    )
    assert first == same
    assert first != other


def test_it_shows_what_is_attached_and_where_everything_is(digits: Run, capsys: pytest.CaptureFixture[str]) -> None:
    ended = digits("--max-epochs", "1", "--run-dir", "run")
    assert ended.status == 0
    assert "camshaft show run --events" in ended.out
    assert camshaft(["show", "run", "--events"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert any("Checkpoint('run', " in line for line in table)
    assert max(map(len, table)) <= 120
    for path in ("curves.png", "metrics.csv", "tensorboard"):
        assert f"run/{path}" in ended.out
        assert Path("run", path).exists()
    with Image.open("run/curves.png") as picture:
        assert picture.size == (800, 600)
    assert "epoch 1/1" in ended.err


def test_the_commands_that_it_prints_work(digits: Run, capsys: pytest.CaptureFixture[str]) -> None:
    ended = digits("--max-epochs", "1", "--run-dir", "run dir")
    commands = re.findall(r"-m camshaft (\w+) 'run dir'", ended.out)
    assert commands == ["resume", "show", "plot", "show", "checkpoints", "resume"]
    assert camshaft(["show", "run dir"]) == 0
    assert "status    finished" in capsys.readouterr().out
    assert camshaft(["checkpoints", "run dir"]) == 0
    assert "val_accuracy" in capsys.readouterr().out
    assert camshaft(["resume", "run dir"]) == 0
    assert "run dir is finished, at epoch 1, iteration 20." in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_learns_in_lower_precision(precision: str, digits: Run) -> None:
    ended = digits("--max-epochs", "2", "--precision", precision, "--run-dir", "run")
    assert ended.status == 0
    assert any(attached.startswith("AMP(") for attached in json.loads(Path("run/run.json").read_text())["attached"])
    assert accuracy_of(ended.out) > 30


def test_help_names_every_option(digits: Run) -> None:
    ended = digits("--help")
    assert ended.status == 0
    for option in ("run-dir", "max-epochs", "batch-size", "seed", "precision", "resume", "dataset", "data-dir"):
        assert f"--{option}" in ended.out


# Going on


def test_a_finished_run_is_shown_again_and_changes_nothing(digits: Run) -> None:
    first = digits("--max-epochs", "1", "--run-dir", "run")
    table = Path("run/metrics.csv").read_text()
    second = digits("--max-epochs", "1", "--run-dir", "run")
    assert second.status == 0
    assert digest_of(second.out) == digest_of(first.out)
    assert accuracy_of(second.out) == accuracy_of(first.out)
    assert Path("run/metrics.csv").read_text() == table


def test_a_finished_run_can_be_trained_for_longer(digits: Run) -> None:
    digits("--max-epochs", "1", "--run-dir", "run")
    assert digits("--max-epochs", "2", "--run-dir", "run").status == 0
    epochs = [line.split(",")[1] for line in Path("run/metrics.csv").read_text().splitlines()[1:]]
    assert epochs.count("2") == 4  # two of training, one of validation, one of the test
    assert sorted(epochs) == epochs


def test_another_run_can_begin_at_a_checkpoint(digits: Run) -> None:
    digits("--max-epochs", "1", "--run-dir", "run")
    (checkpoint,) = Path("run/checkpoints").glob("*epoch=1")
    branch = digits("--max-epochs", "2", "--run-dir", "other", "--resume", checkpoint)
    assert digest_of(branch.out) == digest_of(digits("--max-epochs", "2", "--run-dir", "run").out)


def test_without_a_folder_the_same_command_goes_on_until_it_is_done_and_then_begins_anew(digits: Run) -> None:
    for _ in range(2):
        assert digits("--max-epochs", "1").status == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits-1", "digits-2"]
    record = Path("runs/digits-1/run.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "ended": {}}))  # as if it had been killed before
    digits("--max-epochs", "1")
    assert len(list(Path("runs").iterdir())) == 2
    digits("--max-epochs", "1", "--seed", "1")  # another run
    assert len(list(Path("runs").iterdir())) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, ENDED_BY_SIGTERM), (signal.SIGKILL, -signal.SIGKILL)], ids=["TERM", "KILL"]
)
def test_a_killed_run_ends_in_the_same_weights_when_it_is_started_again(
    number: signal.Signals, status: int, digits: Run
) -> None:
    whole = digits("--max-epochs", "8", "--run-dir", "whole")
    command = [sys.executable, str(EXAMPLE), "--max-epochs", "8", "--run-dir", "killed"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(Path("killed/checkpoints").glob("iteration=*,epoch=2")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(60) == status
    resume = [sys.executable, "-m", "camshaft", "resume", "killed"]
    resumed = subprocess.run(resume, check=False, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert digest_of(resumed.stdout) == digest_of(whole.out)
    assert Path("killed/metrics.csv").read_text() == Path("whole/metrics.csv").read_text()


# On two processes


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "camshaft", "launch", "--nproc-per-node", "2", str(EXAMPLE), *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


@pytest.mark.distributed
def test_two_processes_train_as_one_and_only_the_first_tells(digits: Run) -> None:
    ended = launched("--max-epochs", "1")
    assert ended.returncode == 0, ended.stderr
    assert "[rank 0] test accuracy" in ended.stdout
    assert "[rank 1]" not in ended.stdout + ended.stderr
    (run,) = Path("runs").iterdir()
    (row, *_) = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    assert row["iteration"] == "10"  # half as many as of one process, with batches twice as large
    assert len(list((run / "tensorboard").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_that_are_told_to_end_go_on_to_the_same_weights(digits: Run) -> None:
    command = [sys.executable, "-m", "camshaft", "launch", "--nproc-per-node", "2", str(EXAMPLE)]
    command += ["--max-epochs", "8", "--run-dir", "killed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        while not any(Path("killed/checkpoints").glob("iteration=*,epoch=2")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == ENDED_BY_SIGTERM
    resumed, whole = (launched("--max-epochs", "8", "--run-dir", folder) for folder in ("killed", "whole"))
    assert (resumed.returncode, whole.returncode) == (0, 0), resumed.stderr + whole.stderr
    assert resumed.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    assert "weights sha256: " in whole.stdout.splitlines()[-1]
    assert Path("killed/metrics.csv").read_text() == Path("whole/metrics.csv").read_text()


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--precision", "fp8"], "argument --precision: invalid choice: 'fp8'"),
        (["--max-epochs", "0"], "argument --max-epochs: 0 is less than 1"),
        (["--batch-size", "many"], "argument --batch-size: invalid int value: 'many'"),
        (["--batch-size", "2000"], "a batch of 2000 is more than the 1283 images to train on"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--run-dir", "file/run"], "file/run"),
        (["--resume", "nowhere"], "There is no checkpoint nowhere to go on with"),
        (
            ["--dataset", "mnist", "--data-dir", "file/data"],
            "MNIST could neither be loaded from file/data nor downloaded",
        ),
    ],
    ids=" ".join,
)
def test_what_cannot_be_gives_one_line_and_status_2(arguments: list[str], complaint: str, digits: Run) -> None:
    Path("file").touch()
    ended = digits("--run-dir", "run", *arguments)
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("digits.py: ")
    assert complaint in line


def test_a_run_that_is_there_is_not_begun_anew(digits: Run) -> None:
    digits("--max-epochs", "1", "--run-dir", "run")
    ended = digits("--max-epochs", "1", "--run-dir", "run", "--resume", "never")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert "run has checkpoints of an earlier run" in line


def test_data_that_cannot_be_downloaded_gives_one_line_and_status_2(
    digits: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    ended = digits("--dataset", "mnist", "--data-dir", "data", "--run-dir", "run")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("digits.py: MNIST could neither be loaded from data nor downloaded: <urlopen error ")
    assert not Path("run").exists()


# Other data


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_it_trains_on_the_data_sets_of_torchvision(
    dataset: str, folder: str, small_mnist: Callable[[Path], None], digits: Run
) -> None:
    small_mnist(Path("data", folder, "raw"))
    arguments = (
        "--dataset",
        dataset,
        "--data-dir",
        "data",
        "--run-dir",
        "run",
        "--max-epochs",
        "2",
        "--batch-size",
        "20",
    )
    ended = digits(*arguments)
    assert (ended.status, digest_of(ended.out) != "") == (0, True)
    assert "of 60 images never seen in training" in ended.out
    assert Path("run/metrics.csv").read_text().count("\n") == 1 + 2 * (1 + 1) + 1  # of 11 batches, every tenth
