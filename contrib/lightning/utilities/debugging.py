"""Where programs of early 2020 find Lightning's error."""

from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

__all__ = ["MisconfigurationException"]
