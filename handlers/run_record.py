"""Notes how a run was started, so that `camshaft resume` can start it again.

Listens to:

- STARTED in SAVE, the last phase: writes ``run.json``, once everything else has agreed to the run.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from camshaft import __version__
from camshaft.engine.distributed import rank, world_size
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.handlers.handler import Handler, On

__all__ = ["RunRecord", "record_run"]

RECORD_FILE = "run.json"
_DISTRIBUTIONS = ("torch", "pytorch-ignite")

try:
    _started_in: str | None = str(Path.cwd())  # now, because the program may leave it before the run starts
except FileNotFoundError:
    _started_in = None


class RunRecord(Handler):
    """Writes ``run.json`` into the directory of a run: the command, where and when it was started, and the versions.

    ``Checkpoint`` does this by itself, for ``camshaft resume``; attach a ``RunRecord`` to runs that have none.

    Args:
        directory: of the run; made if it is not there.

    Raises:
        OSError: when the run starts, if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from camshaft import Engine
        >>> directory = tempfile.TemporaryDirectory()
        >>> state = Engine(lambda engine, batch: None).attach(RunRecord(directory.name)).run([0])
        >>> sorted(json.loads((Path(directory.name) / "run.json").read_text()))
        ['argv', 'cwd', 'pid', 'python', 'restartable', 'started', 'versions']
        >>> directory.cleanup()
    """

    alone = True
    listens = (On(Events.STARTED, Phase.SAVE, "record"),)

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def record(self) -> None:
        """Write the record; of several processes the first does."""
        if rank() == 0:
            record_run(self.directory)


def record_run(directory: Path) -> None:
    """Write ``run.json`` into the directory of a run that starts in this process; the file is whole at every instant.

    Raises:
        OSError: it cannot be written; the message says where.
    """
    path = directory / RECORD_FILE
    beside = path.with_name(f".writing-{path.name}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(_how_this_process_was_started(), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise OSError(f"The record of the run, {path}, could not be written: {error.strerror}.") from error


def _command(processes: int) -> list[str]:
    """How to start this process again, and with it the others that train with it, whatever has started them."""
    # By the path of the interpreter: its name alone could mean another one in another shell.
    command = [sys.executable, *sys.orig_argv[1:]]
    if processes == 1:
        return command
    own = command[2:] if command[1:2] == ["-u"] else command[1:]  # launchers add it
    return [sys.executable, "-m", "camshaft", "launch", "--nproc-per-node", str(processes), *own]


def _how_this_process_was_started() -> dict[str, Any]:
    # A notebook, a prompt and a program that came through standard input cannot be started again by a command.
    interactive = hasattr(sys, "ps1") or "ipykernel" in sys.modules or sys.argv[0] in ("", "-")
    processes = world_size()
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes)))
    return {
        "argv": _command(processes),
        "cwd": _started_in,
        "restartable": not interactive and _started_in is not None and on_this_machine == processes,
        **({"processes": processes} if processes > 1 else {}),
        "python": platform.python_version(),
        "versions": {"camshaft": __version__, **{name: version(name) for name in _DISTRIBUTIONS}},
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "pid": os.getpid(),
    }
