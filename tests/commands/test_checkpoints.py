"""`camshaft checkpoints` says what there is to go on with."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from camshaft.__main__ import main
from camshaft.handlers.checkpoint_store import CheckpointStore

BEST, LAST, FINISHED = "iteration=00000008,epoch=2", "iteration=00000012,epoch=3", "iteration=00000012,finished"


def table(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


def test_each_checkpoint_has_a_line_with_its_position_value_size_and_state(
    run: Path, camshaft: Callable[..., object]
) -> None:
    ended = camshaft("checkpoints", "run")
    assert (ended.returncode, ended.stderr) == (0, "")
    header, *rows = table(ended.stdout)
    assert header == ["checkpoint", "iteration", "epoch", "score", "size", "state"]
    size = sum(file.stat().st_size for file in (run / "checkpoints" / BEST).iterdir())
    assert rows[0] == [BEST, "8", "2", "0.75", f"{size / 1e3:.1f} kB", "whole, best"]
    assert rows[1][:4] == [LAST, "12", "3", "0.25"]
    assert [rows[1][-1], rows[2][0], rows[2][-1]] == ["whole", FINISHED, "whole, finished"]


def test_the_folder_of_the_checkpoints_may_be_named_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(run / "checkpoints")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_best_is_the_least_where_less_is_better(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(run / "checkpoints")
    for epoch, value in enumerate((0.5, float("nan"), 0.25, 0.5), start=4):
        position = {"iteration": 4 * epoch, "epoch": epoch, "value": value, "finished": False}
        store.write(f"iteration={4 * epoch:08d}", {}, {**position, "monitor": "loss", "mode": "min"})
    main(["checkpoints", str(run)])
    rows = table(capsys.readouterr().out)
    assert [row[0] for row in rows if "best" in row[-1]] == ["iteration=00000024"]
    assert rows[0][3] == "loss"


def test_without_a_monitored_value_there_is_no_column_of_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    position = {"iteration": 4, "epoch": 1, "value": None, "finished": False}
    CheckpointStore(tmp_path / "checkpoints").write("iteration=4", {}, position)
    main(["checkpoints", str(tmp_path)])
    header, row = table(capsys.readouterr().out)
    assert header == ["checkpoint", "iteration", "epoch", "size", "state"]
    assert (row[:3], row[-1]) == (["iteration=4", "4", "1"], "whole")


def test_one_flipped_bit_is_found_and_makes_the_status_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = run / "checkpoints" / LAST / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    assert main(["checkpoints", str(run)]) == 1
    states = {row[0]: row[-1] for row in table(capsys.readouterr().out)}
    assert states[LAST].startswith("broken: state.pt is not what was written (")
    assert states[BEST] == "whole, best"


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda path: (path / "state.pt").unlink(), "broken: No such file or directory"),
        (lambda path: (path / "metadata.json").unlink(), "broken: metadata.json: No such file or directory"),
        (lambda path: (path / "metadata.json").write_text('{"iteration": 1'), "broken: metadata.json: JSONDecodeError"),
        (
            lambda path: (path / "metadata.json").write_text(json.dumps({"iteration": 1, "sha256": "0"})),
            "broken: metadata.json is not what was written",
        ),
    ],
    ids=["state gone", "metadata gone", "metadata truncated", "metadata changed"],
)
def test_what_is_broken_is_listed_with_the_reason(
    break_it: Callable[[Path], object], reason: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it(run / "checkpoints" / LAST)
    assert main(["checkpoints", str(run)]) == 1
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith(LAST)]
    assert len(broken) == 1
    assert reason in broken[0]


def test_what_a_killed_process_left_unfinished_is_not_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / ".writing-iteration=00000016,epoch=4").mkdir()
    main(["checkpoints", str(run)])
    assert "writing" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("nowhere", "nowhere does not exist."),
        ("run/run.json", "run/run.json is a file, not the directory of a run."),
        ("run/checkpoints/" + BEST, f"run/checkpoints/{BEST} has no checkpoints."),
        (".", ". has no checkpoints."),
    ],
)
def test_a_wrong_path_gives_one_line_and_status_2(
    path: str, complaint: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["checkpoints", path]) == 2
    assert capsys.readouterr().err == f"camshaft: {complaint}\n"


def test_listing_does_not_import_torch(run: Path) -> None:
    program = f"""if True:
        import sys
        from camshaft.__main__ import main
        main(["checkpoints", {str(run)!r}])
        sys.exit(sorted({{"torch", "ignite", "numpy"}} & sys.modules.keys()) or 0)
    """
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)
