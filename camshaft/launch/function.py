"""`camshaft.launch(main, nproc=2)`: one function on several processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from camshaft.launch.agent import GRACE_PERIOD, SIGNALS, Watch, agents_are_ours, quiet_torchrun, signals_given_back
from camshaft.launch.ending import PREEMPTED, exit_status, first_failure
from camshaft.launch.program import processes_of_this_machine

__all__ = ["launch"]

Result = TypeVar("Result")


def launch(
    main: Callable[..., Result],
    nproc: int | None = None,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    max_restarts: int = 0,
    grace_period: float = GRACE_PERIOD,
    start_method: str | None = None,
) -> list[Result]:
    """Call ``main(*args, **kwargs)`` on several processes of this machine at once, each of them one rank.

    In a script, call it under ``if __name__ == "__main__":``, because each process imports the script anew.

    Args:
        main: the function; each rank finds RANK, WORLD_SIZE and what else torchrun sets in its environment.
        nproc: the number of processes; by default one for each accelerator, or 1 where there is none.
        args: the arguments of ``main``.
        kwargs: its arguments by name.
        max_restarts: how often all ranks are started again after one has failed.
        grace_period: how many seconds ranks have to save when this process is told to end.
        start_method: ``"spawn"``, ``"fork"`` or ``"forkserver"``, see ``multiprocessing``. By default the first, except
            where ``main``, or something that it is given, was typed into a notebook or a shell, where a new interpreter
            could not find it. Then ranks are forked, which is safe while nothing in this process has used CUDA. Forked
            ranks compute with one thread each; ``torch.set_num_threads`` in them can hang.

    Returns:
        What ``main`` returned on each rank, in the order of the ranks.

    Raises:
        ValueError: this process is itself a rank of several, or ``main`` cannot be sent to another process.
        Exception: what the first failing rank raised; its cause shows that rank's traceback.
        RuntimeError: the first failing rank was killed, left with an exit status, or raised what cannot be pickled.
        KeyboardInterrupt: the process was interrupted, and the ranks have ended.
        SystemExit: the process was told to end, and the ranks have: with 75 if they were preempted and have saved.

    Example:
        >>> import math
        >>> import camshaft
        >>> camshaft.launch(math.sqrt, nproc=2, args=(4.0,))
        [2.0, 2.0]
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"launch() starts the ranks, but this process is already rank {os.environ.get('RANK')} of "
            f"{os.environ['WORLD_SIZE']}, which a launcher started. Call main() itself here."
        )
    if nproc is None:
        nproc = processes_of_this_machine()
    if nproc < 1:
        raise ValueError(f"launch() needs at least one process, but nproc is {nproc}.")
    start_method = start_method or ("fork" if _needs_what_was_typed_in(main, args, kwargs) else "spawn")
    _check_that_it_can_start(main, args, kwargs, start_method)

    watch = Watch(grace_period)
    with TemporaryDirectory(prefix="camshaft_") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=max_restarts,
            start_method=start_method,
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        try:
            with quiet_torchrun(), agents_are_ours(watch), signals_given_back():
                elastic_launch(config, _rank)(main, tuple(args), dict(kwargs or {}), folder)
        except ChildFailedError:
            _raise_first_failure(watch, Path(folder))
        except SignalException as told:
            if told.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(exit_status(watch.endings) if watch.endings else 128 + told.sigval) from None
        return [_loaded(Path(folder, f"result_{rank}")) for rank in range(nproc)]


class _Traceback(Exception):
    """Shows the traceback of another process as the cause of an error."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _rank(main: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], folder: str) -> None:
    """What each process runs: leave the result, or the error, in a file."""
    rank = os.environ["RANK"]
    _show_what_is_displayed()
    for name in SIGNALS:  # a forked process would raise what the launcher raises
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    if "OMP_NUM_THREADS" not in os.environ:  # as torchrun; and a forked process has none of its parent's threads
        torch.set_num_threads(1)
    error_file = Path(folder, f"error_{rank}")
    error_file.unlink(missing_ok=True)  # of an attempt before
    try:
        Path(folder, f"result_{rank}").write_bytes(pickle.dumps(main(*args, **kwargs)))
    except Exception as error:  # noqa: BLE001 - it is raised again in the process that called launch()
        at, text = time.time(), traceback.format_exc()
        try:
            pickled = pickle.dumps((at, error, text))
            pickle.loads(pickled)
        except Exception:  # noqa: BLE001 - whatever an exception's own code may raise
            pickled = pickle.dumps((at, RuntimeError(f"{type(error).__name__}: {error}"), text))
        error_file.write_bytes(pickled)
        raise SystemExit(1) from None


def _raise_first_failure(watch: Watch, folder: Path) -> None:
    errors: dict[int, tuple[Exception, str]] = {}
    for ending in watch.endings:
        file = folder / f"error_{ending.rank}"
        if file.exists():
            ending.time, error, text = _loaded(file)
            errors[ending.rank] = error, text
    first = first_failure(watch.endings)
    if first is None and any(ending.returncode == PREEMPTED for ending in watch.endings):
        raise SystemExit(PREEMPTED)
    assert first is not None
    if first.rank not in errors:
        raise RuntimeError(f"Rank {first.rank} was the first to fail: {first}.") from None
    error, text = errors[first.rank]
    raise error from _Traceback(f"Rank {first.rank} was the first to fail:\n{text}")


def _loaded(file: Path) -> Any:
    # Written a moment ago by our own processes into a folder that only this user can open.
    return pickle.loads(file.read_bytes())


def _needs_what_was_typed_in(*sent: Any) -> bool:
    """Whether some of what a rank is sent is in no file that a new interpreter could import."""
    file = getattr(sys.modules["__main__"], "__file__", None)  # "<stdin>" is one, too
    if file and Path(file).is_file():
        return False
    try:
        return b"__main__" in pickle.dumps(sent)  # the module by which functions and classes are found again
    except Exception:  # noqa: BLE001 - whatever an argument's own code may raise: a fork needs no pickle
        return True


def _show_what_is_displayed() -> None:
    """Let a forked rank of a notebook display pictures there, as it may print: Jupyter drops what a fork displays."""
    # Not by camshaft.engine.notebook: importing the engine would make the launcher start a second later.
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython is not None else None
    if kernel is not None:
        kernel.session.check_pid = False


def _check_that_it_can_start(main: Any, args: Any, kwargs: Any, start_method: str) -> None:
    if start_method == "fork":
        if torch.cuda.is_initialized():
            raise ValueError(
                "launch() would have to fork this process, which has used CUDA; that does not survive a fork. Restart "
                "it and call launch() before anything else uses the GPU, or put main(), and what it is given, into a "
                ".py file and import it."
            )
        return
    try:
        pickle.dumps((main, args, kwargs))
    except Exception as error:  # noqa: BLE001 - whatever an argument's own code may raise
        raise ValueError(
            f"launch() cannot send {main!r} and its arguments to another process: {error}. Define main() at the top "
            "level of a file, and pass it what can be pickled."
        ) from None
