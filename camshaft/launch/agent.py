"""torchrun's elastic agent, with better manners when a rank ends.

It differs in what follows, and in nothing else:

- A signal goes to the ranks, not to the processes that they started: a DataLoader's workers would die of it, and with
  them the rank that is about to save. It may be any signal that the launcher was told to pass on.
- When a rank has failed, the others have a second to fail of it themselves and five to end before they are killed.
- When a rank has left with 75 because it was preempted, the others may save for the whole grace period, and nothing is
  started again.
- When ranks start again, they meet at a new store. torch (2.13) lets them find what the dead ones left in the old one,
  so that most restarts fail with "connection refused" (pytorch issues 135712, 167288).
- It looks after its ranks while it waits for an answer of another host: torch asks, ten times a second, whether more
  hosts want to join, and when the link is cut it hears and does nothing for minutes, not even when told to end.
- It keeps how each rank ended (`ending.py`).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed.launcher.api as torch_launcher
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from camshaft.launch.ending import PREEMPTED, Ending, report
from camshaft.launch.logs import MergedLogs

__all__ = ["SIGNALS", "Agent", "Watch", "agents_are_ours", "quiet_torchrun", "signals_given_back"]

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""What the launcher passes on."""

GRACE_PERIOD = 30.0
"""Seconds that ranks have to save when they are told to end."""
_TO_FAIL = 1.0
_TO_END_AFTER_A_FAILURE = 5.0
_TO_ANSWER = 0.5
_TO_PART = 5.0
_TO_BE_LOST = 60.0


class Watch:
    """What the launcher wants from its agent, and learns from it.

    Args:
        grace_period: how many seconds ranks that are told to end have to save.
        logs: the merged log; left out, the agent logs as torchrun does.
        signals: the names of those that are passed on to the ranks.

    Attributes:
        started: set when the hosts have met, and the ranks start.
        hosts: how many have met, 0 before they have.
        endings: how the ranks of the last attempt ended.
    """

    def __init__(
        self, grace_period: float = GRACE_PERIOD, logs: MergedLogs | None = None, signals: Sequence[str] = SIGNALS
    ) -> None:
        self.grace_period = grace_period
        self.logs = logs
        self.signals = signals
        self.started = threading.Event()
        self.hosts = 0
        self.endings: list[Ending] = []


class Agent(LocalElasticAgent):
    """The agent of one host. Its arguments are torchrun's, and a ``Watch``."""

    def __init__(self, *args: Any, watch: Watch, **options: Any) -> None:
        if watch.logs is not None:
            options["logs_specs"] = watch.logs
        super().__init__(*args, **options)
        self._watch = watch
        self._sent: dict[int, set[int]] = {}
        self._killed: dict[int, tuple[float, bool]] = {}  # how long it was waited for, and whether it was stopped
        self._ended_at: dict[int, float] = {}
        meeting: Any = self._worker_group.spec.rdzv_handler
        # Weakly, so that its store does not outlive the run in a cycle.
        weakly, kind = weakref.proxy(meeting), type(meeting)
        meeting.num_nodes_waiting = _Asked(partial(kind.num_nodes_waiting, weakly), 0, _TO_ANSWER, _TO_BE_LOST)
        meeting.shutdown = _Asked(partial(kind.shutdown, weakly), False, _TO_PART)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        handler = worker_group.spec.rdzv_handler
        for name in ("_bootstrap_store_info", "_shared_tcp_store_server"):
            if hasattr(handler, name):
                setattr(handler, name, None)  # it makes both anew, and tells the other hosts
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._sent, self._killed, self._ended_at = {}, {}, {}
        self._watch.endings = []
        self._watch.hosts = worker_group.group_world_size or 1
        self._watch.started.set()
        gc.collect()  # the store of an earlier attempt, whose destructor would crash in a forked rank
        processes: dict[int, Any] = super()._start_workers(worker_group)
        if threading.current_thread() is threading.main_thread():
            for name in self._watch.signals:  # torch before 2.9 takes only the first four
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), _raise_signal)
        return processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if any(self._returncodes().values()):
            self._wait_for_the_others()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in {WorkerState.FAILED, WorkerState.SUCCEEDED}:
            endings = self._keep_endings()
            if all(ending.returncode in (0, PREEMPTED) for ending in endings):
                self._remaining_restarts = 0
            elif self._remaining_restarts > 0:
                most = worker_group.spec.max_restarts
                sys.stderr.write(report(endings))
                sys.stderr.write(f"[camshaft] Restart {most - self._remaining_restarts + 1} of {most}\n")
                sys.stderr.flush()
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *args: Any, **options: Any) -> None:
        if self._pcontext is not None:
            self._end(death_sig, self._watch.grace_period)
            self._keep_endings()
        super()._shutdown(death_sig, *args, **options)

    # The ranks

    def _returncodes(self) -> dict[int, int | None]:
        """For each local rank its process's exit status, as of ``subprocess``; None while it lives."""
        codes: dict[int, int | None] = {}
        if isinstance(self._pcontext, SubprocessContext):
            codes = {rank: handler.proc.poll() for rank, handler in self._pcontext.subprocess_handlers.items()}
        elif isinstance(self._pcontext, MultiprocessContext) and self._pcontext._pc is not None:
            codes = {rank: process.exitcode for rank, process in enumerate(self._pcontext._pc.processes)}
        for rank, code in codes.items():
            if code is not None:
                self._ended_at.setdefault(rank, time.time())
        return codes

    def _alive(self) -> list[int]:
        return [rank for rank, code in self._returncodes().items() if code is None]

    def _wait_for_the_others(self) -> None:
        if self._watch.logs is not None:
            self._watch.logs.keep_tracebacks()
        begun = time.monotonic()
        while self._alive():
            preempted = all(code in (None, 0, PREEMPTED) for code in self._returncodes().values())
            if time.monotonic() - begun > (self._watch.grace_period if preempted else _TO_FAIL):
                told = self._end(signal.SIGTERM, _TO_END_AFTER_A_FAILURE)
                if told is not None:
                    _raise_signal(told, None)
                return
            time.sleep(0.05)

    def _end(self, number: signal.Signals, patience: float) -> int | None:
        """Pass a signal on to the ranks, and kill those that live on for too long or when a second signal comes.

        Returns:
            The signal that came meanwhile, if one did.
        """
        begun = time.monotonic()
        for rank in self._alive():
            self._send(rank, number)
        with _signals_noted(self._watch.signals) as noted:
            while alive := self._alive():
                waited = time.monotonic() - begun
                stopped = {rank: _is_stopped(self._pid(rank)) for rank in alive}
                # `timeout` and others send one signal twice.
                if waited > patience or (noted and waited > 1) or all(stopped.values()):
                    self._killed |= {rank: (waited, stopped[rank]) for rank in alive}
                    for rank in alive:
                        self._send(rank, signal.SIGKILL, group=True)
                    break
                time.sleep(0.05)
            while self._alive() and time.monotonic() - begun < patience + 5:  # in the kernel, it may not even die
                time.sleep(0.01)
        return noted[0] if noted else None

    def _pid(self, rank: int) -> int:
        assert self._pcontext is not None
        return int(self._pcontext.pids()[rank])

    def _send(self, rank: int, number: signal.Signals, group: bool = False) -> None:
        self._sent.setdefault(rank, set()).add(number)
        try:
            # torch makes a program the leader of a process group, but not a function's process.
            if group and isinstance(self._pcontext, SubprocessContext):
                os.killpg(self._pid(rank), number)
            else:
                os.kill(self._pid(rank), number)
        except ProcessLookupError:
            pass

    def _keep_endings(self) -> list[Ending]:
        logs = self._watch.logs
        if logs is not None:
            logs.finish()
        self._watch.endings = []
        for rank, code in self._returncodes().items():
            at, traceback = (None, "") if logs is None else logs.last_traceback(rank)
            waited, stopped = self._killed.get(rank, (None, False))
            ending = Ending(
                self._worker_group.workers[rank].global_rank,
                -signal.SIGKILL if code is None else code,
                time=at or self._ended_at.get(rank, time.time()),
                sent=self._sent.get(rank, set()),
                waited=waited,
                stopped=stopped,
                traceback=traceback,
                log=None if logs is None else logs.file_of(rank),
            )
            if logs is not None and code in (0, PREEMPTED):
                logs.show_last_traceback(rank)
            self._watch.endings.append(ending)
        if isinstance(self._pcontext, SubprocessContext):
            for handler in self._pcontext.subprocess_handlers.values():  # torch leaves them open
                for file in (handler._stdout, handler._stderr):
                    if file is not None:
                        file.close()
        return self._watch.endings


