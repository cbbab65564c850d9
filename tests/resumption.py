"""Shows that a run which is killed and started again ends as one that never was.

A program is a function that builds everything anew in a directory and returns an engine and the arguments of its
``run()``. It is run once; meanwhile its directory is copied at many moments, as a kill would leave it. In each copy the
program is started again, and must end with the same last checkpoint, which holds all that a run is: objects, handlers,
metrics, generators, position in the data.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft import seed_everything
from camshaft.engine import Events
from camshaft.handlers.checkpoint_store import CheckpointStore

Program = Callable[[Path], tuple[IgniteEngine, dict[str, Any]]]

MOMENTS = (Events.ITERATION_STARTED, Events.EPOCH_COMPLETED)


def run(
    program: Program, directory: Path, *, seed: int = 1, watch: Callable[[IgniteEngine], None] | None = None
) -> Any:
    """Run a program from its beginning; what it does with random numbers before must not matter to a resumed one."""
    seed_everything(seed)
    engine, arguments = program(directory)
    if watch is not None:
        watch(engine)
    engine.run(**arguments)
    if hasattr(arguments.get("data"), "_iterator"):
        arguments[
            "data"
        ]._iterator = None  # ends workers that persist at once; left to the garbage collector, in seconds
    return engine


def differences_after_kills(program: Program, directory: Path, moments: tuple[Any, ...] = MOMENTS) -> list[str]:
    """What differs between a run and those that were killed at each of ``moments`` and went on, a line each."""
    whole = directory / "whole"
    copies: list[Path] = []

    def copy_directory(engine: IgniteEngine) -> None:
        copies.append(directory / f"killed-{len(copies)}-at-{engine.state.iteration}-{engine.last_event_name.name}")
        while not copies[-1].exists():
            try:
                shutil.copytree(whole, copies[-1])
            except shutil.Error:  # written to in the background meanwhile
                shutil.rmtree(copies[-1])

    def watch(engine: IgniteEngine) -> None:
        for moment in moments:
            engine.add_event_handler(moment, copy_directory)

    run(program, whole, watch=watch)
    expected = outcome_in(whole)
    found = []
    for number, copy in enumerate(copies):
        # The model of the new process begins elsewhere, so that forgetting to load something shows. Without any
        # checkpoint the run begins anew, and is the same only with the same seed.
        begun = CheckpointStore(copy / "checkpoints").list()
        run(program, copy, seed=number + 2 if begun else 1)
        found += [f"{copy.name}: {line}" for line in different(expected, outcome_in(copy))]
    return found


def outcome_in(directory: Path) -> dict[str, Any]:
    """All that a finished run has left: its last checkpoint and its log."""
    store = CheckpointStore(directory / "checkpoints")
    last = store.list()[-1]
    assert last.finished
    logs = {path.name: path.read_text() for path in directory.glob("metrics.csv")}
    return {**store.read(last.path), "name": last.path.name, "value": last.value, "logs": logs}


def different(a: Any, b: Any, name: str = "") -> Iterator[str]:
    """The names at which two nested states differ in a bit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            if key not in a or key not in b:
                yield f"{name}/{key} is only in one"
            else:
                yield from different(a[key], b[key], f"{name}/{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from different(one, other, f"{name}/{index}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or a.numpy().tobytes() != b.numpy().tobytes():
            yield f"{name}: {a} and {b}"
    elif type(a) is not type(b) or repr(a) != repr(b):
        yield f"{name}: {a!r} and {b!r}"
