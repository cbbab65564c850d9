"""`camshaft env`: what a report of a bug should say about the machine it happened on."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

from camshaft import __version__

DISTRIBUTIONS = ("torch", "pytorch-ignite", "tensorboardX", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`camshaft env` has no arguments of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Print one line for each version, and return 0."""
    versions = {"camshaft": __version__, "python": platform.python_version(), "platform": platform.platform()}
    # Read from the installed metadata: importing torch would take seconds.
    versions |= {distribution: _installed_version(distribution) for distribution in DISTRIBUTIONS}
    width = max(map(len, versions))
    for name, value in versions.items():
        print(f"{name:<{width}}  {value}")
    return 0


def _installed_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
