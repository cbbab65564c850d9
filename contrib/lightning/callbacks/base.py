"""Where ``Callback`` was to be found before Lightning 1.9."""

from camshaft.contrib.lightning.callbacks.callback import Callback

__all__ = ["Callback"]
