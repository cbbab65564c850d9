"""Batches loaded in the background before they are asked for, such that a run cannot tell but by its speed."""

from __future__ import annotations

import contextvars
import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from camshaft.engine.generators import generator_states, same_states, set_states_of, states_of

__all__ = ["DataState", "LoadedAhead", "pause_loading"]

Receive = Callable[[], None]
Move = Callable[[Any], tuple[Any, Receive | None]]


class DataState:
    """What loading changes besides the global generators, so that it can be noted with each batch.

    Args:
        generators: of the data, by name.
        numbers: tells the numbers that are attributes of the data.
        set_numbers: sets some of them.
        position: tells the position of a loader that has a state of its own.
    """

    def __init__(
        self,
        generators: Mapping[str, Any],
        numbers: Callable[[], dict[str, Any]],
        set_numbers: Callable[[Mapping[str, Any]], None],
        position: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.generators = generators
        self.numbers = numbers
        self.set_numbers = set_numbers
        self.position = position
        self._moving: set[str] = set()  # the numbers that loading changes

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within this context one batch is loaded: it is seen which numbers that changes.

        A handler may set others, such as the strength of augmentation, also while a batch is loaded in the background.
        """
        before = self.numbers()
        yield
        self._moving = {name for name, number in self.numbers().items() if number != before.get(name)}

    def note(self) -> Noted:
        """The state of now."""
        position = None if self.position is None else copy.deepcopy(self.position())
        return Noted(states_of(self.generators), self._moving_numbers(), position)

    def _moving_numbers(self) -> dict[str, Any]:
        return {name: number for name, number in self.numbers().items() if name in self._moving} if self._moving else {}

    def change(self, before: Noted, after: Noted) -> None:
        """Where the state is still as in ``before``, make it as in ``after``; what others have set meanwhile stays."""
        generators, numbers = states_of(self.generators), self._moving_numbers()
        untouched = (name for name in after.generators if same_states(generators[name], before.generators[name]))
        set_states_of(self.generators, {name: after.generators[name] for name in untouched})
        self.set_numbers(
            {name: after.numbers[name] for name in after.numbers if numbers.get(name) == before.numbers.get(name)}
        )


class Noted(NamedTuple):
    """A state of the data: of its generators, its numbers, and its own position where it has one."""

    generators: Mapping[str, Any]
    numbers: Mapping[str, Any]
    position: Mapping[str, Any] | None


class Loaded(NamedTuple):
    """A batch, what is to be called before it is used, and the state of the data after it."""

    batch: Any
    receive: Receive | None
    state: Noted


class LoadedAhead(Iterator[Any]):
    """Goes on with an iterator, of which it loads batches in one background thread when it is told to.

    The first batch is loaded when it is asked for, as without this class, and it is seen whether that draws from the
    global random generators. If so no batch is ever loaded ahead, because the step may draw from them, too.

    Of the rest a run cannot tell: an error is raised with the batch that failed, and :meth:`rewound` shows the data as
    if the batches that are not used yet had not been loaded.

    Args:
        iterator: gives the batches.
        state: of the data they come from.
        move: moves a batch, in the background as well; tells what to call before the batch is used.
        may_load_ahead: False if nothing is to be loaded ahead in any case.
        length: how many batches there are; the end is not looked for ahead then. None if that is not known.
    """

    def __init__(
        self,
        iterator: Iterator[Any],
        state: DataState,
        move: Move | None = None,
        *,
        may_load_ahead: bool = True,
        length: int | None = None,
    ) -> None:
        self.iterator = iterator
        self.left = 2**31 if length is None else length
        """How many batches there are yet to be taken; very many if that is not known."""
        self.draws: bool | None = None
        """Whether loading draws from the global generators; None while that is not known."""
        self._may_load_ahead = may_load_ahead
        self._source = _Source(iterator, state, move)
        self._loading: deque[Future[Loaded | None]] = deque()
        self._used: Noted | None = None  # the state after the batch that was taken last; None: as it is now
        self._thread: ThreadPoolExecutor | None = None

    def __next__(self) -> Any:
        self.left -= 1
        if self._loading:
            return self._receive()
        self.pause()
        self._used = None
        if not self._may_load_ahead or self.draws is not None:
            return next(self.iterator)
        before = generator_states()
        with self._source.state.watched():
            batch = next(self.iterator)
        self.draws = not same_states(before, generator_states())
        return batch

    def _receive(self) -> Any:
        future = self._loading[0]
        try:
            loaded = future.result()
        except BaseException as error:
            if not future.done() or future.exception() is not error:
                raise  # an interrupt while waiting: the batch is still to come
            self.pause()
            self._forget()  # after an error of the loader, or its end, nothing more was loaded
            raise
        finally:
            del future  # which has the error, whose traceback has this frame
        assert loaded is not None  # or an error would have come before
        self._loading.popleft()
        self._used = loaded.state
        if loaded.receive is not None:
            loaded.receive()
        return loaded.batch

    def load(self, number: int) -> None:
        """Load in the background until ``number`` batches are there, or under way."""
        if not self._may_load_ahead or self.draws is not False or number <= len(self._loading):
            return
        if not self._loading:
            self._used = self._source.state.note()
        if self._thread is None:
            # A new thread would compute with as many threads as there are cores: slowly beside the step's, and to other
            # bits than the step's thread.
            threads = torch.get_num_threads()
            self._thread = ThreadPoolExecutor(1, "camshaft-prefetch", torch.set_num_threads, (threads,))
        surroundings = _Surroundings()
        while len(self._loading) < number:
            self._loading.append(self._thread.submit(self._source.load, surroundings))

    def pause(self) -> None:
        """Wait until what is under way is loaded, and end the thread; the batches remain."""
        thread, self._thread = self._thread, None
        if thread is not None:
            # The garbage collector may have come here in the very thread.
            thread.shutdown(wait=threading.get_ident() != self._source.thread)

    def close(self) -> list[Any]:
        """End the thread as soon as may be, and let the data be as if nothing had been loaded ahead.

        Returns:
            The batches that were loaded but not used.
        """
        self._source.failed = True  # so that what waits is not begun
        self.pause()
        if self._loading and self._used is not None and self._source.reached is not None:
            self._source.state.change(self._source.reached, self._used)
        results = [future.result() for future in self._loading if future.done() and future.exception() is None]
        self._forget()
        left = [loaded for loaded in results if loaded is not None]
        for loaded in left:
            if loaded.receive is not None:
                loaded.receive()
        return [loaded.batch for loaded in left]

    def _forget(self) -> None:
        self._loading.clear()
        self._used, self._source.failed = None, False

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Within this context the data is as if the batches that are not used yet had not been loaded."""
        self.pause()
        used, reached = self._used, self._source.reached
        if not self._loading or used is None or reached is None:
            yield
            return
        self._source.state.change(reached, used)
        try:
            yield
        finally:
            self._source.state.change(used, reached)

    @property
    def position(self) -> Mapping[str, Any] | None:
        """That of a loader with a state of its own after the batch that was taken last; None: as it tells itself."""
        return None if self._used is None else self._used.position

    def __del__(self) -> None:
        self.close()


class _Source:
    """What the thread works on; it does not know the iterator for whom it loads, so that this one can be let go."""

    def __init__(self, iterator: Iterator[Any], state: DataState, move: Move | None) -> None:
        self.iterator = iterator
        self.state = state
        self.move = move
        self.failed = False  # nothing more is to be loaded until that has been told
        self.reached: Noted | None = None  # the state after what was loaded last
        self.thread: int | None = None

    def load(self, surroundings: _Surroundings) -> Loaded | None:
        if self.failed:
            return None
        self.thread = threading.get_ident()
        try:
            return surroundings.run(self._load)
        except BaseException:
            self.failed = True
            raise

    def _load(self) -> Loaded:
        try:
            batch = next(self.iterator)
        finally:
            self.reached = self.state.note()
        batch, receive = (batch, None) if self.move is None else self.move(batch)
        return Loaded(batch, receive, self.reached)


class _Surroundings:
    """What belongs to a thread and has effects on loading: of the one that makes this, for the one that runs in it."""

    def __init__(self) -> None:
        self.context = contextvars.copy_context()
        self.gradients = torch.is_grad_enabled()
        self.inference = torch.is_inference_mode_enabled()
        self.device = torch.get_default_device()
        self.stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def run(self, function: Callable[[], Loaded]) -> Loaded:
        return self.context.run(self._run, function)

    def _run(self, function: Callable[[], Loaded]) -> Loaded:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(mode=self.inference))
            stack.enter_context(torch.set_grad_enabled(self.gradients))
            if self.device.type != "cpu":
                stack.enter_context(self.device)
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            return function()


def pause_loading(engine: Any) -> None:
    """Let an engine load nothing in the background until it takes its next batch.

    Another engine that is run meanwhile may have the same data set, or start processes, which threads do not survive.

    Example:
        >>> from camshaft.engine import Engine
        >>> pause_loading(Engine(lambda engine, batch: None))  # which loads nothing ahead
    """
    if isinstance(engine._dataloader_iter, LoadedAhead):
        engine._dataloader_iter.pause()
