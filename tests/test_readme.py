"""What the README shows works as it stands there."""

import re
import runpy
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.splitlines()[0])
def test_every_program_is_python(program: str) -> None:
    compile(program, "README.md", "exec")


@pytest.mark.slow
def test_the_whole_program_learns_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAMS[0], encoding="utf-8")
    names = runpy.run_path("program.py", run_name="__main__")
    assert names["trainer"].state.metrics["val_accuracy"] > 0.9
    assert any((tmp_path / "runs" / "digits").iterdir())
