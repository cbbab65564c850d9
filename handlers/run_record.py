"""Notes how a run was started and on what, so that `camshaft resume` can start it again and `camshaft show` tell it.

Listens to:

- STARTED in SAVE, the last phase: writes ``run.json``, once everything else has agreed to the run.
- COMPLETED, EXCEPTION_RAISED in SAVE: adds how it ended.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft import __version__
from camshaft.engine.distributed import rank, world_size
from camshaft.engine.events import Events
from camshaft.engine.notebook import notebook_shell
from camshaft.engine.phases import Phase
from camshaft.engine.used_objects import modules_used_by
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.run_file import read_record, write_record

__all__ = ["RunRecord", "record_run"]

_DISTRIBUTIONS = ("torch", "pytorch-ignite")
_LONGEST_DIFF = 1_000_000  # characters
_LONGEST_WAIT_FOR_GIT = 10  # seconds

try:
    _started_in: str | None = str(Path.cwd())  # now, because the program may leave it before the run starts
except FileNotFoundError:
    _started_in = None


class RunRecord(Handler):
    """Writes ``run.json`` into the directory of a run: what ``camshaft runs`` and ``camshaft show`` tell of it.

    That is the command, where and when it was started; the configuration; the versions of the packages that are
    imported; the commit that git has checked out and what differs from it; the seed, the hardware, the models, and what
    is attached to the engine. At the end it adds when and how the run ended.

    ``Checkpoint`` does this by itself, for ``camshaft resume``; attach a ``RunRecord`` to runs that have none, or to
    keep a configuration.

    Args:
        directory: of the run; made if it is not there.
        configuration: of the run: a mapping, an ``argparse.Namespace`` or a dataclass, nested or not; those of
            OmegaConf and jsonargparse, too. Paths are kept as text, and what else JSON does not know as its
            representation.

    Raises:
        TypeError: the configuration is something else.
        OSError: when the run starts, if the file cannot be written.

    Example:
        >>> import json, tempfile
        >>> from camshaft import Engine
        >>> directory = tempfile.TemporaryDirectory()
        >>> record = RunRecord(directory.name, {"learning_rate": 0.1})
        >>> state = Engine(lambda engine, batch: None).attach(record).run([0])
        >>> noted = json.loads((Path(directory.name) / "run.json").read_text())
        >>> noted["configuration"], noted["ended"]["status"]
        ({'learning_rate': 0.1}, 'finished')
        >>> directory.cleanup()
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.SAVE, "record"),
        On(Events.COMPLETED, Phase.SAVE, "record_end"),
        On(Events.EXCEPTION_RAISED, Phase.SAVE, "record_error"),
    )

    def __init__(
        self,
        directory: str | os.PathLike[str],
        configuration: Mapping[str, Any] | Namespace | Any | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.configuration = _as_mapping(configuration)

    def record(self, engine: IgniteEngine) -> None:
        """Write the record; of several processes the first does."""
        if rank() == 0:
            record_run(self.directory, engine, self.configuration)

    def record_end(self, engine: IgniteEngine) -> None:
        """Add that the run has ended."""
        self._add_end(engine, "finished")

    def record_error(self, engine: IgniteEngine, error: BaseException) -> None:
        """Add what ended the run."""
        try:
            self._add_end(engine, "failed", f"{type(error).__name__}: {error}")
        except OSError as second:  # the first error is the one to see
            engine.logger.warning("%r could not record how the run ended: %s", self, second)

    def _add_end(self, engine: IgniteEngine, status: str, error: str | None = None) -> None:
        record = read_record(self.directory)
        if rank() == 0 and record.get("pid") == os.getpid():
            state = engine.state
            ended = {"status": status, "at": _now(), "epoch": state.epoch, "iteration": state.iteration}
            write_record(self.directory, {**record, "ended": {**ended, **({"error": error} if error else {})}})


def record_run(
    directory: Path, engine: IgniteEngine | None = None, configuration: Mapping[str, Any] | None = None
) -> None:
    """Write ``run.json`` into the directory of a run that starts in this process; the file is whole at every instant.

    Args:
        directory: of the run; made if it is not there.
        engine: whose run it is, to note what is attached to it.
        configuration: of the run.

    Raises:
        OSError: it cannot be written; the message says where.
    """
    record = {**_how_this_process_was_started(), "seconds_before": _seconds_before(directory)}
    if configuration is not None:
        record["configuration"] = dict(configuration)
    record |= {"seed": torch.initial_seed(), "hardware": _hardware()}
    git = _git()
    if git is not None:
        record["git"] = git
    if engine is not None:
        record |= _what_runs(engine)
    write_record(directory, record)


def _as_mapping(configuration: Any) -> dict[str, Any] | None:
    if configuration is None:
        return None
    if isinstance(configuration, Mapping):
        return {str(name): _plain(value) for name, value in configuration.items()}
    plain = _plain(configuration)
    if not isinstance(plain, dict):
        raise TypeError(
            f"The configuration of a run is a mapping, an argparse.Namespace or a dataclass, not {configuration!r}: "
            "give its entries as a dict."
        )
    return plain


def _plain(value: Any) -> Any:
    """``value`` with whatever has named entries in it as a dict, also OmegaConf's and jsonargparse's."""
    omegaconf = sys.modules.get("omegaconf")  # who has a configuration of it has imported it
    if omegaconf is not None and omegaconf.OmegaConf.is_config(value):
        value = omegaconf.OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Namespace):
        value = vars(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _seconds_before(directory: Path) -> float:
    """How long earlier processes have trained the run that goes on from a checkpoint there."""
    earlier = read_record(directory)
    checkpoints = directory / "checkpoints"
    seconds = float(earlier.get("seconds_before", 0.0))
    if not checkpoints.is_dir() or not any(checkpoints.iterdir()):
        return 0.0
    if "started" not in earlier or earlier.get("pid") == os.getpid():
        return seconds
    last = max(path.stat().st_mtime for path in (checkpoints, *checkpoints.iterdir()))
    return seconds + max(0.0, last - datetime.fromisoformat(earlier["started"]).timestamp())


def _what_runs(engine: IgniteEngine) -> dict[str, Any]:
    """How far the engine is to run, with which models, and what is attached to it."""
    state = engine.state
    modules = modules_used_by(engine._process_function)
    models = {
        name: {
            "class": type(module).__name__,
            "parameters": sum(parameter.numel() for parameter in _with_shape(module)),
            "trained": sum(parameter.numel() for parameter in _with_shape(module) if parameter.requires_grad),
        }
        for name, module in modules.items()
    }
    return {
        "run": {name: getattr(state, name) for name in ("max_epochs", "max_iters", "epoch_length")},
        "models": models,
        "attached": [repr(handler) for handler in handlers_of(engine)],
        "events": str(engine).splitlines()[1:] if hasattr(engine, "_subscribing_phase") else [],  # not a stock one's
    }


def _with_shape(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters without lazy ones that have no shape yet."""
    lazy = torch.nn.parameter.UninitializedParameter
    return [parameter for parameter in module.parameters() if not isinstance(parameter, lazy)]


def _versions() -> dict[str, str]:
    """Of what is imported, as far as modules say it."""
    versions = {"camshaft": __version__, **{name: version(name) for name in _DISTRIBUTIONS}}
    for name, module in sorted(sys.modules.items()):
        own = vars(module).get("__version__") if hasattr(module, "__dict__") else None
        if isinstance(own, str) and "." not in name and name not in sys.stdlib_module_names and name != "ignite":
            versions.setdefault(name, own)
    return versions


def _hardware() -> dict[str, Any]:
    # sched_getaffinity: what this process may use, which a container or a scheduler may have made fewer.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware: dict[str, Any] = {
        "machine": platform.node(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores,
    }
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        hardware["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = torch.cuda.device_count()
    if torch.cuda.is_initialized():
        hardware["accelerators"] = [torch.cuda.get_device_name(index) for index in range(count)]
    elif count:  # to ask for their names would take memory on each of them
        hardware["accelerators"] = [f"CUDA device {index}" for index in range(count)]
    return hardware


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache  # what was checked out when the process started is what it runs
def _git() -> dict[str, Any] | None:
    """The commit that the program is of, and what differs from it; None outside of a repository, or without git."""
    program = Path(sys.argv[0]).absolute().parent if sys.argv and Path(sys.argv[0]).is_file() else None
    for folder in (program, Path(_started_in) if _started_in else None):
        if folder is not None and any((above / ".git").exists() for above in (folder, *folder.parents)):
            break
    else:
        return None
    commit = _from_git(folder, "rev-parse", "HEAD")
    diff = _from_git(folder, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
    if commit is None or diff is None:  # there is no commit yet, no git, or it refuses
        return None
    untracked = _from_git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", ":/") or ""
    git: dict[str, Any] = {
        "commit": commit.strip(),
        "branch": (_from_git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "untracked": untracked.splitlines(),
    }
    if len(diff) <= _LONGEST_DIFF:
        git["diff"] = diff
    else:
        git["diff_left_out"] = f"{len(diff)} characters are more than the {_LONGEST_DIFF} that are kept"
    return git


def _from_git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        ended = subprocess.run(
            command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LONGEST_WAIT_FOR_GIT
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.decode(errors="replace") if ended.returncode == 0 else None


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
    interactive = hasattr(sys, "ps1") or notebook_shell() is not None or sys.argv[0] in ("", "-")
    processes = world_size()
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes)))
    return {
        "argv": _command(processes),
        "cwd": _started_in,
        "restartable": not interactive and _started_in is not None and on_this_machine == processes,
        **({"typed_in": True} if interactive else {}),
        **({"processes": processes} if processes > 1 else {}),
        "python": platform.python_version(),
        "versions": _versions(),
        "started": _now(),
        "pid": os.getpid(),
    }
