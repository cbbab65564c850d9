"""Progress bars; the names load when they are first used, so that who shows none imports neither tqdm nor rich."""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.callbacks.progress.progress_bar import ProgressBar
    from camshaft.contrib.lightning.callbacks.progress.rich_progress import RichProgressBar
    from camshaft.contrib.lightning.callbacks.progress.tqdm_progress import TQDMProgressBar

__all__ = ["ProgressBar", "RichProgressBar", "TQDMProgressBar"]

_modules = {
    "ProgressBar": "progress_bar",
    "RichProgressBar": "rich_progress",
    "TQDMProgressBar": "tqdm_progress",
}

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    __getattr__, __dir__ = lazy_names(__name__, _modules)
