"""The command line: `camshaft`, or `python -m camshaft`."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from camshaft import __version__
from camshaft.commands import CommandError

# Each command is a module in `camshaft/commands/` of the same name, with `add_arguments(parser)` and
# `run(arguments) -> exit status`. Only the module of the command that was asked for is imported.
COMMANDS = {
    "checkpoints": "list the checkpoints of a run, and say which are whole",
    "diff": "show where two checkpoints differ",
    "env": "print the versions of what a training run depends on",
    "export": "write the weights in a checkpoint as a safetensors file",
    "launch": "run a program on several processes, as torchrun does, and with one log",
    "plot": "draw the learning curves of runs",
    "resume": "start the command of a run again, which then goes on",
    "runs": "list the runs in a directory with their best values",
    "show": "tell what a run was started with and how it went",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's own) name, and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="camshaft", description="Train PyTorch models with Camshaft.")
    parser.add_argument("--version", action="version", version=f"camshaft {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command_parser = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name in arguments:
            command = import_module(f"camshaft.commands.{name}")
            command.add_arguments(command_parser)
            command_parser.set_defaults(command=command.run)
    parsed = parser.parse_args(arguments)
    try:
        status: int = parsed.command(parsed)
        sys.stdout.flush()
    except CommandError as error:
        sys.stderr.write(f"camshaft: {error}\n")
        return 2
    except BrokenPipeError:  # whoever read has read enough: `camshaft show RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
