"""Runs the benchmarks and writes what they print to RESULTS.md: ``make bench``.

    python benchmarks/run_all.py                    # all of them
    python benchmarks/run_all.py full_set scaling   # these; what the others printed last is kept
    python benchmarks/run_all.py --quick            # smaller settings, for a look

Each section says when it was measured and how busy the machine was. The goals at the top are gathered from the lines of
all sections that say whether one was reached.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import figures

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"

# In the order of RESULTS.md, with the options that make a run shorter.
BENCHMARKS: dict[str, list[str]] = {
    "full_set": ["--repeats", "3", "--batches", "500"],
    "scaling": ["--iterations", "1000000", "--trained", "20000", "--repeats", "3"],
    "startup": ["--rounds", "3"],
    "whole_runs": ["--repeats", "1", "--peers", "none"],
    "engine": ["--repeats", "3"],
    "lightning": ["--repeats", "3"],
    "data": ["--repeats", "3"],
    "compile": ["--repeats", "3"],
    "checkpoint": ["--repeats", "2"],
    "distributed": ["--repeats", "1"],
}

PACKAGES = ("torch", "pytorch-ignite", "lightning", "accelerate", "torchtnt", "keras", "numpy")

# Why a goal is not reached, and what was tried: shown where the line that begins so says MISSED.
REASONS: dict[tuple[str, str], str] = {
    ("distributed", "  camshaft"): (
        "On one process it lies at the goal, now above it, now below: 0.97, 0.98 and 1.02 in three measurements of one "
        "day, whose repeats differ by more. Of the time of the processor a step takes 1 % more than by hand (3.68 ms, "
        "3.64 by hand), and no handler stands out in it. More repeats on a quieter machine were tried; they moved it "
        "either way."
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="smaller settings")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {min(unknown)!r}, only {', '.join(BENCHMARKS)}")

    sections = sections_of(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    failed = []
    for name in options.names or BENCHMARKS:
        if not (HERE / f"{name}.py").exists():
            continue
        print(f"{name} …", flush=True)
        section = run(name, BENCHMARKS[name] if options.quick else [])
        if section is None:
            failed.append(name)
            continue
        sections[name] = section
        RESULTS.write_text(document(sections), encoding="utf-8")  # each at once: a later one may be interrupted
    for text in figures.SHOWN_IN:
        if text.exists():
            figures.write(text)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their sections are as they were")


def run(name: str, arguments: list[str]) -> str | None:
    """Run one benchmark and give its section, or None if it failed."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    load, began, date = os.getloadavg()[0], time.monotonic(), datetime.now(timezone.utc)
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    print(finished.stdout, flush=True)
    if finished.returncode:
        return None
    told = re.match(r'"""(.*?)\n\n', (HERE / f"{name}.py").read_text(encoding="utf-8"), re.DOTALL)
    lines = [
        told[1].replace("\n", " ") if told else "",
        "",
        f"`{' '.join(['python', f'benchmarks/{name}.py', *arguments])}`, {date:%Y-%m-%d %H:%M} UTC, "
        f"{time.monotonic() - began:.0f} s; load of the machine before {load:.1f}, after {os.getloadavg()[0]:.1f}",
        "",
        "```text",
        *(line.rstrip() for line in finished.stdout.strip("\n").splitlines()),
        "```",
        *(f"\n{why}" for start, why in reasons(name) if missed(finished.stdout, start)),
    ]
    return "\n".join(lines)


def reasons(name: str) -> list[tuple[str, str]]:
    return [(start, why) for (benchmark, start), why in REASONS.items() if benchmark == name]


def missed(output: str, start: str) -> bool:
    return any(line.startswith(start) and "MISSED" in line for line in output.splitlines())


def document(sections: dict[str, str]) -> str:
    """The whole of RESULTS.md."""
    goals = [
        f"| `{name}.py` | {'reached' if 'MISSED' not in line else '**missed**'} | {' '.join(line.split())} |"
        for name in BENCHMARKS
        for line in sections.get(name, "").splitlines()
        if "reached" in line or "MISSED" in line
    ]
    absent = [
        f"- `{name}.py`: {line.strip()}"
        for name in BENCHMARKS
        for line in sections.get(name, "").splitlines()
        if " is left out: " in line
    ]
    lines = [
        "# Results of the benchmarks",
        "",
        "Written by `make bench`; `make bench ARGS='scaling startup'` measures some anew. Where other programs ran",
        "meanwhile (see the load), a time alone says little: compare within a table, whose ways were run in turns, and",
        "there the ratios, which are medians of the ratios of neighbouring runs.",
        "",
        f"Machine: {processor()}, {os.cpu_count()} cores, {memory()}, {platform.platform(terse=True)}.",
        "",
        f"Versions: Python {platform.python_version()}, {', '.join(versions())}.",
        "",
        *(["Peers that are missing below:", "", *absent, ""] if absent else []),
        "| benchmark | goal | as printed |",
        "|---|---|---|",
        *goals,
        *(f"\n## {name}\n\n{sections[name]}" for name in BENCHMARKS if name in sections),
    ]
    return "\n".join(lines) + "\n"


def sections_of(text: str) -> dict[str, str]:
    """The sections of an earlier RESULTS.md, by benchmark."""
    parts = re.split(r"^## (\w+)\n\n", text, flags=re.MULTILINE)[1:]
    return {name: section.rstrip("\n") for name, section in zip(parts[::2], parts[1::2], strict=True)}


def processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (OSError, ValueError):
        return "memory unknown"


def versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return found


if __name__ == "__main__":
    main()
