"""Starts a program of a test as one process or as several that train together, and reads what each of them wrote."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def results_of(program: str, processes: int, folder: Path) -> list[dict[str, Any]]:
    """What each process wrote as JSON into the file whose path it was given.

    Args:
        program: the name of a file beside this one, or the path of another.
        processes: how many to start.
        folder: for the files.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment = {**own, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    started, files = [], [folder / f"{rank}.json" for rank in range(processes)]
    for rank, file in enumerate(files):
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, str(Path(__file__).parent / program), str(file)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)
    return [json.loads(file.read_text()) for file in files]