class _Asked:
    """Asks other hosts in a thread of its own, and gives the last answer while the next one takes longer.

    Args:
        question: what may take as long as the network does.
        answer: the first one.
        patience: seconds to wait for an answer each time.
        limit: seconds without an answer after which the connection is taken for lost.

    Raises:
        RendezvousConnectionError: when called, if it is lost.
    """

    def __init__(self, question: Callable[[], Any], answer: Any, patience: float, limit: float = float("inf")) -> None:
        self._question = question
        self._answer = answer
        self._patience = patience
        self._limit = limit
        self._asked_at = 0.0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __call__(self) -> Any:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._ask, name="camshaft question", daemon=True)
            self._asked_at = time.monotonic()
            self._thread.start()
        self._thread.join(self._patience)
        if self._thread.is_alive() and time.monotonic() - self._asked_at > self._limit:
            raise RendezvousConnectionError(f"no answer from the meeting point for {self._limit:.0f} s")
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._answer

    def _ask(self) -> None:
        try:
            self._answer = self._question()
        except Exception as error:  # noqa: BLE001 - it is raised where the question came from
            self._error = error


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:  # no Linux
        return False


@contextmanager
def agents_are_ours(watch: Watch) -> Iterator[None]:
    """Let torch's launcher make our agent: torch has no parameter for the class, and all else is to stay torch's."""
    names = vars(torch_launcher)
    before = names["LocalElasticAgent"]
    names["LocalElasticAgent"] = partial(Agent, watch=watch)
    try:
        yield
    finally:
        names["LocalElasticAgent"] = before


@contextmanager
def _signals_noted(names: Sequence[str]) -> Iterator[list[int]]:
    """Let signals leave a note rather than raise an exception between any two lines."""
    noted: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.signal(number, lambda number, frame: noted.append(number)) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_signal(number: int, frame: FrameType | None) -> None:
    raise SignalException(f"Process {os.getpid()} got signal {number}", signal.Signals(number))


@contextmanager
def signals_given_back() -> Iterator[None]:
    """Let signals do afterwards what they did before the agent took them over."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def quiet_torchrun() -> Iterator[None]:
    """Keep torchrun's own loggers silent, unless LOGLEVEL or TORCH_LOGS asks for them: the launcher reports itself."""
    talkers = (
        "torch.distributed.run",
        "torch.distributed.elastic",
        "torch.distributed.launcher",
        "torch.multiprocessing",
    )
    silenced = {}
    if not {"LOGLEVEL", "TORCH_LOGS"} & os.environ.keys():
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(talkers):
                logger = logging.getLogger(name)
                silenced[logger] = logger.level
                logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in silenced.items():
            logger.setLevel(level)
