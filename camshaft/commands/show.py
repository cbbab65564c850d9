"""`camshaft show`: what a run was started with, on what, what was attached, and how it went."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from camshaft.commands import CommandError
from camshaft.commands.run_directory import check_directory
from camshaft.commands.run_overview import RunOverview, duration, mode_of, overview_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run, and whether its uncommitted changes are wanted."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a run")
    parser.add_argument(
        "--diff",
        action="store_true",
        help="print only what differed from the commit, as a patch: camshaft show RUN --diff | git apply",
    )
    parser.add_argument("--events", action="store_true", help="print only the table of events and handlers")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of the run, and return 0."""
    check_directory(arguments.run)
    one = overview_of(arguments.run)
    if not one.record and one.iteration is None:
        raise CommandError(
            f"{arguments.run} is no run: it has no run.json, where Checkpoint and RunRecord note how it was started."
        )
    if arguments.diff:
        print(_diff_of(one), end="")
    elif arguments.events:
        print("\n".join(one.record.get("events", [])))
    else:
        for title, entries in _sections(one):
            if entries:
                print(title)
                width = max(map(len, entries))
                print("\n".join(f"  {name:<{width}}  {value}".rstrip() for name, value in entries.items()))
    return 0


def _diff_of(one: RunOverview) -> str:
    git = one.record.get("git")
    if git is None:
        raise CommandError(f"{one.directory} was not started from a repository of git.")
    if "diff" not in git:
        raise CommandError(f"The diff of {one.directory} was not kept: {git.get('diff_left_out', 'unknown')}.")
    return str(git["diff"])


def _sections(one: RunOverview) -> Iterator[tuple[str, Mapping[str, str]]]:
    record = one.record
    yield str(one.directory), _how_it_went(one)
    modes = {name: mode_of(name, [one]) for name in one.values}
    for title, best in (("best values", True), ("last values", False)):
        yield (
            title,
            {
                name: f"{values.best(modes[name]):.6g}"
                for name, values in one.values.items()
                if (modes[name] is not None) == best
            },
        )
    yield "configuration", {name: str(value) for name, value in record.get("configuration", {}).items()}
    yield (
        "models",
        {
            name: f"{model['class']}, {model['parameters']:,} parameters, {model['trained']:,} of them trained"
            for name, model in record.get("models", {}).items()
        },
    )
    yield "attached", dict.fromkeys(record.get("attached", []), "")
    yield "code", _code(record.get("git", {}))
    yield "hardware", _hardware(record.get("hardware", {}))
    yield "versions", {"python": record.get("python", "?"), **record.get("versions", {})} if record else {}


def _how_it_went(one: RunOverview) -> dict[str, str]:
    record = one.record
    ended, length = record.get("ended", {}), record.get("run", {})
    went = {"status": one.status}
    if "error" in ended and one.status == "failed":
        went["error"] = ended["error"]
    if one.iteration is not None:
        epoch = "?" if one.epoch is None else str(one.epoch)
        of = f" of {length['max_epochs']}" if length.get("max_epochs") else ""
        went["reached"] = f"epoch {epoch}{of}, iteration {one.iteration}"
    if "started" in record:
        before = record.get("seconds_before")
        earlier = f", of it {duration(before)} in earlier processes" if before else ""
        started = datetime.fromisoformat(record["started"]).isoformat(timespec="seconds")
        went |= {"started": started, "duration": f"{duration(one.seconds)}{earlier}"}
    if record.get("typed_in"):
        went["command"] = one.command
    elif "argv" in record:
        went["command"] = f"cd {shlex.quote(record.get('cwd') or '?')} && {shlex.join(record['argv'])}"
    if record.get("processes", 1) > 1:
        went["processes"] = str(record["processes"])
    if "seed" in record:
        went["seed"] = str(record["seed"])
    return went


def _code(git: Mapping[str, Any]) -> dict[str, str]:
    if not git:
        return {}
    diff = git.get("diff")
    if diff is None:
        changed = git.get("diff_left_out", "?")
    elif diff:
        lines = diff.splitlines()
        files = sum(line.startswith("diff --git ") for line in lines)
        changed = f"{files} file{'s' * (files > 1)} differ{'s' * (files == 1)} from the commit: add --diff to see how"
    else:
        changed = "none"
    untracked = git.get("untracked", [])
    more = f" and {len(untracked) - 3} more" if len(untracked) > 3 else ""
    return {
        "commit": f"{git.get('commit', '?')} ({git.get('branch') or '?'})",
        "changes": changed,
        **({"untracked": ", ".join(untracked[:3]) + more} if untracked else {}),
    }


def _hardware(hardware: Mapping[str, Any]) -> dict[str, str]:
    shown = {}
    for name, value in hardware.items():
        if name == "memory_bytes":
            shown["memory"] = f"{value / 2**30:.1f} GiB"
        elif isinstance(value, list):
            shown[name] = ", ".join(map(str, value))
        else:
            shown[name] = str(value)
    return shown
