"""The commands of `camshaft`, one module each; `camshaft/__main__.py` has their table."""


class CommandError(Exception):
    """Why a command cannot do what was asked; the command line prints it in one line and ends with status 2."""
