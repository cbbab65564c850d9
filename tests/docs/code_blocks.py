"""The python in a text: its blocks, and with them the checks that stand in comments, as one program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "blocks_of", "program_of", "run"]

ROOT = Path(__file__).parents[2]

# What readers see, and what they need not see: preparations and checks in a comment.
_SHOWN = r"^```python\n(?P<shown>.*?)^```$"
_HIDDEN = r"^<!-- python\n(?P<hidden>.*?)^-->$"


def blocks_of(text: str) -> list[str]:
    """The blocks of python that readers see."""
    return [match["shown"] for match in re.finditer(_SHOWN, text, re.DOTALL | re.MULTILINE)]


def program_of(text: str) -> str:
    """All blocks as one program, each line where it stands in the text, so that an error names that line."""
    program = [""] * (text.count("\n") + 1)
    for match in re.finditer(f"{_SHOWN}|{_HIDDEN}", text, re.DOTALL | re.MULTILINE):
        code = match["shown"] if match["shown"] is not None else match["hidden"]
        first = text.count("\n", 0, match.start()) + 1
        lines = code.splitlines()
        program[first : first + len(lines)] = lines
    return "\n".join(program)


def run(path: Path, directory: Path) -> None:
    """Run the program of a text in ``directory``, which is empty.

    Raises:
        AssertionError: it failed; the message is what it printed.
    """
    program = directory / f"{path.stem}.py"
    program.write_text(program_of(path.read_text(encoding="utf-8")), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, program.name],
        check=False,
        cwd=directory,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=280,
    )
    assert ended.returncode == 0, f"{path.name} does not run as it stands there:\n{ended.stdout}{ended.stderr}"
