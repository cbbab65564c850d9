"""Several processes of one run, forked from the test's, so that they need not import torch again."""

import math
import multiprocessing
import os
import signal
import socket
import time
import traceback
from typing import Any, NamedTuple

from camshaft.engine.distributed import finalise, initialise


class Ended(NamedTuple):
    """How one process ended: what its function returned, or the text of its error; its exit status."""

    value: Any
    error: str
    status: int
    seconds: float


def on_ranks(function, *arguments, processes=2, timeout=20.0):
    """Call a function on several processes that form a group, and tell how each ended, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    began = time.monotonic()
    started = []
    for rank in range(processes):
        receive, send = context.Pipe(duplex=False)
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = context.Process(target=_be, args=(environment, timeout, send, function, arguments))
        process.start()
        send.close()
        started.append((process, receive))
    ended = []
    try:
        for process, receive in started:
            left = began + timeout - time.monotonic()
            try:
                value, error = receive.recv() if receive.poll(max(left, 0)) else (None, "no answer")
            except EOFError:
                value, error = None, "it ended without an answer"
            process.join(max(began + timeout - time.monotonic(), 0))
            ended.append(Ended(value, error, process.exitcode, time.monotonic() - began))
    finally:
        for process, _ in started:
            process.kill()
            process.join()
    return ended


def values_of_ranks(function, *arguments, **options):
    """What a function returns on each process, none of which may fail."""
    ended = on_ranks(function, *arguments, **options)
    assert [process.status for process in ended] == [0] * len(ended), "\n".join(process.error for process in ended)
    return [process.value for process in ended]


def _be(environment, timeout, send, function, arguments):
    signal.alarm(math.ceil(timeout))  # where the test itself is killed, nobody else ends a process that hangs
    os.environ |= environment
    try:
        initialise()
        answer, status = (function(*arguments), ""), 0
    except SystemExit as leaving:
        answer, status = (None, ""), leaving.code
    except BaseException:  # noqa: BLE001 - whatever it is, the test is to be told
        answer, status = (None, traceback.format_exc()), 1
    send.send(answer)
    finalise()  # as at the end of any process; it must not hang on what is under way
    os._exit(status)
