"""What docs/from-ignite.md promises: the program before and the program after differ in one line.

That every block runs is shown in test_code_blocks.py; that the two programs train the same weights is checked in the
guide itself, in comments.
"""

from __future__ import annotations

import difflib
import re

import pytest

from camshaft import handlers
from tests.docs.code_blocks import ROOT, blocks_of, program_of

GUIDE = ROOT / "docs" / "from-ignite.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def test_one_line_changes() -> None:
    before, after = (block.splitlines() for block in blocks_of(TEXT)[:2])
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert changes == ["- from ignite.engine import Engine, Events", "+ from camshaft import Engine, Events"]


def test_the_results_before_and_after_are_compared() -> None:
    program = program_of(TEXT)
    assert "assert evaluator.state.metrics == before" in program
    assert "assert all(torch.equal(weight, before" in program


def test_it_admits_the_versions_that_setup_does() -> None:
    (least, below) = re.search(r"pytorch-ignite>=([\d.]+),<([\d.]+)", (ROOT / "setup.cfg").read_text()).groups()
    assert f"Ignite {least} or later, before {below}" in TEXT
    assert f"PyTorch-Ignite {least} or later" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z][A-Za-z]+)[(`]", TEXT)) & set(handlers.__all__)))
def test_every_handler_that_it_names_is_there(name: str) -> None:
    assert getattr(handlers, name)
