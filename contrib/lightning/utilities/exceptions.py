"""The errors of the Lightning style."""

__all__ = ["MisconfigurationException", "SIGTERMException"]


class MisconfigurationException(Exception):
    """The program asks for something that cannot be, such as a flag with a value that has no meaning."""


class SIGTERMException(SystemExit):
    """The system has asked the process to end (SIGTERM); ``Callback.on_exception`` receives it."""
