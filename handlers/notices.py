"""What a handler tells the user in one line: that a run goes on, or why it has ended."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.distributed import rank
from camshaft.engine.notebook import notebook_shell

__all__ = ["tell"]


def tell(engine: IgniteEngine, message: str, *values: Any) -> None:
    """Tell the user something that is nobody's fault, through the engine's logger, on the first process only.

    As a warning, which Python shows on the standard error even where no logging is set up. In a notebook, which marks
    the standard error as an error, at INFO: there the cell itself shows that it has ended.

    Args:
        engine: whose logger it is told by.
        message: one line, with ``%s`` and the like for ``values``.
        values: what is put into it.

    Example:
        >>> from camshaft import Engine
        >>> tell(Engine(lambda engine, batch: None), "Going on with %s.", "runs/1")  # on the standard error
    """
    if rank() == 0:
        engine.logger.log(logging.WARNING if notebook_shell() is None else logging.INFO, message, *values)
