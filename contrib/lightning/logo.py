"""What Lightning's examples begin with."""

import sys

from camshaft import __version__

__all__ = ["cli_lightning_logo"]


def cli_lightning_logo() -> None:
    """Say on the terminal what runs the program.

    Example:
        >>> cli_lightning_logo()
        Camshaft ..., under Lightning's names.
    """
    sys.stdout.write(f"Camshaft {__version__}, under Lightning's names.\n")
