"""The ways of Lightning's releases of early 2020, which its programs still rely on.

Steps return mappings with ``"log"`` and ``"progress_bar"``; ``…_step_end(output)`` gets what a step returned, and
``…_epoch_end(outputs)`` what all of them returned.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch

from camshaft.contrib.lightning.hooks import is_overridden
from camshaft.contrib.lightning.results import How, Results
from camshaft.engine.training_step import without_graph

__all__ = [
    "end_epoch",
    "epoch_end_of",
    "is_old",
    "loss_of_step",
    "monitor_as_then",
    "monitored_by_schedules",
    "take_logs",
    "with_step_end",
]

_STAGES = ("training", "validation", "test")
_LOGGED = How()
_SHOWN = How(prog_bar=True, logger=False)
_BOTH = How(prog_bar=True)
_MONITORED = How(logger=False)
_OWN_KEYS = {"log", "progress_bar", "hiddens"}


def is_old(module: Any) -> bool:
    """Whether a module has methods that only those releases knew.

    Example:
        >>> from camshaft.contrib.lightning import LightningModule
        >>> class Old(LightningModule):
        ...     def validation_epoch_end(self, outputs): ...
        >>> is_old(Old()), is_old(LightningModule())
        (True, False)
    """
    names = [f"{stage}{end}" for stage in _STAGES for end in ("_epoch_end", "_step_end", "_end")]
    return any(is_overridden(name, module) for name in names)


def take_logs(output: Mapping[str, Any], results: Results) -> None:
    """Log what a step or the end of an epoch returned.

    Values under ``"log"`` go to the loggers, those under ``"progress_bar"`` to the progress bar; callbacks find both,
    and all other numbers of the mapping.

    Args:
        output: what was returned; without either of the two keys it is a step of today's style, and nothing is logged.
        results: which take the values up.

    Raises:
        TypeError: what stands under one of the two keys is no mapping.
    """
    if "log" in output or "progress_bar" in output:
        _take(output, _mapping(output, "log"), _mapping(output, "progress_bar"), results)


def _take(output: Mapping[str, Any], logged: Mapping[str, Any], shown: Mapping[str, Any], results: Results) -> None:
    for name, value in logged.items():
        results.add(name, value, _BOTH if name in shown else _LOGGED)
    for name, value in shown.items():
        if name not in logged:
            results.add(name, value, _SHOWN)
    for name, value in output.items():
        if name in _OWN_KEYS or name in logged or name in shown or not _is_number(value):
            continue
        if results.how_of(name) in (None, _MONITORED):  # not what self.log() was called with
            results.add(name, value, _MONITORED)


def loss_of_step(module: Any, output: Any, results: Results) -> Any:
    """What ``training_step`` returned, after ``training_step_end`` if there is one.

    Args:
        module: whose step it was.
        output: what the step returned.
        results: which take up what is to be logged.
    """
    if is_overridden("training_step_end", module):
        output = module.training_step_end(output)
    if isinstance(output, Mapping) and len(output) > 1:
        take_logs(output, results)
    return output


def with_step_end(module: Any, stage: str, step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of an evaluation, followed by ``…_step_end`` if the module has one.

    Args:
        module: whose step it is.
        stage: ``"validation"`` or ``"test"``.
        step: called with batch, batch index and loader index.
    """
    name = f"{stage}_step_end"
    if not is_overridden(name, module):
        return step
    step_end = getattr(module, name)
    return lambda *arguments: step_end(step(*arguments))


def epoch_end_of(module: Any, stage: str, results_of: Callable[[], Results]) -> Callable[[list[Any]], None] | None:
    """What to call with the outputs of all steps of an evaluation, if the module has such a method.

    Args:
        module: whose ``validation_epoch_end``, or ``validation_end`` as it was once called.
        stage: ``"validation"`` or ``"test"``.
        results_of: gives the results that are collected.
    """
    for name in (f"{stage}_epoch_end", f"{stage}_end"):
        if is_overridden(name, module):
            function = getattr(module, name)
            return lambda outputs: end_epoch(function, outputs, results_of(), stage)
    return None


def end_epoch(function: Callable[[list[Any]], Any], outputs: list[Any], results: Results, stage: str) -> None:
    """Call ``…_epoch_end`` and log what it returns: ``"log"``, ``"progress_bar"``, and the rest for callbacks.

    Args:
        function: of the module.
        outputs: what the steps returned, a list of such lists where there are several loaders.
        results: which take the values up.
        stage: ``"training"``, ``"validation"`` or ``"test"``.

    Raises:
        TypeError: it returned neither a mapping nor None.
    """
    results.hook = f"{stage}_epoch_end"
    returned = function(without_graph(outputs))
    if returned is None:
        return
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"{stage}_epoch_end() returned {returned!r}: it returns a mapping, such as {{'val_loss': loss, 'log': "
            "{'val_loss': loss}}, or None."
        )
    _take(returned, _mapping(returned, "log"), _mapping(returned, "progress_bar"), results)


def monitored_by_schedules(module: Any) -> str | None:
    """What a schedule that reduces on a plateau monitors, if it does not say so itself."""
    return "val_loss" if is_old(module) else None


def monitor_as_then(module: Any, checkpoint: Any) -> None:
    """Let the checkpoint that a Trainer adds of itself keep the best ``val_loss``, where a module of 2020 has one.

    Args:
        module: that is about to be trained.
        checkpoint: a ``ModelCheckpoint`` that nobody has told what to monitor.
    """
    if is_old(module) and checkpoint.monitor is None:
        checkpoint.monitor, checkpoint._monitors_if_there = "val_loss", True


def _mapping(output: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    values = output.get(key)
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(f"What is returned under {key!r} is a mapping of names to numbers, but got {values!r}.")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Number) or (isinstance(value, torch.Tensor) and value.numel() == 1)
