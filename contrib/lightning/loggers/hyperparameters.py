"""Hyperparameters in the forms that files and services take: flat, plain, or as YAML."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camshaft.contrib.loggers.parameters import as_mapping, as_plain, flattened

__all__ = ["as_mapping", "as_plain", "flattened", "write_yaml"]


def write_yaml(path: Path, params: Mapping[str, Any]) -> None:
    """Write hyperparameters to a YAML file, which is whole at every instant.

    Args:
        path: of the file.
        params: the hyperparameters.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_yaml(Path(directory, "hparams.yaml"), {"lr": 0.1, "layers": (16, 4)})
        ...     print(Path(directory, "hparams.yaml").read_text())
        layers:
        - 16
        - 4
        lr: 0.1
        <BLANKLINE>
    """
    try:
        import yaml  # type: ignore[import-untyped] # noqa: PLC0415 - comes with the extra "lightning"
    except ModuleNotFoundError:
        warnings.warn(f"{str(path)!r} is not written, because that needs: pip install pyyaml", stacklevel=2)
        return
    beside = path.with_name(path.name + ".new")
    beside.write_text(yaml.safe_dump(as_plain(params), allow_unicode=True), encoding="utf-8")
    beside.replace(path)
