"""Which files of a ModelCheckpoint a logger has not uploaded yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Checkpoint", "new_checkpoints"]


class Checkpoint(NamedTuple):
    """A file that a ModelCheckpoint has saved.

    Attributes:
        saved_at: when it was changed last.
        path: where it is.
        score: the value of the monitored metric, if there is one.
        aliases: what it is called: ``"latest"``, and perhaps ``"best"``.
    """

    saved_at: float
    path: Path
    score: float | None
    aliases: list[str]


def new_checkpoints(callback: Any, uploaded: Mapping[str, float]) -> list[Checkpoint]:
    """The files that were saved since they were uploaded, the oldest first.

    Args:
        callback: a ``ModelCheckpoint``.
        uploaded: when files were saved that were uploaded, by their paths.

    Example:
        >>> from types import SimpleNamespace
        >>> new_checkpoints(SimpleNamespace(best_model_path="", best_model_score=None), {})
        []
    """
    best = getattr(callback, "best_model_path", "")
    scores = {
        getattr(callback, "last_model_path", ""): getattr(callback, "current_score", None),
        best: getattr(callback, "best_model_score", None),
        **getattr(callback, "best_k_models", {}),
    }
    found = [
        Checkpoint(
            Path(path).stat().st_mtime,
            Path(path),
            None if score is None else float(score),
            ["latest", "best"] if path == best else ["latest"],
        )
        for path, score in scores.items()
        if path and Path(path).is_file()
    ]
    return sorted(checkpoint for checkpoint in found if uploaded.get(str(checkpoint.path), -1.0) < checkpoint.saved_at)
