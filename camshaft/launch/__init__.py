"""Starts a program, or a function, on several processes.

- ``camshaft launch script.py``, or ``python -m camshaft.launch script.py``: a program (`program.py`).
- ``camshaft.launch(main, nproc=2)`` from inside a program or a notebook: a function (`function.py`).

Both stand on torchrun's elastic agent (`agent.py` says what differs). ``camshaft.launch`` is the function, and this
module where it is imported as one; so that both read the same, the module can be called as well.
"""

import sys
from types import ModuleType

from camshaft.launch.function import launch

__all__ = ["launch"]


class _CallableModule(ModuleType):
    """Importing a module binds it to its name in the package, which would hide the function of that name."""

    __call__ = staticmethod(launch)


sys.modules[__name__].__class__ = _CallableModule
