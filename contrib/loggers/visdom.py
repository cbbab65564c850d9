"""Sends the numbers of a run to a Visdom server."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from camshaft.contrib.loggers.client import client
from camshaft.contrib.loggers.service import ServiceLogger
from camshaft.handlers.logger import Record

__all__ = ["VisdomLogger"]


class VisdomLogger(ServiceLogger):
    """Draws curves in a Visdom server, or writes them to a file for it (``offline=True, log_to_filename=...``).

    Each value is a window of the run's environment, over the iteration. Visdom keeps no files, so ``checkpoints`` is
    refused.

    Args:
        settings: ``visdom.Visdom``'s arguments, such as ``server`` and ``port``.
        every: record what the step returns at each N-th iteration.
        parameters: shown as text.
        tags: shown there, too.
        run_id: the environment; by default a new one.

    Raises:
        ValueError: as :class:`ServiceLogger`.
        ModuleNotFoundError: when the run starts, ``visdom`` is not installed.

    Example:
        >>> VisdomLogger(port=8097)
        VisdomLogger(port=8097)
    """

    service: ClassVar[str] = "visdom"

    def __init__(
        self, *, every: int = 50, parameters: Any = None, tags: Any = (), run_id: str | None = None, **settings: Any
    ) -> None:
        if "checkpoints" in settings:
            raise ValueError("Visdom keeps no files: leave out checkpoints=.")
        super().__init__(every=every, parameters=parameters, tags=tags, run_id=run_id)
        self.settings = settings
        self._texts: dict[str, str] = {}

    def begin_run(self, run_id: str | None) -> tuple[Any, str]:
        run_id = run_id or f"run-{uuid.uuid4().hex[:8]}"
        visdom = client("visdom", "visdom", self).Visdom(
            env=run_id, **{"use_incoming_socket": False, "raise_exceptions": True, **self.settings}
        )
        return visdom, run_id

    def send_parameters(self, run: Any, parameters: Mapping[str, Any]) -> None:
        self._show(run, {name: str(value) for name, value in parameters.items()})

    def send_tags(self, run: Any, tags: Mapping[str, str]) -> None:
        self._show(run, tags)

    def _show(self, run: Any, texts: Mapping[str, str]) -> None:
        self._texts.update(texts)
        lines = (f"{name}: {value}" if value else name for name, value in self._texts.items())
        run.text("<br>".join(lines), win="parameters", opts={"title": "parameters"})

    def send_record(self, run: Any, record: Record) -> None:
        for name, value in record.values.items():
            opts = {"title": name, "xlabel": "iteration", "ylabel": name}
            run.line(X=[record.iteration], Y=[value], win=name, name=name, update="append", opts=opts)
