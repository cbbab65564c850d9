"""`camshaft plot`: the learning curves of one run, or of several in comparison."""

import argparse
from pathlib import Path

from camshaft.commands import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Runs and a picture."""
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="a run's directory, or a CSV, JSON lines or TensorBoard file"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path("curves.png"), help="(default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture, print where it is, and return 0."""
    try:
        from camshaft.curves import plot_curves

        print(plot_curves(arguments.runs, arguments.output))
    except ImportError as error:
        raise CommandError("plot needs matplotlib: pip install 'camshaft[vision]'.") from error
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}." if error.strerror else str(error)) from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    return 0
