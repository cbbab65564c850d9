"""The table of README.md: how long Camshaft and its peers take, over a loop written by hand, from RESULTS.md.

python benchmarks/figures.py  # writes it, as `make bench` does at its end
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
SHOWN_IN = (ROOT / "README.md", ROOT / "docs" / "comparison.md")

BEGIN, END = "<!-- figures: from benchmarks/RESULTS.md by benchmarks/figures.py -->", "<!-- end of figures -->"

# What is told, the section with its table, the beginning of the table's heading, and which of its numbers is the ratio.
ROWS = (
    ("an iteration with nothing but the training", "full_set", "nothing but the training", 2),
    ("with accumulation, clipping, bf16, validation, checkpoints, …", "full_set", "the full set", 2),
    ("handwritten digits to 96 % accuracy", "whole_runs", "digits:", 2),
    ("a small transformer to 45 % accuracy", "whole_runs", "characters:", 2),
    ("from starting Python to the first optimizer step", "startup", "program", 1),
)
COLUMNS = {"Camshaft": "Camshaft", "Ignite": "Ignite", "Fabric": "Fabric", "Accelerate": "Accelerate"}
COLUMNS |= {"TorchTNT": "TorchTNT", "Lightning": "Lightning", "Keras on torch": "Keras"}


def figures(results: str) -> str:
    """The table in Markdown.

    Args:
        results: the text of RESULTS.md. A ratio that it does not have is left out.
    """
    lines = [
        f"| time over that of a loop by hand | {' | '.join(COLUMNS.values())} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for told, section, heading, place in ROWS:
        ratios = ratios_of(table_of(results, section, heading), place)
        lines.append(f"| {told} | {' | '.join(ratios.get(name, '') for name in COLUMNS)} |")
    return "\n".join(lines)


def table_of(results: str, section: str, heading: str) -> str:
    """The lines of a table below its heading, up to an empty one."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", results, re.MULTILINE | re.DOTALL)
    table = re.search(rf"^{re.escape(heading)}.*\n((?:.+\n)*)", text[1] if text else "", re.MULTILINE)
    return table[1] if table else ""


def ratios_of(table: str, place: int) -> dict[str, str]:
    """By name, the number at a place among those of its line, in two digits or three."""
    found = {}
    for line in table.splitlines():
        row = re.match(r"([A-Za-z ]+?) +((?:[\d.]+ +)+)", f"{line} ")
        numbers = row[2].split() if row else []
        if row and len(numbers) > place:
            ratio = float(numbers[place])
            found[row[1]] = f"{ratio:.2f}" if ratio < 1.995 else f"{ratio:.1f}"
    return found


def write(path: Path) -> None:
    """Put the table between the marks of a text."""
    text = path.read_text(encoding="utf-8")
    table = figures(RESULTS.read_text(encoding="utf-8"))
    between = re.compile(f"(?<={re.escape(BEGIN)}\n\n).*?(?=\n\n{re.escape(END)})", re.DOTALL)
    path.write_text(between.sub(lambda _: table, text), encoding="utf-8")


if __name__ == "__main__":
    for path in SHOWN_IN:
        if path.exists():
            write(path)
