"""What these tests share: each shows one handler on several engines, and ``--matrix`` prints which works on which.

A test marked ``row(table, name, …)`` fills the cells of those rows, in the column that its fixture stands for.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine import Engine
from tests.interop.same import assert_same

Program = Callable[[type[IgniteEngine], Path], Any]

TABLES = {
    "ignite": ("What is Ignite's", {"camshaft": "Camshaft's Engine", "ignite": "Ignite's Engine"}),
    "camshaft": (
        "Camshaft's handlers",
        {"camshaft": "Camshaft's Engine", "ignite": "Ignite's Engine", "supervised": "Ignite's supervised trainer"},
    ),
}


# --------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(params=["camshaft", "ignite"])
def outcome_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Program], Any]:
    """Runs ``program(engine_class, directory)`` and returns what it returns.

    On ours it is run on Ignite's engine as well, in a directory of its own, and must return the same to the bit.
    """

    def run(program: Program, engine_class: type[IgniteEngine], name: str) -> Any:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the generator that Ignite draws from
        torch.manual_seed(0)
        directory = tmp_path / name / "run"
        directory.mkdir(parents=True)
        return program(engine_class, directory)

    def outcome(program: Program) -> Any:
        on_ignites = run(program, IgniteEngine, "ignite")
        if request.param == "ignite":
            return on_ignites
        on_ours = run(program, Engine, "camshaft")
        assert_same(on_ours, on_ignites)
        return on_ours

    return outcome


@pytest.fixture(scope="session")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each of the two processes of ``parallel_program.py`` returned, by the name of the program."""
    script = Path(__file__).with_name("parallel_program.py")
    directory = tmp_path_factory.mktemp("parallel")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", script, directory],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=200,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ranks = [json.loads((directory / f"rank{rank}.json").read_text()) for rank in range(2)]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


# ----------------------------------------------------------------------------------------------------------- matrix


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="print which handler was tested on which engine")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(table, *names): the rows of the matrix that this test fills")


def pytest_itemcollected(item: pytest.Item) -> None:
    for mark in item.iter_markers("row"):
        table, *names = mark.args
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        (column,) = [value for value in parameters.values() if isinstance(value, str) and value in TABLES[table][1]]
        item.user_properties += [("cell", (table, name, column)) for name in names]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--matrix", default=False):
        for line in matrix(terminalreporter.stats):
            terminalreporter.write_line(line)


def matrix(stats: dict[str, list[Any]]) -> Iterator[str]:
    """The lines of the tables, from pytest's reports: each cell says how all tests of it went."""
    cells: dict[tuple[str, str, str], list[str]] = {}
    notes: list[str] = []
    for outcome in ("passed", "skipped", "failed", "error"):
        for report in stats.get(outcome, []):
            for place in [tuple(value) for key, value in report.user_properties if key == "cell"]:
                cells.setdefault(place, []).append(_entry(outcome, report, notes))
    for table, (title, columns) in TABLES.items():
        rows = list(dict.fromkeys(name for (of, name, _) in cells if of == table))
        if not rows:
            continue
        lines = [(title, *columns.values())]
        lines += [
            (name, *(", ".join(dict.fromkeys(cells.get((table, name, column), ["-"]))) for column in columns))
            for name in sorted(rows, key=str.lower)
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, tuple("-" * width for width in widths))
        yield ""
        yield from ("  ".join(f"{entry:{width}}" for entry, width in zip(line, widths, strict=True)) for line in lines)
    yield ""
    for number, note in enumerate(notes, 1):
        yield from textwrap.wrap(note, 116, initial_indent=f"[{number}] ", subsequent_indent="    ")


def _entry(outcome: str, report: Any, notes: list[str]) -> str:
    word, note = {"passed": "pass", "skipped": "not run"}.get(outcome, "FAILED"), ""
    if outcome == "skipped":
        note = str(report.longrepr[2]).removeprefix("Skipped: ")
    elif refusal := dict(report.user_properties).get("refused"):
        word, note = "refused", str(refusal)
    if not note:
        return word
    if note not in notes:
        notes.append(note)
    return f"{word} [{notes.index(note) + 1}]"
