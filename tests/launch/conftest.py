"""What tests of the launcher share: small programs, started as a user starts them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from camshaft.__main__ import main

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a program that the ranks run."""

    def write(text: str, name: str = "program.py") -> Path:
        path = tmp_path / name
        path.write_text("import os, signal, subprocess, sys, time\nrank = os.environ.get('RANK')\n" + text)
        return path

    return write


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts python with its arguments; what of it is left at the end is killed."""
    started = []

    def start_(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start_
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def run(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs python with its arguments to its end."""

    def run_(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        process = start(*arguments, **environment)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run_


@pytest.fixture
def start_ranks(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `camshaft launch --nproc-per-node 2` with its arguments, and waits until both ranks have said "ready"."""

    def start_ranks_(*arguments: object) -> "subprocess.Popen[str]":
        process = start("-m", "camshaft", "launch", "--nproc-per-node", 2, *arguments)
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in range(2)) == ["[rank 0] ready\n", "[rank 1] ready\n"]
        return process

    return start_ranks_


@pytest.fixture
def launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs `camshaft launch --nproc-per-node 2` with its arguments to its end: the ranks are processes, as always, but
    the launcher is this one, which has imported torch already."""

    def launch_(*arguments: object) -> "subprocess.CompletedProcess[str]":
        monkeypatch.chdir(tmp_path)
        line = ["launch", "--nproc-per-node", "2", *map(str, arguments)]
        with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
            try:
                status = main(line)
            except SystemExit as exit_:  # what argparse does
                status = int(exit_.code or 0)
        return subprocess.CompletedProcess(line, status, *capfd.readouterr())

    return launch_
