"""The tables of measured figures are those of the newest measurement."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.docs.code_blocks import ROOT

spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)

RESULTS = """# Results

## full_set

```text
nothing but the training fastest   median    ratio   of fastest   weights
by hand                     60.5     81.8    1.000        1.000   same bits
Camshaft                    51.0     51.2    0.841        0.843   same bits   goal 1.05: reached
Keras on torch             950.6    950.6   14.568       14.568   others

the full set             fastest   median    ratio   of fastest   weights
Camshaft                    92.4    161.1    0.890        0.927   same bits   goal 1.05: reached
```

## startup

```text
program     median s  to bare loop  lowest to highest
Camshaft        3.52         1.376     0.899 to 1.746
```
"""


@pytest.mark.parametrize("path", figures.SHOWN_IN, ids=lambda path: path.name)
def test_a_text_shows_what_was_measured(path: Path) -> None:
    before = path.read_text(encoding="utf-8")
    shown = before.partition(f"{figures.BEGIN}\n\n")[2].partition(f"\n\n{figures.END}")[0]
    assert shown == figures.figures(figures.RESULTS.read_text(encoding="utf-8")), "run python benchmarks/figures.py"


def test_each_ratio_stands_in_its_row_and_column() -> None:
    _, _, alone, full, *_, start = figures.figures(RESULTS).splitlines()
    assert alone == "| an iteration with nothing but the training | 0.84 |  |  |  |  |  | 14.6 |"
    assert full.endswith("| 0.89 |  |  |  |  |  |  |")
    assert start.endswith("| 1.38 |  |  |  |  |  |  |")
