"""Reads and writes ``run.json``, in which a run is described; without torch, for commands that only look at runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

__all__ = ["RECORD_FILE", "as_json", "read_record", "write_record"]

RECORD_FILE = "run.json"


def as_json(value: object) -> str:
    """What is kept of a value that JSON does not know: of a path its text, of others their representation.

    Example:
        >>> as_json(Path("runs/first")), as_json({1})
        ('runs/first', '{1}')
    """
    return str(value) if isinstance(value, PurePath) else repr(value)


def read_record(directory: Path) -> dict[str, Any]:
    """What ``run.json`` in the directory of a run says, or nothing where there is none that can be read."""
    try:
        record = json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Write it, what JSON does not know as :func:`as_json` says. The file is whole at every instant.

    Args:
        directory: of the run; made if it is not there.
        record: to write.

    Raises:
        OSError: it cannot be written; the message says where.
    """
    path = directory / RECORD_FILE
    beside = path.with_name(f".writing-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(record, indent=1, default=as_json) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise OSError(f"The record of the run, {path}, could not be written: {error.strerror}.") from error
