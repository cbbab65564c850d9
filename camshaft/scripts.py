"""What every script of training has: options for one run, the handlers they stand for, and errors told in one line."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from camshaft.engine.distributed import broadcast, initialise, rank
from camshaft.engine.seeding import seed_everything
from camshaft.handlers import (
    AMP,
    Checkpoint,
    CSVLogger,
    DataParallel,
    Device,
    DistributedSampling,
    Handler,
    Preemption,
    ProgressBar,
    RunRecord,
    TerminateOnNaN,
)
from camshaft.handlers.checkpoint_store import BrokenCheckpointError
from camshaft.handlers.run_file import RECORD_FILE, as_json, read_record
from camshaft.handlers.run_record import record_run

__all__ = [
    "camshaft_command",
    "number",
    "run_script",
    "script_parser",
    "standard_handlers",
    "start",
    "weights_sha256",
]

ENGINE_LOGGER = "ignite.engine.engine.Engine"  # Ignite's name for the one logger of all engines
_noted: list[tuple[Path, bool]] = []  # directories in which `start` has written a record, and whether they were new
_NOT_OF_THE_RUN = ("run_dir", "resume")  # options that say where a run is, not which one it is


def script_parser(
    description: str, *, max_epochs: int, batch_size: int, threads: int | None = None
) -> argparse.ArgumentParser:
    """A parser with the options of one run; add those of the research to it.

    They are ``--run-dir``, ``--max-epochs``, ``--batch-size``, ``--seed``, ``--device``, ``--precision``, ``--threads``
    and ``--resume``. What is wrong with an option is told in one line.

    Args:
        description: the script's ``__doc__``, of which ``--help`` shows the first line.
        max_epochs: the default of ``--max-epochs``.
        batch_size: the default of ``--batch-size``.
        threads: the default of ``--threads``, on how many threads torch computes; None for as many as it takes. One is
            the fastest for models of which an iteration takes less than about 10 ms.

    Example:
        >>> parser = script_parser("Trains something.", max_epochs=20, batch_size=64)
        >>> _ = parser.add_argument("--width", type=number(int, least=1), default=128)
        >>> options = parser.parse_args(["--max-epochs", "3"])
        >>> options.max_epochs, options.batch_size, options.width, options.precision
        (3, 64, 128, 'fp32')
    """
    parser = _Parser(description=description.strip().splitlines()[0], formatter_class=_Defaults)
    run = parser.add_argument_group("the run")
    run.add_argument("--run-dir", type=Path, help="where it is kept (default: a new one in runs)")
    run.add_argument("--max-epochs", type=number(int, least=1), default=max_epochs, help="how many to train")
    run.add_argument("--batch-size", type=number(int, least=1), default=batch_size, help="of each process")
    run.add_argument("--seed", type=number(int, least=0), default=0, help="of all random numbers")
    run.add_argument("--device", default="auto", help="cpu, cuda, mps, …; auto takes the best there is")
    run.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of what is computed")
    run.add_argument("--threads", type=number(int, least=1), default=threads, help="on which the CPU computes")
    run.add_argument(
        "--resume",
        default="auto",
        help="auto: go on with the run in --run-dir if there is one; never: refuse then; or the path of a checkpoint",
    )
    return parser


def start(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of a script and do what comes first: join the other processes, seed, name the run's directory.

    It notes in the directory's ``run.json`` how the script was started, and prints the commands to go on and to look at
    the run.

    Without ``--run-dir`` it is the first of ``runs/SCRIPT-1``, ``runs/SCRIPT-2``, … that is new, or has a run with the
    same options that has not come to its end: a killed script, started again, goes on.

    Args:
        parser: of ``script_parser``.
        arguments: to parse in the place of the command line's.

    Example:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> parser = script_parser("Trains something.", max_epochs=20, batch_size=64)
        >>> options = start(parser, ["--run-dir", directory, "--seed", "1"])
        The run is kept in /...
        Look at it by: ...camshaft show /...
        >>> torch.initial_seed() == options.seed == 1
        True
    """
    options = parser.parse_args(arguments)
    initialise()  # if a launcher has started several processes
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    seed_everything(options.seed + rank())  # what is drawn in training differs by process; weights are the first's
    if options.run_dir is None:
        options.run_dir = _next_run(parser.prog.removesuffix(".py"), options)
    options.run_dir = broadcast(options.run_dir)
    if rank() == 0:
        run = options.run_dir
        if not read_record(run):  # before the script's own run begins, it may train others that belong to it
            _noted.append((run, not run.exists()))
            record_run(run, configuration=vars(options))
        on, look = camshaft_command("resume", run), camshaft_command("show", run)
        sys.stdout.write(
            f"The run is kept in {run}. Killed at any moment, it goes on by: {on}\n"
            f"Look at it by: {look}, and at its curves by: {camshaft_command('plot', run, '-o', 'curves.png')}\n"
        )
        sys.stdout.flush()
    return options


def camshaft_command(*arguments: str | os.PathLike[str]) -> str:
    """A command of Camshaft as one types it where this process was started, whether or not ``camshaft`` is on the path.

    Args:
        arguments: of ``camshaft``.

    Example:
        >>> camshaft_command("show", "runs/my run")
        "...python... -m camshaft show 'runs/my run'"
    """
    interpreter = Path(sys.executable)
    if interpreter.is_relative_to(Path.cwd()):
        interpreter = interpreter.relative_to(Path.cwd())
    return shlex.join([str(interpreter), "-m", "camshaft", *map(str, arguments)])


