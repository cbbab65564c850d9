"""Loads batches, and moves them to the device, in the background while the step computes.

Listens to:

- STARTED in PREPARE: looks which random generators the steps have, too.
- GET_BATCH_COMPLETED in PREPARE: starts loading the next batches.
- INTERRUPT and EXCEPTION_RAISED in PREPARE: ends the thread; what it has loaded is kept for a run that goes on.
- TERMINATE_SINGLE_EPOCH, TERMINATE and COMPLETED in PREPARE: ends the thread, and lets go of what it has loaded.
"""

from __future__ import annotations

import functools
import itertools
import random
import warnings
from collections import UserDict
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import Events
from camshaft.engine.loading_ahead import LoadedAhead, Move, Receive
from camshaft.engine.nested import rebuilt
from camshaft.engine.phases import Phase
from camshaft.engine.resumable_data import borrows_generators, data_state
from camshaft.engine.used_objects import used_by
from camshaft.handlers.device import Device, moved
from camshaft.handlers.evaluate import Evaluate
from camshaft.handlers.handler import Handler, On, handlers_of

__all__ = ["Prefetch"]


class Prefetch(Handler):
    """Loads the next batches in a background thread, so that the step need not wait for them.

    A run ends with the same bits as without it, and so does one that is resumed: a batch that was loaded but not used
    counts as not seen, and an error of the loader is raised when it is its batch's turn. To that end the first two
    batches of each pass over the data are loaded when they are asked for; if the second shows that loading draws from
    the global random generators (as random augmentation does), from which the step may draw as well, all are, and a
    warning says so: let the loader have workers, or the data set a generator of its own.

    With :class:`Device` on the same engine batches are moved in the background, too; on CUDA from pinned memory, by a
    stream of their own. An ``Evaluate`` waits until what is under way is loaded. Attach one to an evaluator to have its
    batches loaded ahead.

    What it can gain depends on the loading: a thread waits and computes beside the step, but runs Python only in turn
    with it. Two things it cannot see: a data set that sets the global generators and then puts them back
    (``torch.random.fork_rng``), and what a handler changes in the data set within a pass, which counts as of the batch
    that is loaded next.

    Args:
        depth: how many batches to load ahead.

    Raises:
        ValueError: ``depth`` is not a positive integer.

    Example:
        >>> from camshaft import Engine
        >>> engine = Engine(lambda engine, batch: 2 * batch).attach(Prefetch())
        >>> engine.run([1, 2, 3]).output
        6
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.PREPARE, "begin"),
        On(Events.GET_BATCH_COMPLETED, Phase.PREPARE, "load_ahead"),
        On(Events.INTERRUPT, Phase.PREPARE, "pause"),
        On(Events.EXCEPTION_RAISED, Phase.PREPARE, "pause"),
        On(Events.TERMINATE_SINGLE_EPOCH | Events.TERMINATE | Events.COMPLETED, Phase.PREPARE, "stop"),
    )

    def __init__(self, depth: int = 2) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"Prefetch loads at least one batch ahead, but got depth={depth!r}: leave it out instead.")
        self.depth = depth
        self._generators_of_steps: WeakKeyDictionary[IgniteEngine, set[int]] = WeakKeyDictionary()
        self._warned_of: Any = None
        # An iterator of the user, and what gives its batches that were loaded but not used, and then the rest.
        self._continued: tuple[Any, Any] = None, None

    def attach(self, engine: Any) -> None:
        super().attach(engine)
        set_data = engine.set_data

        def stop_and_set_data(data: Any) -> None:
            self.stop(engine)
            set_data(data)

        engine.set_data = stop_and_set_data

    def detach(self, engine: Any) -> None:
        super().detach(engine)
        self.pause(engine)  # what it has loaded is still used
        del engine.set_data

    def begin(self, engine: IgniteEngine) -> None:
        """Look which generators the steps have, and go on where an earlier run has left an iterator."""
        self._generators_of_steps[engine] = set(map(id, _generators_of_steps(engine)))
        if engine.state.dataloader is not None and engine.state.dataloader is self._continued[0]:
            engine.state.dataloader = self._continued[1]

    def load_ahead(self, engine: Any) -> None:
        """Let the next batches be loaded, but none that neither this pass nor this run needs."""
        iterator = engine._dataloader_iter
        if not isinstance(iterator, LoadedAhead):
            if engine.state.dataloader is None or iterator is None:
                return
            iterator = engine._dataloader_iter = self._around(iterator, engine)
        elif iterator.draws:
            self._warn(
                engine.state.dataloader,
                "draws from this process's random numbers, from which the step may draw as well: give the loader "
                "workers (num_workers=1 or more), or the data set a generator of its own as an attribute",
            )
        iterator.load(min(self.depth, _left_in_run(engine.state), iterator.left))

    def _around(self, iterator: Iterator[Any], engine: Any) -> LoadedAhead:
        """What loads ahead from ``iterator``, of which one batch was taken."""
        data = engine.state.dataloader
        state = data_state(data)
        in_use = self._generators_of_steps.get(engine, set())
        shared = [name for name, generator in state.generators.items() if id(generator) in in_use]
        if shared:
            self._warn(data, f"draws from {shared[0]!r}, as the step or an evaluator does: give each a generator")
        borrows = borrows_generators(data)
        if borrows:
            self._warn(data, "draws its order batch by batch and without end from this process's random numbers")
        return LoadedAhead(
            iterator,
            state,
            _move_to(_device_of(engine)),
            may_load_ahead=not shared and not borrows,
            length=None if (length := engine._get_data_length(data)) is None else length - 1,
        )

    def _warn(self, data: Any, reason: str) -> None:
        if self._warned_of is not data:
            self._warned_of = data
            warnings.warn(
                f"{self!r} loads nothing ahead, because loading from {type(data).__name__} {reason}.", stacklevel=2
            )

    def pause(self, engine: Any, error: BaseException | None = None) -> None:
        """End the thread; it begins again when the run goes on."""
        if isinstance(engine._dataloader_iter, LoadedAhead):
            engine._dataloader_iter.pause()

    def stop(self, engine: Any, iter_counter: int = 0) -> None:
        """End the thread; the data is as if nothing had been loaded ahead."""
        ahead = engine._dataloader_iter
        if not isinstance(ahead, LoadedAhead):
            return
        left = ahead.close()
        data = engine.state.dataloader
        if left and ahead.iterator is data:  # an iterator of the user, which goes on where it is
            engine.state.dataloader = itertools.chain(left, data)
            self._continued = self._continued[0] if data is self._continued[1] else data, engine.state.dataloader


def _generators_of_steps(engine: IgniteEngine) -> Iterator[Any]:
    """The generators that are not global of all that computes between two batches: the step, and evaluators."""
    engines = [engine]
    for handler in handlers_of(engine):
        if isinstance(handler, Evaluate):
            engines.append(handler.evaluator)
            yield from data_state(handler.data).generators.values()
    kinds = [torch.Generator, random.Random, *_numpy_generators()]
    for owner, kind in itertools.product(engines, kinds):
        yield from used_by(owner._process_function, kind).values()


def _left_in_run(state: Any) -> int:
    """At most how many batches the run takes after this one."""
    if state.max_iters is not None:
        total = state.max_iters
    elif state.max_epochs is not None and state.epoch_length is not None:
        total = state.max_epochs * state.epoch_length
    else:
        return 2**31
    return int(total - state.iteration - 1)  # the iteration of this batch is not counted yet


def _device_of(engine: IgniteEngine) -> torch.device | None:
    devices = [handler.device for handler in handlers_of(engine) if isinstance(handler, Device)]
    return devices[0] if devices else None


@functools.cache
def _move_to(device: torch.device | None) -> Move | None:
    """How to move a batch in the background; None where it stays, or Device had better do that."""
    if device is None or device.type in ("cpu", "xla"):  # what XLA moves belongs to the graph that the step writes
        return None
    if device.type == "cuda":
        return _MoveToCUDA(device)
    return lambda batch: (moved(batch, device), None)


class _MoveToCUDA:
    """Moves batches from pinned memory by a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def __call__(self, batch: Any) -> tuple[Any, Receive]:
        copies: list[torch.Tensor] = []
        with torch.cuda.stream(self.stream):
            on_device = self._moved(batch, copies)
            done = self.stream.record_event()

        def receive() -> None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(done)
            for copy in copies:
                copy.record_stream(stream)  # lest its memory be used for the next copy while the step reads it

        return on_device, receive

    def _moved(self, batch: Any, copies: list[torch.Tensor]) -> Any:
        if isinstance(batch, torch.Tensor):
            if batch.device.type != "cpu" or batch.layout != torch.strided:
                return batch
            pinned = batch if batch.is_pinned() else batch.pin_memory()
            copies.append(pinned.to(self.device, non_blocking=True))
            return copies[-1]
        if callable(getattr(batch, "to", None)) and not isinstance(batch, UserDict):
            return batch  # for Device, since only its own `to` knows all that is in it
        return rebuilt(batch, lambda part: self._moved(part, copies))


def _numpy_generators() -> tuple[type, ...]:
    try:
        from numpy.random import Generator, RandomState  # noqa: PLC0415 - torch does without NumPy
    except ImportError:
        return ()
    return Generator, RandomState
