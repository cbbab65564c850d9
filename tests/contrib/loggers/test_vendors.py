"""The vendors' loggers with their real clients: a run is killed after seven of nine iterations, resumed, and read back.

The clients come with `make interop`; MLflow's server runs on loopback with SQLite behind it, the others are offline.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("vendors_program.py")
ON_RANKS = Path(__file__).with_name("vendors_on_ranks.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[3]), "WANDB_ERROR_REPORTING": "false"}
ITERATIONS = list(range(1, 10))
MODULES = {
    "clearml": ["clearml"],
    "comet": ["comet_ml"],
    "mlflow": ["mlflow", "sqlalchemy"],  # without which there is no server
    "neptune": ["neptune"],
    "visdom": ["visdom"],
    "wandb": ["wandb"],
}


def start(name: str, how: str, argument: str, directory: Path) -> int:
    """Run the program in a directory; its status."""
    ended = subprocess.run(
        [sys.executable, PROGRAM, name, how, argument],
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode in (0, -signal.SIGKILL), ended.stdout + ended.stderr
    assert "could not send" not in ended.stderr, ended.stderr
    return ended.returncode


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """What a service, or its client's files, has of a run that was killed and resumed, by the vendor's name."""

    @functools.cache
    def kept(name: str) -> dict[str, Any]:
        for module in MODULES[name]:
            if importlib.util.find_spec(module) is None:  # not imported: clients warn, here where that is an error
                pytest.skip(f"needs {module}, which `make interop` installs")
        argument = request.getfixturevalue("mlflow_server") if name == "mlflow" else ""
        directory = tmp_path_factory.mktemp(name)
        assert start(name, "kill", argument, directory) == -signal.SIGKILL
        assert start(name, "finish", argument, directory) == 0
        found: dict[str, Any] = json.loads((directory / "kept.json").read_text())
        return found

    return kept


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server on loopback with SQLite behind it."""
    directory = tmp_path_factory.mktemp("mlflow-server")
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts"]
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, *stores],
            cwd=directory,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # which takes eight processes more
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (directory / "log").read_text()
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.parametrize("name", MODULES)
def test_each_iteration_of_a_killed_and_resumed_run_is_there_once(killed_and_resumed: Any, name: str) -> None:
    loss = killed_and_resumed(name)["loss"]
    assert [iteration for iteration, _ in loss] == ITERATIONS
    assert loss[0][1] == pytest.approx(1.0037468671798706)


def test_comet_has_two_archives_with_one_key(killed_and_resumed: Any) -> None:
    kept = killed_and_resumed("comet")
    assert kept["ids"] == [kept["run_id"]] * 2


@pytest.mark.parametrize("name", ["clearml", "comet", "mlflow", "neptune", "wandb"])
def test_parameters_are_there_flat(killed_and_resumed: Any, name: str) -> None:
    parameters = killed_and_resumed(name)["parameters"]
    assert str(parameters["optimizer/lr"]) == "0.5"
    assert str(parameters["layers"]) == "[3, 2]"


@pytest.mark.parametrize("name", ["clearml", "comet", "neptune", "wandb"])
def test_tags_are_there_with_their_values(killed_and_resumed: Any, name: str) -> None:
    assert {"digits", "stage:first"} <= set(killed_and_resumed(name)["tags"])


@pytest.mark.parametrize("name", ["clearml", "comet", "neptune", "wandb"])
def test_the_last_checkpoint_is_there(killed_and_resumed: Any, name: str) -> None:
    assert any(
        "iteration=00000009" in file or "iteration-00000009" in file for file in killed_and_resumed(name)["files"]
    )


def test_mlflow_has_one_run_which_is_finished(killed_and_resumed: Any) -> None:
    kept = killed_and_resumed("mlflow")
    assert (kept["runs"], kept["status"], kept["name"]) == ([kept["run_id"]], "FINISHED", "run")


def test_mlflow_has_the_metrics_of_each_epoch_once(killed_and_resumed: Any) -> None:
    assert killed_and_resumed("mlflow")["mean"] == [[3, 0.125], [6, 0.25], [9, 0.375]]


def test_mlflow_has_the_tags_with_their_values(killed_and_resumed: Any) -> None:
    assert killed_and_resumed("mlflow")["tags"] == {"digits": "", "stage": "first"}


def test_mlflow_has_the_checkpoint_of_each_epoch(killed_and_resumed: Any) -> None:
    names = [f"iteration={3 * epoch:08d},epoch={epoch}" for epoch in (1, 2, 3)]
    files = [f"checkpoints/{name}/{file}" for name in names for file in ("metadata.json", "state.pt")]
    assert killed_and_resumed("mlflow")["files"] == files


def test_wandb_and_visdom_have_one_run(killed_and_resumed: Any) -> None:
    for name in ("wandb", "visdom"):
        kept = killed_and_resumed(name)
        assert kept["runs"] == [kept["run_id"]]


def test_visdom_shows_parameters_and_tags_as_text(killed_and_resumed: Any) -> None:
    assert killed_and_resumed("visdom")["texts"][-1] == "optimizer/lr: 0.5<br>layers: [3, 2]<br>digits<br>stage: first"


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each of two processes tells of a run that both log to MLflow and to Weights & Biases."""
    for module in (*MODULES["mlflow"], *MODULES["wandb"]):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}, which `make interop` installs")
    server = request.getfixturevalue("mlflow_server")
    directory = tmp_path_factory.mktemp("ranks")
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, ON_RANKS, server],
            cwd=directory,
            env={**ENVIRONMENT, **ranks, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=150)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


def test_of_two_processes_the_first_alone_talks_to_the_services(on_two_processes: Any) -> None:
    assert [kept["began"] for kept in on_two_processes] == [[True, True], [False, False]]
    assert [len(on_two_processes[0][name]["runs"]) for name in ("mlflow", "wandb")] == [1, 1]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_the_services_get_the_means_over_two_processes(on_two_processes: Any, name: str) -> None:
    assert on_two_processes[0][name]["loss"] == [[iteration, iteration + 5.0] for iteration in range(1, 7)]
