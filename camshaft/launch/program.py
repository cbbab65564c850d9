"""`camshaft launch`: torchrun's options with their meaning, and what torchrun lacks."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.run as torchrun
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.elastic.rendezvous.utils import (
    _matches_machine_hostname,
    _parse_rendezvous_config,
    parse_rendezvous_endpoint,
)

from camshaft.launch.agent import GRACE_PERIOD, SIGNALS, Watch, agents_are_ours, quiet_torchrun, signals_given_back
from camshaft.launch.ending import exit_status, first_failure, report, waited_in_vain
from camshaft.launch.logs import MergedLogs
from camshaft.launch.meeting import address_towards, interface_of, is_own

__all__ = ["add_arguments", "processes_of_this_machine", "run"]

# camshaft.engine.distributed.TIMEOUT_VARIABLE and, in ending.py, camshaft.handlers.preemption.PREEMPTED: importing
# the engine would make the launcher start a second later.
TIMEOUT_VARIABLE = "CAMSHAFT_COLLECTIVE_TIMEOUT"

TELL_AFTER = 15.0
"""Seconds after which the launcher says that it waits for other hosts."""

_EPILOG = """The options are torchrun's, and may be given as PET_... variables as there. The ranks' lines appear in one
log, each with its rank before it. When a rank fails, the others are ended, and the traceback of the first to fail comes
last. The exit status is that rank's own, 128 and the signal's number if a signal killed it, and 75 if all ranks were
preempted and have saved. SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the ranks; a second one
kills them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser torchrun's options, with other defaults where said, and ours."""
    parser.usage = f"{parser.prog} [options] script.py [arguments of the script]"
    parser.epilog = _EPILOG
    for action in torchrun.get_args_parser()._actions:
        if not isinstance(action, argparse._HelpAction):
            parser._add_action(action)
    _change(parser, "nproc_per_node", "1", None, "number of ranks on this host: a number, cpu, gpu, xpu or auto; by "
            "default one for each accelerator, or 1 where there is none")  # fmt: skip
    _change(parser, "rdzv_backend", "static", None, "how hosts meet; by default c10d where --rdzv-endpoint is given or "
            "there is one host only, else static, with --master-addr and --node-rank")  # fmt: skip
    _change(parser, "node_rank", 0, None, "the number of this host among --nnodes; only for --rdzv-backend static")
    _change(parser, "log_dir", None, None, "where to write a file rank_N.log for each rank; lines are added to a file "
            "that is there")  # fmt: skip
    _change(parser, "signals_to_handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT", ",".join(SIGNALS), "signals to pass on to "
            "the ranks, separated by commas (default: %(default)s)")  # fmt: skip
    _change(parser, "shutdown_timeout", None, None, "the same as --grace-period")
    parser.add_argument(
        "--grace-period",
        type=float,
        metavar="SECONDS",
        help="how long ranks that are told to end may save before they are killed (default: %(default)s)",
        default=float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE_PERIOD)),
    )
    parser.add_argument(
        "--collective-timeout",
        type=float,
        metavar="SECONDS",
        help="how long a rank waits for the others before it gives up, where the program leaves it to Camshaft to make "
        "the process group (default: torch's, 30 minutes, with NCCL 10)",
    )
    parser.set_defaults(error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Start the program that the arguments name on all ranks, wait for its end, and return the exit status."""
    watch = _prepare(arguments)
    reason = ""
    with quiet_torchrun(), agents_are_ours(watch), signals_given_back(), _patience(watch, arguments):
        try:
            torchrun.run(arguments)
        except ChildFailedError:
            pass  # the endings say more
        except SignalException as told:
            if not watch.endings:
                return 128 + told.sigval
        except KeyboardInterrupt:  # before the ranks were started
            return 128 + signal.SIGINT
        except (RendezvousError, DistError, OSError) as error:
            reason = _connection_failed(watch, arguments, error)
    sys.stdout.flush()
    if watch.hosts > 1 and waited_in_vain(watch.endings):
        sys.stderr.write("[camshaft] The ranks of this host waited in vain for those of another: see its log, or the "
                         "link to it. The same command starts the run again.\n")  # fmt: skip
    sys.stderr.write(report(watch.endings) + reason)
    sys.stderr.flush()
    if reason and first_failure(watch.endings) is None:
        return 1
    return exit_status(watch.endings)


def processes_of_this_machine() -> int:
    """How many processes to start where nobody said: one for each accelerator, or 1 where there is none."""
    if os.environ.get("PJRT_DEVICE") == "TPU":
        return int(importlib.import_module("torch_xla").tpu.num_available_chips()) or 1
    # With this check, which asks the driver only, processes that are forked later can still use CUDA.
    before = os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    try:
        return torch.accelerator.device_count() if torch.accelerator.is_available() else 1
    finally:
        if before != os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"):
            del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]


def _change(parser: argparse.ArgumentParser, name: str, default: Any, ours: Any, text: str) -> None:
    """Change an option of torchrun, if this torch has it; a default from a PET_ variable stays."""
    for action in parser._actions:
        if action.dest == name:
            action.help = text
            if action.default == default:
                action.default = ours


def _prepare(arguments: argparse.Namespace) -> Watch:
    """Fill in what was left out, refuse what cannot work, and say what the agent is to do."""
    try:
        if arguments.nproc_per_node is None:
            arguments.nproc_per_node = str(processes_of_this_machine())
        _check(arguments)
        _, most = torchrun.parse_min_max_nnodes(arguments.nnodes)
        _choose_meeting(arguments, most)
    except (ValueError, RuntimeError) as error:
        arguments.error(str(error))
    script = arguments.training_script
    if not (arguments.module or arguments.no_python or Path(script).is_file()):
        arguments.error(f"there is no file {script!r} to run")
    arguments.run_path = False  # what it does in a process made with multiprocessing, python does in its own
    signals = getattr(arguments, "signals_to_handle", ",".join(SIGNALS)).replace(" ", "").split(",")
    if getattr(arguments, "shutdown_timeout", None) is not None:
        arguments.grace_period = float(arguments.shutdown_timeout)
    if arguments.collective_timeout is not None:
        os.environ[TIMEOUT_VARIABLE] = str(arguments.collective_timeout)

    filters = getattr(arguments, "duplicate_stdout_filters", []) + getattr(arguments, "duplicate_stderr_filters", [])
    if arguments.logs_specs is not None or filters:  # these are parts of torchrun's own logs
        os.environ.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "[rank ${rank}] ")
        return Watch(arguments.grace_period, signals=signals)
    shown = {int(rank) for rank in arguments.local_ranks_filter.split(",") if rank}
    logs = MergedLogs(arguments.log_dir, Std.from_str(arguments.redirects), Std.from_str(arguments.tee), shown or None)
    arguments.log_dir = os.devnull
    return Watch(arguments.grace_period, logs, signals)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse in a sentence what torch would answer with a traceback, or take without a word.

    Raises:
        ValueError: an option has a value that cannot be.
        RuntimeError: the accelerators that --nproc-per-node counts are not there.
    """
    with quiet_torchrun():
        processes = torchrun.determine_local_world_size(arguments.nproc_per_node)
    if processes < 1:
        raise ValueError(f"--nproc-per-node {arguments.nproc_per_node} starts no process: give at least 1.")
    if not re.fullmatch(r"\d+(:\d+)?", arguments.nnodes):
        raise ValueError(f"--nnodes {arguments.nnodes} is no number of hosts, nor a range such as 1:4.")
    fewest, most = torchrun.parse_min_max_nnodes(arguments.nnodes)
    if not 0 < fewest <= most:
        raise ValueError(f"--nnodes {arguments.nnodes} is no number of hosts, nor a range such as 1:4.")
    if arguments.max_restarts < 0:
        raise ValueError(f"--max-restarts {arguments.max_restarts} is no number of restarts: give 0 or more.")
    if arguments.collective_timeout is not None and not arguments.collective_timeout > 0:
        raise ValueError(f"--collective-timeout {arguments.collective_timeout:g} must be more than 0 seconds.")
    if not all(rank.strip().isdigit() for rank in arguments.local_ranks_filter.split(",") if rank):
        raise ValueError(f"--local-ranks-filter {arguments.local_ranks_filter} must be numbers such as 0,1.")
    parse_rendezvous_endpoint(arguments.rdzv_endpoint, default_port=29400)
    _parse_rendezvous_config(arguments.rdzv_conf)


def _choose_meeting(arguments: argparse.Namespace, most: int) -> None:
    """Choose how hosts meet where it was left open, and tell torch what it would guess wrongly.

    torch asks for this host's name, which on many machines leads to 127.0.1.1 or nowhere: then no host takes itself for
    the meeting point, and gloo tells the other hosts to connect to themselves. The way to the meeting point says it
    better.
    """
    if arguments.rdzv_backend is None:
        by_number = arguments.node_rank is not None or not arguments.rdzv_endpoint
        if most > 1 and by_number and arguments.node_rank is None:
            raise ValueError(
                f"--nnodes {arguments.nnodes} needs a place where the hosts meet: add --rdzv-endpoint HOST:PORT, the "
                "same on all, with the address of one of them, such as 10.0.0.1:29400."
            )
        arguments.rdzv_backend = "static" if by_number else "c10d"
    arguments.node_rank = arguments.node_rank or 0
    host, _ = parse_rendezvous_endpoint(arguments.rdzv_endpoint or arguments.master_addr, default_port=29400)
    is_host: bool | None
    if most == 1:
        is_host = is_own(host) or None
        arguments.local_addr = arguments.local_addr or "127.0.0.1"
    else:
        is_host = None if _recognised(host) else is_own(host)
        arguments.local_addr = arguments.local_addr or address_towards(host)
        interface = arguments.local_addr and interface_of(arguments.local_addr)
        if interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    if is_host is not None and arguments.rdzv_backend == "c10d" and "is_host" not in arguments.rdzv_conf:
        arguments.rdzv_conf = ",".join(filter(None, [arguments.rdzv_conf, f"is_host={int(is_host)}"]))


def _recognised(host: str) -> bool:
    """Whether torch takes a name or address for this host's by itself."""
    try:
        return _matches_machine_hostname(host)
    except OSError:  # the name of this host does not resolve
        return False


@contextmanager
def _patience(watch: Watch, arguments: argparse.Namespace) -> Iterator[None]:
    """Say so when the hosts have not met for a while; torch may wait for a quarter of an hour."""

    def wait() -> None:
        if not watch.started.wait(TELL_AFTER):
            sys.stderr.write(f"[camshaft] Waiting for the other hosts. {_meeting_point(arguments)}\n")
            sys.stderr.flush()

    threading.Thread(target=wait, name="camshaft patience", daemon=True).start()
    try:
        yield
    finally:
        watch.started.set()


def _meeting_point(arguments: argparse.Namespace) -> str:
    return (
        f"They meet at {torchrun.get_rdzv_endpoint(arguments)} (--rdzv-endpoint, --rdzv-backend "
        f"{arguments.rdzv_backend}). If another program has this port, use another one; if the address is this host's "
        "and it does not know, add --rdzv-conf is_host=1."
    )


def _connection_failed(watch: Watch, arguments: argparse.Namespace, error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    first_line, _, _ = str(error).partition("\n")
    reason = first_line or type(error).__name__
    if watch.hosts == 0:
        return f"[camshaft] The hosts did not meet: {reason}. {_meeting_point(arguments)}\n"
    return f"[camshaft] The connection to the other hosts was lost: {reason}. The same command starts the run again.\n"
