"""Examples as they run from the command line, but in this process, which has imported torch already."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.examples.running import Ended, Run

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], Run]]:
    """``run = example("digits.py")``, then ``run("--seed", "1")``: each in the empty directory of the test."""
    monkeypatch.chdir(tmp_path)

    def of(name: str) -> Run:
        def run(*arguments: str | Path) -> Ended:
            monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *map(str, arguments)])
            status = 0
            try:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
            except SystemExit as exit_:
                status = exit_.code
            return Ended(status, *capsys.readouterr())

        return run

    threads = torch.get_num_threads()
    yield of
    torch.set_num_threads(threads)
