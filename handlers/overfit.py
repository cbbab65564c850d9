"""Trains on the same few batches again and again, to see whether the model can learn at all.

Listens to:

- STARTED in PREPARE: shortens the epoch, so that a checkpoint that is brought back finds its length.
- STARTED in DECIDE, when the data is as it will be: takes its first batches in the place of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

from camshaft.engine.events import Events
from camshaft.engine.generators import generator_states, generators_kept, set_generator_states
from camshaft.engine.phases import Phase
from camshaft.engine.resumable_data import data_state
from camshaft.handlers.handler import Handler, On
from camshaft.handlers.trial import data_kept

__all__ = ["Overfit"]


class Overfit(Handler):
    """Trains on the first batches of the data in every epoch, drawn once, shuffled or augmented as they came first.

    A loss that does not go to zero then tells of a mistake in the model, the loss or the labels. The epoch is as long
    as there are such batches; validation keeps its own data.

    Args:
        batches: how many.

    Raises:
        ValueError: ``batches`` is not positive; when the run starts, if there is no data or it has no batch.

    Example:
        >>> from camshaft import Engine
        >>> seen = []
        >>> engine = Engine(lambda engine, batch: seen.append(batch)).attach(Overfit(batches=2))
        >>> state = engine.run(range(100), max_epochs=3)
        >>> seen, state.epoch_length
        ([0, 1, 0, 1, 0, 1], 2)
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.PREPARE, "shorten_epoch"),
        On(Events.STARTED, Phase.DECIDE, "take_first"),
    )

    def __init__(self, batches: int = 1) -> None:
        if batches < 1:
            raise ValueError(f"Overfit takes at least one batch, but got batches={batches!r}.")
        self.batches = batches
        self._generators: dict[str, Any] | None = None  # with which the batches of this run were drawn

    def shorten_epoch(self, engine: Any) -> None:
        """Let the epoch be as long as there are batches to take."""
        if engine.state.epoch_length is not None:
            engine.state.epoch_length = min(engine.state.epoch_length, self.batches)

    def take_first(self, engine: Any) -> None:
        """Draw the batches; those of a run that goes on are drawn as they were."""
        state = engine.state
        if state.dataloader is None:
            raise ValueError(f"{self!r} keeps the first batches of the data, but the engine runs without data.")
        data = state.dataloader
        own = data_state(data).generators
        with generators_kept(own), data_kept(data):
            if state.iteration > 0 and self._generators is not None:
                set_generator_states(self._generators, own)
            self._generators = generator_states(own)
            first = list(islice(data, self.batches))
        if not first:
            raise ValueError(f"{self!r} keeps the first batches of the data, but the data has none.")
        state.dataloader = first
        state.epoch_length = len(first)
        if state.max_iters is not None:
            state.max_epochs = math.ceil(state.max_iters / len(first))

    def state_dict(self) -> dict[str, Any]:
        """The random numbers with which the batches were drawn."""
        return {} if self._generators is None else {"generators": self._generators}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._generators = state_dict.get("generators")
