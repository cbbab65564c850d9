"""Hyperparameters in files of their own, as programs for Lightning write and read them."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camshaft.contrib.lightning.loading import hyperparameters_of_file
from camshaft.contrib.lightning.loggers.hyperparameters import write_yaml

__all__ = [
    "load_hparams_from_tags_csv",
    "load_hparams_from_yaml",
    "save_hparams_to_tags_csv",
    "save_hparams_to_yaml",
]


def load_hparams_from_yaml(config_yaml: str | Path, use_omegaconf: bool = False) -> dict[str, Any]:
    """The hyperparameters in a YAML file.

    Args:
        config_yaml: the file.
        use_omegaconf: not supported: they come as a dictionary.

    Raises:
        ValueError: a container of OmegaConf is asked for.
    """
    if use_omegaconf:
        raise ValueError("load_hparams_from_yaml gives a dictionary: OmegaConf.create(...) makes a container of it.")
    return hyperparameters_of_file(config_yaml)


def save_hparams_to_yaml(config_yaml: str | Path, hparams: Mapping[str, Any] | Namespace) -> None:
    """Write hyperparameters to a YAML file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_hparams_to_yaml(f"{folder}/hparams.yaml", Namespace(lr=0.1, layers=[2, 3]))
        ...     load_hparams_from_yaml(f"{folder}/hparams.yaml")
        {'layers': [2, 3], 'lr': 0.1}
    """
    write_yaml(Path(config_yaml), _as_mapping(hparams))


def load_hparams_from_tags_csv(tags_csv: str | Path) -> dict[str, Any]:
    """The hyperparameters in a CSV file of keys and values."""
    return hyperparameters_of_file(tags_csv)


def save_hparams_to_tags_csv(tags_csv: str | Path, hparams: Mapping[str, Any] | Namespace) -> None:
    """Write hyperparameters to a CSV file of keys and values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_hparams_to_tags_csv(f"{folder}/tags.csv", {"lr": 0.1, "name": "net"})
        ...     load_hparams_from_tags_csv(f"{folder}/tags.csv")
        {'lr': 0.1, 'name': 'net'}
    """
    with Path(tags_csv).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("key", "value"), *_as_mapping(hparams).items()])


def _as_mapping(hparams: Mapping[str, Any] | Namespace) -> Mapping[str, Any]:
    return vars(hparams) if isinstance(hparams, Namespace) else hparams
