"""A run notes how it was started, so that it can be started again."""

import argparse
import dataclasses
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
    assert {
        "camshaft": camshaft.__version__,
        "torch": torch.__version__,
        "pytorch-ignite": ignite.__version__,
        "pytest": pytest.__version__,
    }.items() <= record["versions"].items()
    age = datetime.now(timezone.utc) - datetime.fromisoformat(record["started"])
    assert timedelta(seconds=-1) < age < timedelta(minutes=1)
    assert record["started"][-10] == record["ended"]["at"][-10] == "."  # seconds with three decimals
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
    record = record_in(tmp_path)
    assert (record["restartable"], record["typed_in"]) == (False, True)


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


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_holds_the_commit_of_the_program_and_what_differs_from_it(tmp_path):
    """The program is started in another folder, which is no repository."""
    code, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    code.mkdir()
    elsewhere.mkdir()
    program = code / "program.py"
    program.write_text(PROGRAM)
    git(tmp_path, "init", "-q", "-b", "main", str(code))
    git(code, "add", ".")
    git(code, "commit", "-q", "-m", "first")
    program.write_text(PROGRAM + "# changed\n")
    (code / "new.py").touch()
    environment = os.environ | {"RUN": str(tmp_path / "run")}
    subprocess.run([sys.executable, str(program)], cwd=elsewhere, env=environment, check=True)
    recorded = record_in(tmp_path / "run")["git"]
    assert recorded["commit"] == git(code, "rev-parse", "HEAD").strip()
    assert (recorded["branch"], recorded["untracked"]) == ("main", ["new.py"])
    git(code, "checkout", "-q", "program.py")
    subprocess.run(["git", "-C", str(code), "apply"], input=recorded["diff"], text=True, check=True)
    assert program.read_text() == PROGRAM + "# changed\n"


def test_it_holds_seed_hardware_models_and_what_is_attached(engine_of, tmp_path):
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    camshaft.seed_everything(5)
    engine_of(lambda engine, batch: model(batch), RunRecord(tmp_path), TimeLimit(60)).run([torch.ones(2)], max_epochs=2)
    record = record_in(tmp_path)
    assert record["seed"] == 5
    assert record["hardware"]["cores"] >= 1
    assert record["models"] == {"model": {"class": "Linear", "parameters": 3, "trained": 2}}
    assert record["attached"][1] == "TimeLimit(seconds=60)"
    assert record["run"] == {"max_epochs": 2, "max_iters": None, "epoch_length": 1}


@dataclasses.dataclass
class Configuration:
    learning_rate: float = 0.1


@pytest.mark.parametrize(
    "configuration",
    [{"learning_rate": 0.1}, argparse.Namespace(learning_rate=0.1), Configuration()],
    ids=lambda configuration: type(configuration).__name__,
)
def test_a_configuration_is_kept(configuration, tmp_path):
    Engine(do_nothing).attach(RunRecord(tmp_path, configuration)).run([0])
    assert record_in(tmp_path)["configuration"] == {"learning_rate": 0.1}


def test_a_configuration_beside_a_checkpoint_is_kept_whichever_was_attached_first(tmp_path):
    for order in (1, -1):
        handlers = [Checkpoint(tmp_path / str(order)), RunRecord(tmp_path / str(order), {"path": Path("data")})]
        Engine(do_nothing).attach(*handlers[::order]).run([0])
        assert record_in(tmp_path / str(order))["configuration"] == {"path": "data"}  # as text


def test_what_is_no_configuration_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"is a mapping, an argparse\.Namespace or a dataclass, not 5"):
        RunRecord(tmp_path, 5)


def test_it_holds_how_the_run_ended(engine_of, tmp_path):
    engine_of(do_nothing, RunRecord(tmp_path)).run([0, 1], max_epochs=3)
    ended = record_in(tmp_path)["ended"]
    assert (ended["status"], ended["epoch"], ended["iteration"]) == ("finished", 3, 6)


def test_it_holds_the_error_that_ended_the_run(engine_of, tmp_path):
    def fail(engine, batch):
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        engine_of(fail, RunRecord(tmp_path)).run([0])
    assert record_in(tmp_path)["ended"]["error"] == "RuntimeError: no luck"


def test_the_time_of_earlier_processes_is_added_where_a_run_goes_on(tmp_path):
    Engine(do_nothing).attach(Checkpoint(tmp_path)).run([0])
    earlier = record_in(tmp_path)
    started = datetime.now(timezone.utc) - timedelta(seconds=100)
    earlier |= {"pid": 0, "started": started.isoformat(), "seconds_before": 1000.0}
    (tmp_path / "run.json").write_text(json.dumps(earlier))
    Engine(do_nothing).attach(Checkpoint(tmp_path)).run([0], max_epochs=2)
    assert 1099 < record_in(tmp_path)["seconds_before"] < 1160
