"""What every script of training has; `tests/examples/` runs whole scripts that use it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from camshaft import AMP, DataParallel, Device, Engine, OptimizerStep
from camshaft.scripts import run_script, script_parser, standard_handlers, start, weights_sha256


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fit.py"])


def options_of(*arguments: str):
    parser = script_parser("Fits a line.\n\nMore about it.", max_epochs=2, batch_size=64)
    parser.add_argument("--width", type=int, default=3)
    return start(parser, arguments)


def train(*arguments: str) -> tuple[Path, nn.Module]:
    """A whole script but for its files."""
    options = options_of(*arguments)
    model = nn.Linear(1, options.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Engine(lambda engine, batch: (model(batch) - batch).pow(2).mean())
    trainer.attach(OptimizerStep(optimizer), *standard_handlers(options, model=model, optimizer=optimizer))
    trainer.run([torch.ones(4, 1)] * 3, max_epochs=options.max_epochs)
    return options.run_dir, model


def find(state, name: str):
    """The entry of that name, however deep."""
    if name in state:
        return state[name]
    return next(found for value in state.values() if isinstance(value, dict) and (found := find(value, name)))


# Options


def test_help_shows_the_first_line_of_what_it_does_and_every_default_that_says_something(capsys) -> None:
    with pytest.raises(SystemExit):
        options_of("--help")
    words = " ".join(capsys.readouterr().out.split())
    assert "Fits a line." in words
    assert "More about it" not in words
    for told in ("how many to train (default: 2)", "(default: fp32)", "(default: a new one in runs)"):
        assert told in words
    assert "None" not in words


def test_a_wrong_option_is_told_in_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        options_of("--batch-size", "0")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "fit.py: argument --batch-size: 0 is less than 1\n"


def test_no_number_is_less_than_any(capsys) -> None:
    with pytest.raises(SystemExit):
        options_of("--seed", "nan")
    assert "invalid int value: 'nan'" in capsys.readouterr().err


def test_the_seed_decides_what_is_drawn() -> None:
    drawn = []
    for seed in ("1", "1", "2"):
        options_of("--seed", seed, "--run-dir", "run")
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1] != drawn[2]


def test_threads_are_those_that_are_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        options_of("--threads", "2", "--run-dir", "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# The directory of a run


def test_a_run_that_has_ended_is_followed_by_another_directory() -> None:
    assert [str(train()[0]) for _ in range(2)] == ["runs/fit-1", "runs/fit-2"]


def test_a_run_that_was_killed_goes_on_if_the_options_are_the_same() -> None:
    directory, _ = train()
    record = directory / "run.json"
    without_end = {name: value for name, value in json.loads(record.read_text()).items() if name != "ended"}
    record.write_text(json.dumps(without_end))
    assert options_of("--width", "4").run_dir == Path("runs/fit-2")
    assert options_of().run_dir == directory


def test_a_script_that_was_killed_before_its_own_run_began_goes_on_with_the_same_directory() -> None:
    directory = options_of().run_dir  # it trains something else first, and ends there
    assert options_of("--width", "4").run_dir == Path("runs/fit-2")
    assert options_of().run_dir == directory


def test_the_record_is_there_before_the_run_and_has_the_options_with_paths_as_text() -> None:
    options_of("--run-dir", "run")
    record = json.loads(Path("run/run.json").read_text())
    assert record["configuration"]["run_dir"] == "run"
    assert record["argv"][0] == sys.executable


def test_where_nothing_was_trained_no_record_is_left() -> None:
    def main() -> None:
        options_of()
        raise ValueError("no data")

    with pytest.raises(SystemExit):
        run_script(main)
    assert not any(Path("runs").iterdir())


def test_a_folder_that_was_there_before_stays_there() -> None:
    Path("run").mkdir()
    with pytest.raises(SystemExit):
        run_script(lambda: options_of("--run-dir", "run"))
    assert not any(Path("run").iterdir())


def test_a_run_that_has_begun_keeps_its_record() -> None:
    with pytest.raises(SystemExit):
        run_script(lambda: train("--run-dir", "run"))
    assert json.loads(Path("run/run.json").read_text())["ended"]["status"] == "finished"


def test_it_prints_how_to_go_on_and_how_to_look_at_the_run(capsys) -> None:
    options_of("--run-dir", "my run")
    told = capsys.readouterr().out
    assert told.startswith("The run is kept in my run.")
    assert re.findall(r"-m camshaft (\w+ 'my run'(?: -o \S+)?)", told) == [
        "resume 'my run'",
        "show 'my run'",
        "plot 'my run' -o curves.png",
    ]


def test_a_directory_that_holds_something_else_is_left_alone() -> None:
    Path("runs/fit-1").mkdir(parents=True)
    assert options_of().run_dir == Path("runs/fit-2")


# Handlers


def test_only_what_is_trained_is_wrapped_for_several_processes() -> None:
    teacher, student = nn.Linear(1, 1).requires_grad_(False), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    handlers = standard_handlers(options_of(), teacher=teacher, student=student, optimizer=optimizer)
    assert [handler.model for handler in handlers if isinstance(handler, DataParallel)] == [student]


def test_precision_and_device_are_those_of_the_options() -> None:
    full = standard_handlers(options_of("--device", "cpu"))
    assert not any(isinstance(handler, AMP) for handler in full)
    assert [str(handler.device) for handler in full if isinstance(handler, Device)] == ["cpu"]
    (amp,) = (one for one in standard_handlers(options_of("--precision", "bf16")) if isinstance(one, AMP))
    assert amp.precision == "bf16"


def test_what_is_kept_may_have_the_name_of_an_option_of_checkpoints() -> None:
    options, model = options_of(), nn.Linear(1, 1)
    Engine(lambda engine, batch: model(batch).mean()).attach(*standard_handlers(options, mode=model)).run(
        [torch.ones(4, 1)]
    )
    (checkpoint,) = (options.run_dir / "checkpoints").glob("*epoch=1")
    kept = torch.load(checkpoint / "state.pt", weights_only=True)
    assert torch.equal(find(kept, "mode")["weight"], model.weight)


def test_a_run_that_goes_on_ends_in_the_weights_of_one_that_was_never_interrupted() -> None:
    train("--run-dir", "two", "--max-epochs", "1")
    _, resumed = train("--run-dir", "two", "--max-epochs", "2")
    _, whole = train("--run-dir", "whole", "--max-epochs", "2")
    assert weights_sha256(resumed) == weights_sha256(whole)


# Errors


@pytest.mark.parametrize("error", [ValueError("no such thing"), FileNotFoundError("no such thing")], ids=repr)
def test_what_the_user_can_mend_is_one_line_and_status_2(error: Exception, capsys) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "fit.py: no such thing\n"


def test_the_traceback_is_there_for_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSHAFT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="invalid literal"):
        run_script(lambda: int("x"))


def test_a_mistake_in_the_research_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


def test_success_is_status_0() -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: None)
    assert ended.value.code == 0


def test_an_error_in_a_step_is_told_once(caplog: pytest.LogCaptureFixture, capsys) -> None:
    def fail(engine, batch) -> None:
        raise ValueError("the batch is empty")

    with pytest.raises(SystemExit):
        run_script(lambda: Engine(fail).run([0]))
    assert "the batch is empty" in capsys.readouterr().err
    assert not caplog.records


# Weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_the_digest_is_of_every_bit_in_every_type(dtype: torch.dtype) -> None:
    weights = {"a": torch.zeros(2, 3, dtype=dtype), "b": torch.zeros((), dtype=dtype)}
    changed = {**weights, "b": torch.ones((), dtype=dtype)}
    assert weights_sha256(weights) == weights_sha256({name: tensor.clone() for name, tensor in weights.items()})
    assert weights_sha256(weights) != weights_sha256(changed)
