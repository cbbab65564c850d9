"""`camshaft resume`: starts the command that a run was started with again."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Any

from camshaft.commands import CommandError
from camshaft.commands.run_directory import check_directory
from camshaft.handlers.checkpoint_store import CheckpointStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run, and what its command is given besides."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a run")
    parser.add_argument(
        "more", metavar="...", nargs=argparse.REMAINDER, help="further arguments for the command, as --max-epochs 30"
    )
    parser.epilog = (
        "The command is started in the directory where it was started before, with the environment of now. A run that "
        "is finished is left as it is, unless there are further arguments."
    )


def run(arguments: argparse.Namespace) -> int:
    """Become the recorded command; return 0 if the run is finished."""
    check_directory(arguments.run)
    record = _record_of(arguments.run)
    argv = [*record["argv"], *arguments.more]
    command = f"cd {shlex.quote(record['cwd'] or '?')} && {shlex.join(argv)}"
    checkpoints = CheckpointStore(arguments.run / "checkpoints").list()
    if checkpoints and checkpoints[-1].finished and not arguments.more:
        last = checkpoints[-1]
        print(f"{arguments.run} is finished, at epoch {last.epoch}, iteration {last.iteration}. It was started by:")
        print(command)
        print("To go on, add what makes it longer, such as --max-epochs.")
        return 0
    if not record["restartable"]:
        processes = record.get("processes", 1)
        if processes > 1:
            raise CommandError(
                f"{arguments.run} was trained by {processes} processes on several machines, or from a notebook or a "
                "prompt: start them again as they were started."
            )
        raise CommandError(f"{arguments.run} was started from a notebook or a prompt: run it there again.")
    print(command, flush=True)
    try:
        os.chdir(record["cwd"])
        os.execv(argv[0], argv)
    except OSError as error:
        raise CommandError(f"{error.strerror}: {error.filename or argv[0]}.") from error


def _record_of(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["argv"], record["cwd"], record["restartable"]
    except FileNotFoundError as error:
        raise CommandError(f"{run} has no {path.name}, where Checkpoint notes how a run was started.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
    return record
