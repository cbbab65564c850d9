"""`camshaft launch`: one program on several processes, on one machine or many."""

from camshaft.launch.program import add_arguments, run

__all__ = ["add_arguments", "run"]
