"""Whether this process is the kernel of a notebook."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["notebook_shell"]


def notebook_shell() -> Any:
    """IPython's shell if this process is a notebook's kernel, else None.

    That ``ipykernel`` is imported tells nothing: other packages do so in scripts.

    Example:
        >>> notebook_shell() is None
        True
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if hasattr(shell, "kernel") else None