def standard_handlers(
    options: argparse.Namespace, *, monitor: str | None = None, log_every: int = 10, **kept: Any
) -> list[Handler]:
    """The handlers that the options of a run stand for, to attach to its trainer beside those of the research.

    ``Device``, ``AMP`` where ``--precision`` asks for it, ``DistributedSampling`` and a ``DataParallel`` for each
    model, ``Checkpoint``, ``Preemption``, ``RunRecord``, ``TerminateOnNaN``, ``CSVLogger`` and ``ProgressBar``. A
    training that wants others attaches its own in their place.

    Args:
        options: of ``start``.
        monitor: the value by which ``Checkpoint`` keeps the best, as ``"val_loss"``.
        log_every: how many iterations are one line of ``metrics.csv``.
        kept: what a checkpoint holds, by name: models, optimizers, whatever has a ``state_dict``. Modules with
            parameters to train get a ``DataParallel`` each.

    Example:
        >>> import tempfile
        >>> from camshaft import Engine, OptimizerStep
        >>> parser = script_parser("Fits a line.", max_epochs=2, batch_size=64)
        >>> options = start(parser, ["--run-dir", tempfile.mkdtemp()])
        The run is kept in ...
        >>> model = nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Engine(lambda engine, batch: (model(batch) - 2 * batch).pow(2).mean()).attach(
        ...     OptimizerStep(optimizer), *standard_handlers(options, model=model, optimizer=optimizer)
        ... )
        >>> trainer.run([torch.ones(8, 1)] * 5, max_epochs=options.max_epochs).iteration
        10
        >>> sorted(path.name for path in options.run_dir.iterdir() if not path.name.startswith("."))
        ['checkpoints', 'metrics.csv', 'run.json']
    """
    trained = [
        module
        for module in kept.values()
        if isinstance(module, nn.Module) and any(parameter.requires_grad for parameter in module.parameters())
    ]
    return [
        Device(options.device),
        *([] if options.precision == "fp32" else [AMP(options.precision)]),
        DistributedSampling(),
        *map(DataParallel, trained),
        Checkpoint(options.run_dir, kept, monitor=monitor, resume=options.resume),
        Preemption(),
        RunRecord(options.run_dir, options),
        TerminateOnNaN(),
        CSVLogger(options.run_dir, every=log_every),
        ProgressBar(),
    ]


def run_script(main: Callable[[], Any]) -> NoReturn:
    """Call a script's ``main`` and leave: with status 0, or with 2 and one line for what its user can mend.

    That is wrong input (ValueError), a file or folder (OSError), and a checkpoint that is broken. Where
    ``CAMSHAFT_TRACEBACK`` is set in the environment, and for all other errors, the traceback is shown.

    Args:
        main: the function.

    Example:
        >>> def main():
        ...     raise ValueError("a batch of 4,096 is more than the 1,283 images to train on")
        >>> run_script(main)  # prints the sentence on the standard error
        Traceback (most recent call last):
        SystemExit: 2
    """
    logger = logging.getLogger(ENGINE_LOGGER)
    logger.addFilter(_told_once)
    try:
        main()
    except (OSError, ValueError, BrokenCheckpointError) as error:
        if os.environ.get("CAMSHAFT_TRACEBACK"):
            raise
        _stop(str(error))
    finally:
        logger.removeFilter(_told_once)
        _take_back_records()
    sys.exit(0)


def number(kind: type[int] | type[float], *, least: float) -> Callable[[str], float]:
    """The ``type`` of an argparse option that takes numbers from ``least`` on.

    Args:
        kind: ``int`` or ``float``.
        least: the smallest that is taken.

    Example:
        >>> number(int, least=1)("3")
        3
        >>> number(int, least=1)("0")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: 0 is less than 1
    """

    def parse(text: str) -> float:
        value = kind(text)
        if not value >= least:  # neither is what is no number
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    parse.__name__ = kind.__name__  # argparse's message for what cannot be parsed names it
    return parse


def weights_sha256(weights: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of all weights and buffers, to compare runs by.

    Args:
        weights: a module, or its ``state_dict()``.

    Example:
        >>> weights_sha256(nn.Linear(2, 1)) == weights_sha256(nn.Linear(2, 1))  # each with random weights
        False
    """
    sha256 = hashlib.sha256()
    for tensor in (weights.state_dict() if isinstance(weights, nn.Module) else weights).values():
        sha256.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _stop(message)


class _Defaults(argparse.HelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or "default" in (action.help or ""):
            return action.help
        return f"{action.help or ''} (default: %(default)s)".lstrip()


def _next_run(name: str, options: argparse.Namespace) -> Path:
    wanted = _identity(json.loads(json.dumps(vars(options), default=as_json)))
    for number_of_run in count(1):
        directory = Path("runs") / f"{name}-{number_of_run}"
        if not directory.exists():
            return directory
        record = read_record(directory)
        ended = record.get("ended", {}).get("status") == "finished"
        if not ended and _identity(record.get("configuration", {})) == wanted:
            return directory
    raise AssertionError("there is always another number")


def _identity(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in configuration.items() if name not in _NOT_OF_THE_RUN}


def _take_back_records() -> None:
    """Remove what ``start`` has noted where no run has begun: the data were not there, or an option was wrong."""
    while _noted:
        directory, new = _noted.pop()
        if [path.name for path in directory.glob("*")] == [RECORD_FILE] and "attached" not in read_record(directory):
            (directory / RECORD_FILE).unlink()
            if new:
                directory.rmdir()


def _told_once(record: logging.LogRecord) -> bool:
    """Not what the engine logs of an error that it raises: whoever catches it tells it."""
    return record.levelno < logging.ERROR


def _stop(message: str) -> NoReturn:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
    sys.exit(2)
