"""A run notes how it was started, so that it can be started again."""

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import ignite
import pytest
import torch

import camshaft
from camshaft.engine import Engine
from camshaft.handlers import Checkpoint, RunRecord, TimeLimit

PROGRAM = """
import os
from camshaft import Engine, RunRecord
os.chdir("/")
Engine(lambda engine, batch: None).attach(RunRecord(os.environ["RUN"])).run([0])
"""


def do_nothing(engine, batch):
    return None


def record_in(directory: Path) -> dict:
    return json.loads((directory / "run.json").read_text())


def test_it_holds_the_process_the_time_and_the_versions(engine_of, tmp_path):
    engine_of(do_nothing, RunRecord(tmp_path / "runs" / "new")).run([0])
    record = record_in(tmp_path / "runs" / "new")
    assert record["pid"] == os.getpid()
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["versions"] == {
        "camshaft": camshaft.__version__,
        "torch": torch.__version__,
        "pytorch-ignite": ignite.__version__,
    }
    age = datetime.now(timezone.utc) - datetime.fromisoformat(record["started"])
    assert timedelta(seconds=-1) < age < timedelta(minutes=1)
    assert record["argv"] == [sys.executable, *sys.orig_argv[1:]]


@pytest.mark.parametrize(
    "options", [["-B", "program.py"], ["-c", PROGRAM], ["-m", "program"]], ids=["script", "text", "module"]
)
def test_the_command_is_as_it_was_typed_and_its_folder_where_the_program_began(options, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"RUN": str(tmp_path / "run")}
    subprocess.run([sys.executable, *options, "--seed", "1 2"], cwd=tmp_path, env=environment, check=True)
    record = record_in(tmp_path / "run")
    assert record["argv"] == [sys.executable, *options, "--seed", "1 2"]
    assert record["cwd"] == str(tmp_path)
    assert record["restartable"] is True


def test_a_program_from_the_standard_input_cannot_be_started_again(tmp_path):
    environment = os.environ | {"RUN": str(tmp_path)}
    subprocess.run([sys.executable, "-"], input=PROGRAM, text=True, env=environment, check=True)
    assert record_in(tmp_path)["restartable"] is False


def test_a_prompt_cannot_be_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    Engine(do_nothing).attach(RunRecord(tmp_path)).run([0])
    assert record_in(tmp_path)["restartable"] is False


def test_a_later_run_replaces_the_record_and_leaves_nothing_else(tmp_path):
    (tmp_path / "run.json").write_text("of an earlier run")
    Engine(do_nothing).attach(RunRecord(tmp_path)).run([0])
    assert record_in(tmp_path)["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_that_is_refused_leaves_no_record(tmp_path):
    engine = Engine(do_nothing).attach(RunRecord(tmp_path), RunRecord(tmp_path), TimeLimit(60))
    with pytest.raises(ValueError, match="2 RunRecord handlers"):
        engine.run([0])
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_ends_the_run_in_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    engine = Engine(do_nothing).attach(RunRecord(tmp_path / "file" / "run"))
    with pytest.raises(OSError, match=r"The record of the run, .*run\.json, could not be written: Not a directory\."):
        engine.run([0])


def test_checkpoint_writes_it_by_itself(engine_of, tmp_path):
    engine_of(do_nothing, Checkpoint(tmp_path)).run([0])
    assert record_in(tmp_path)["pid"] == os.getpid()


def test_the_record_is_of_the_process_that_has_the_directory(tmp_path):
    """A second process is refused before it could replace the record of the first."""
    program = f"""if True:
        from camshaft import Checkpoint, Engine
        try:
            Engine(lambda engine, batch: None).attach(Checkpoint({str(tmp_path)!r})).run([0])
        except BlockingIOError as error:
            print(error)
    """

    def start_another(engine, batch):
        command = [sys.executable, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    printed = []
    engine = Engine(lambda engine, batch: printed.append(start_another(engine, batch)))
    engine.attach(Checkpoint(tmp_path)).run([0])
    assert f"The process {os.getpid()} is training in" in printed[0]
    assert record_in(tmp_path)["pid"] == os.getpid()
