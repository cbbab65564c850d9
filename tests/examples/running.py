"""What came of an example, and what it printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Ended", "Run", "digest_of", "digests_of_whole_and_resumed"]


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


def digests_of_whole_and_resumed(run: Run, *arguments: str) -> tuple[str, str]:
    """Of two epochs in one go, and of the second one from the checkpoint behind the first."""
    arguments = (*arguments, "--max-epochs", "2")
    whole = run(*arguments, "--run-dir", "whole")
    (checkpoint,) = Path("whole/checkpoints").glob("*epoch=1")
    return digest_of(whole.out), digest_of(run(*arguments, "--run-dir", "resumed", "--resume", checkpoint).out)
