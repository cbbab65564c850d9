"""The Trainer, and the enumerations that say what it is doing."""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer.trainer import Trainer
    from camshaft.contrib.lightning.utilities.seed import seed_everything

__all__ = ["Trainer", "seed_everything"]

if not TYPE_CHECKING:  # a checker that saw a module's `__getattr__` would let every misspelt name pass
    _load, __dir__ = lazy_names(__name__, {"Trainer": "trainer"})

    def __getattr__(name: str) -> object:
        if name == "seed_everything":
            from camshaft.contrib.lightning.utilities.seed import seed_everything  # noqa: PLC0415 - rarely needed

            return seed_everything
        return _load(name)
