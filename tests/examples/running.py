"""What came of an example, and what it printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Ended", "Run", "digest_of"]


class Ended(NamedTuple):
    """What came of a program."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]


def digest_of(out: str) -> str:
    """The SHA-256 in the last line."""
    found = re.fullmatch(r"weights sha256: ([0-9a-f]{64})", out.splitlines()[-1])
    assert found, out
    return found[1]
