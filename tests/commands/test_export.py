"""`camshaft export` writes weights that any reader of safetensors gets back to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from camshaft.__main__ import main
from camshaft.handlers.checkpoint_store import CheckpointStore

BEST, LAST, FINISHED = "iteration=00000008,epoch=2", "iteration=00000012,epoch=3", "iteration=00000012,finished"


def state_of(run: Path, name: str) -> dict[str, Any]:
    return CheckpointStore(run).read(run / "checkpoints" / name)


def assert_equal(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_best_weights_are_written(run: Path, camshaft: Callable[..., Any]) -> None:
    ended = camshaft("export", "run", "--to", "model.safetensors")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"model.safetensors: 2 tensors, 3 numbers, of run/checkpoints/{BEST}\n"
    assert_equal(load_file(run.parent / "model.safetensors"), state_of(run, BEST)["model"])
    torch.nn.Linear(2, 1).load_state_dict(load_file(run.parent / "model.safetensors"))
    with safe_open(run.parent / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "checkpoint": BEST, "object": "model"}


@pytest.mark.parametrize(
    ("run_or_checkpoint", "options", "written"),
    [
        ("run", ["--checkpoint", LAST], LAST),
        ("run", ["--checkpoint", "newest"], FINISHED),
        (f"run/checkpoints/{LAST}", [], LAST),
    ],
)
def test_another_checkpoint_can_be_chosen(
    run_or_checkpoint: str, options: list[str], written: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["export", run_or_checkpoint, "--to", "model.safetensors", *options]) == 0
    assert_equal(load_file("model.safetensors"), state_of(run, written)["model"])


def test_the_newest_is_written_where_nothing_tells_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    for iteration in (1, 2):
        store.write(
            f"iteration={iteration}", {"model": {"x": torch.tensor(iteration)}}, {"iteration": iteration, "epoch": 1}
        )
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "model.safetensors")]) == 0
    assert load_file(tmp_path / "model.safetensors")["x"] == 2


def test_the_averages_can_be_written_instead_of_the_weights(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--ema", "--to", str(tmp_path / "averages.safetensors")]) == 0
    state = state_of(run, BEST)
    assert_equal(load_file(tmp_path / "averages.safetensors"), state["camshaft"]["handlers"]["EMA"]["averages"])
    assert not torch.equal(load_file(tmp_path / "averages.safetensors")["weight"], state["model"]["weight"])


def test_tied_and_transposed_weights_are_written_in_full(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    model = {"encoder": weight, "decoder": weight, "transposed": weight.T, "half": weight.to(torch.bfloat16)}
    CheckpointStore(tmp_path / "checkpoints").write("iteration=1", {"model": model}, {"iteration": 1, "epoch": 1})
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "model.safetensors")]) == 0
    assert_equal(load_file(tmp_path / "model.safetensors"), model)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere", "--to", "m.safetensors"], "nowhere does not exist."),
        (["run/run.json", "--to", "m.safetensors"], "run/run.json is a file"),
        (["run", "--to", "m.pt"], "m.pt does not end in .safetensors"),
        (["run", "--to", "nowhere/m.safetensors"], "there is no directory nowhere."),
        (["run", "--to", "folder.safetensors"], "folder.safetensors could not be written"),
        (["run", "--to", "m.safetensors", "--object", "generator"], "has no 'generator'; it has model, optimizer."),
        (["run", "--to", "m.safetensors", "--object", "optimizer"], "'optimizer' in "),
        (["run", "--to", "m.safetensors", "--checkpoint", "best"], "run has no checkpoint best; it has iteration="),
        (["other", "--to", "m.safetensors", "--ema"], "has no averages of these tensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_exported_gives_one_line_and_status_2(
    arguments: list[str],
    complaint: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parent)
    Path("folder.safetensors").mkdir()
    state = {"model": {"x": torch.zeros(1)}, "camshaft": {"handlers": {}}}
    CheckpointStore("other/checkpoints").write("iteration=1", state, {"iteration": 1, "epoch": 1})
    assert main(["export", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("camshaft: ")
    assert complaint in line
    assert sorted(path.name for path in Path().iterdir()) == ["folder.safetensors", "other", "run"]


def test_without_safetensors_it_says_how_to_get_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)  # as if it were not installed
    assert main(["export", str(run), "--to", str(run / "m.safetensors")]) == 2
    assert capsys.readouterr().err == "camshaft: export needs safetensors: pip install 'camshaft[export]'.\n"
