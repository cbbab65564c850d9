"""The base of the callbacks that save checkpoints: they come after all others, so that they see all state."""

from camshaft.contrib.lightning.callbacks.callback import Callback

__all__ = ["Checkpoint"]


class Checkpoint(Callback):
    """A callback that saves checkpoints; a trainer that has one adds no ``ModelCheckpoint`` of its own."""
