"""The engine: a loop over batches that calls one function and fires events, and is Ignite's in every other respect."""

from __future__ import annotations

import functools
import logging
import math
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from inspect import GEN_RUNNING, getgeneratorstate
from time import perf_counter
from typing import Any

from ignite.engine import Engine as IgniteEngine
from ignite.engine.utils import _check_signature, _to_hours_mins_secs

from camshaft.engine import overview
from camshaft.engine.clock import training_clock
from camshaft.engine.error_notes import note_position
from camshaft.engine.events import (
    STEP_EVENT_ATTRIBUTES,
    CallableEventWithFilter,
    EventEnum,
    Events,
    EventsList,
    RemovableEventHandle,
    State,
    StepEvents,
)
from camshaft.engine.phases import Phase
from camshaft.engine.subscribers import Subscribers, SubscribersByEvent
from camshaft.engine.timeline import Timeline
from camshaft.engine.training_step import TrainingStep

__all__ = ["Engine"]

GET_BATCH_STARTED, GET_BATCH_COMPLETED = Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED
ITERATION_STARTED, ITERATION_COMPLETED = Events.ITERATION_STARTED, Events.ITERATION_COMPLETED
DATALOADER_STOP_ITERATION = Events.DATALOADER_STOP_ITERATION


class _Request:
    """One of the flags by which a run is asked to end or to pause; those that are set are in ``engine._requests``.

    So the loop looks at one dict, which is empty nearly always, rather than at three attributes.
    """

    def __set_name__(self, owner: type[Engine], name: str) -> None:
        self.name = name

    def __get__(self, engine: Engine | None, owner: type[Engine]) -> Any:
        return self if engine is None else engine._requests.get(self.name, False)

    def __set__(self, engine: Engine, value: bool | str) -> None:
        if value:
            engine._requests[self.name] = value
        else:
            engine._requests.pop(self.name, None)


class Engine(IgniteEngine):
    """Runs ``process_function(engine, batch)`` over data and fires events; handlers do the rest.

    It is an ``ignite.engine.Engine``: every handler, metric and logger of Ignite works on it, and all of Ignite's
    methods (``on``, ``add_event_handler``, ``run``, ``terminate``, ``interrupt``, ``state_dict``, …) mean what they
    mean there. What fires when is drawn in :mod:`camshaft.engine.events`.

    Args:
        process_function: called with the engine and one batch; what it returns is kept in ``state.output``. With an
            ``OptimizerStep`` attached it returns the loss.

    Raises:
        ValueError: ``process_function`` is None, or cannot be called with an engine and a batch.

    Example:
        >>> from camshaft import Engine, Events
        >>> engine = Engine(lambda engine, batch: 2 * batch)
        >>> @engine.on(Events.ITERATION_COMPLETED(every=2))
        ... def show(engine):
        ...     print(engine.state.iteration, engine.state.output)
        >>> state = engine.run([1, 2, 3, 4], max_epochs=1)
        2 4
        4 8
    """

    should_terminate = _Request()
    should_terminate_single_epoch = _Request()
    should_interrupt = _Request()

    def __init__(self, process_function: Callable[[Any, Any], Any]) -> None:
        self._requests: dict[str, bool | str] = {}
        try:
            super().__init__(process_function)
        except ValueError as error:
            raise ValueError(f"{error} A step takes (engine, batch).") from None
        self._event_handlers: SubscribersByEvent = SubscribersByEvent(self)  # type: ignore[assignment]
        self._subscribing_phase = Phase.USER
        self._error_told: BaseException | None = None  # on its way out; EXCEPTION_RAISED's handlers know it already
        self._progress: tuple[int, int] | None = None  # epochs completed, and the iteration at which the next one began
        self.handlers: list[Any] = []
        """The Camshaft handlers attached, in order of attachment."""
        self.register_events(*StepEvents, event_to_attr=STEP_EVENT_ATTRIBUTES)

    # ------------------------------------------------------------------------------------------------ the loop

    def _internal_run(self) -> State:
        """Start the loop, or go on with an interrupted one; Ignite's ``run()`` has checked the arguments before."""
        loop = self._internal_run_generator
        if loop is None:
            loop = self._internal_run_generator = self._loop()
        elif getgeneratorstate(loop) == GEN_RUNNING:
            raise RuntimeError(
                "run() was called by a handler or by the step of the same engine while it runs. "
                "Use another Engine for the inner loop, or call run() again after this one has returned."
            )
        try:
            return next(loop)
        except StopIteration as finished:
            self._internal_run_generator = None
            state: State = finished.value
            return state
        except BaseException:
            self._internal_run_generator = self._error_told = None  # the next run() starts from the state reached
            raise

    def _internal_run_legacy(self) -> State:
        return self._internal_run()  # `interrupt_resume_enabled = False` only forbids interrupt(): one loop serves both

    def _loop(self, loaded: bool = False) -> Generator[State, None, State]:  # noqa: C901 - the loop, to be seen whole
        """Run epochs until the state says that it is done; yields where the run is interrupted."""
        state = self.state
        if loaded and self._is_done(state):
            self.logger.warning(
                "The loaded run is finished (epoch %d, iteration %d): nothing to do. "
                "Pass a larger max_epochs or max_iters to go on.",
                state.epoch,
                state.iteration,
            )
            return state
        if state.iteration == 0:
            self._progress = None
        requests = self._requests
        requests.clear()
        self._init_timers(state)
        self._forget_times()
        begin = perf_counter()
        try:
            try:
                self._fire_event(Events.STARTED)
                if requests:
                    yield from self._stop_if_asked()
                while not self._is_done(state) and not self.should_terminate:
                    state.epoch += 1
                    epoch_begin = training_clock(state)
                    self._fire_event(Events.EPOCH_STARTED)
                    epoch_seconds = training_clock(state) - epoch_begin
                    if requests:
                        yield from self._stop_if_asked()

                    if self._dataloader_iter is None:
                        self._setup_engine()
                    epoch_seconds += yield from self._epoch()
                    self._progress = state.epoch, state.iteration
                    epoch_seconds = self._fire_completed(
                        Events.EPOCH_COMPLETED, epoch_seconds, self.should_terminate_single_epoch
                    )
                    self.should_terminate_single_epoch = False  # the epoch is over anyway
                    if requests:
                        yield from self._stop_if_asked()
                    self._log_time("Epoch[%d] Complete. Time taken: %s", epoch_seconds, state.epoch)
            except _TerminateRun:
                self._fire_event(Events.TERMINATE)
            except _TerminateEpoch:
                raise RuntimeError(
                    "The method terminate_epoch() should not be called on Event.STARTED or Event.EPOCH_STARTED: "
                    "there is no epoch to end yet. Call it from GET_BATCH_STARTED or later."
                ) from None
            seconds = self._fire_completed(Events.COMPLETED, perf_counter() - begin, self.should_terminate)
            self._log_time("Engine run finished. Time taken: %s", seconds)
        except GeneratorExit:  # an interrupted run was dropped: nothing went wrong
            self._dataloader_iter = None
            raise
        except BaseException as error:
            self._dataloader_iter = None
            if not self._handled(error):
                raise
        self._dataloader_iter = None
        return self.state

    def _epoch(self) -> Generator[State, None, float]:  # noqa: C901, PLR0912, PLR0915 - the loop, to be seen whole
        """Get batches and call the step until the epoch is full; returns the seconds taken.

        This is the hot path: an event without subscribers costs the look at an empty list.
        """
        state = self.state
        begin = training_clock(state)
        get_batch_started, get_batch_completed = self._moment(GET_BATCH_STARTED), self._moment(GET_BATCH_COMPLETED)
        iteration_started, iteration_completed = self._moment(ITERATION_STARTED), self._moment(ITERATION_COMPLETED)
        requests = self._requests
        position = self._init_iter or 0  # iterations of this epoch that are done
        self._init_iter = None
        self._progress = state.epoch - 1, state.iteration - position
        restarted = False  # the data ended and began anew since the last batch
        try:
            while True:
                state.batch = None
                data = state.dataloader
                try:
                    if data is not None and self.last_event_name is not DATALOADER_STOP_ITERATION:
                        self.last_event_name = GET_BATCH_STARTED
                        if get_batch_started:
                            get_batch_started.fire(self)
                        if requests:
                            yield from self._stop_if_asked()
                    state.batch = next(self._dataloader_iter)  # type: ignore[arg-type]
                    state.output = None
                    if data is not None:
                        if get_batch_completed:
                            get_batch_completed.fire(self)
                        if requests:
                            yield from self._stop_if_asked()
                    restarted = False
                except StopIteration:
                    if self._data_is_over(position, restarted):
                        break
                    if data is not None:
                        self._fire_event(DATALOADER_STOP_ITERATION)
                        yield from self._stop_if_asked()
                    self._setup_dataloader_iter()
                    restarted = True
                    continue

                position += 1
                state.iteration += 1
                self.last_event_name = ITERATION_STARTED
                if iteration_started:
                    iteration_started.fire(self)
                if requests:
                    yield from self._stop_if_asked()

                state.output = self._process_function(self, state.batch)

                self.last_event_name = ITERATION_COMPLETED
                if iteration_completed:
                    iteration_completed.fire(self)
                if requests:
                    yield from self._stop_if_asked()

                if position == state.epoch_length:
                    break
                if state.iteration == state.max_iters:
                    self.should_terminate = True
                    raise _TerminateRun

        except _TerminateEpoch:
            self._fire_event(Events.TERMINATE_SINGLE_EPOCH, iter_counter=position)
            self._setup_dataloader_iter()
        except _TerminateRun:
            raise
        except Exception as error:
            if not self._handled(error):
                raise
        return training_clock(state) - begin

    def _data_is_over(self, position: int, restarted: bool) -> bool:
        """The data has ended: does the epoch end as well? It learns its length here if it has none."""
        state = self.state
        if state.epoch_length is None:
            state.epoch_length = position
            if state.max_iters is not None:
                state.max_epochs = math.ceil(state.max_iters / state.epoch_length)
            return True
        if restarted and not self._is_done(state):
            epochs = state.max_epochs
            total = state.max_iters if epochs is None else state.epoch_length * epochs
            warnings.warn(
                "Data iterator can not provide data anymore but required total number of "
                "iterations to run is not reached. "
                f"Current iteration: {state.iteration} vs Total iterations to run : {total}",
                stacklevel=2,
            )
        return restarted

    def _stop_if_asked(self) -> Generator[State, None, None]:
        """Leave the epoch or the run, or pause here, if a handler has asked for it."""
        if self.should_terminate:
            raise _TerminateRun
        if self.should_terminate_single_epoch:
            raise _TerminateEpoch
        if self.should_interrupt:
            self._fire_event(Events.INTERRUPT)
            self.should_interrupt = False
            yield self.state

    def _log_time(self, message: str, seconds: float, *values: Any) -> None:
        if self.logger.isEnabledFor(logging.INFO):  # to write the time costs as much as an epoch of no work
            hours, minutes, seconds = _to_hours_mins_secs(seconds)
            self.logger.info(message, *values, f"{hours:02d}:{minutes:02d}:{seconds:06.3f}")

    def _fire_completed(self, event: Events, seconds: float, asked_to_stop: bool | str) -> float:
        """Fire EPOCH_COMPLETED or COMPLETED unless asked to skip it; note and return the time with its handlers."""
        begin = training_clock(self.state)
        self.state.times[event.name] = seconds
        if asked_to_stop not in ("skip_epoch_completed", "skip_completed"):
            self._fire_event(event)
            seconds += training_clock(self.state) - begin
            self.state.times[event.name] = seconds
        return seconds

    def _handled(self, error: BaseException) -> bool:
        """Tell the handlers of EXCEPTION_RAISED of an error, once; True if they took care of it.

        A KeyboardInterrupt or SystemExit they may see but not stop.
        """
        if error is self._error_told:
            return False
        self._error_told = error
        if isinstance(error, Exception):
            note_position(error, self, None if self._progress is None else self._progress[1])
        # Who asks to exit knows why; as text, since records of a log keep what they are given.
        level = logging.INFO if isinstance(error, SystemExit) else logging.ERROR
        self.logger.log(level, "Engine run is terminating due to exception: %s", str(error))
        if not self._event_handlers.get(Events.EXCEPTION_RAISED):
            return False
        try:
            self._fire_event(Events.EXCEPTION_RAISED, error)
        except BaseException as raised:
            self._error_told = raised
            raise
        if isinstance(error, Exception):
            self._error_told = None
            return True
        return False

    # ------------------------------------------------------------------------------------------------ events

    def attach(self, *handlers: Any) -> Engine:
        """Attach handlers, in any order.

        Args:
            handlers: objects with a method ``attach(engine)``: Camshaft's handlers, and those of Ignite that need no
                further argument.

        Returns:
            The engine itself.

        Raises:
            TypeError: something that cannot be attached; nothing was attached then.

        Example:
            >>> from camshaft import Engine
            >>> from camshaft.handlers import TimeLimit
            >>> engine = Engine(lambda engine, batch: None).attach(TimeLimit(60))
            >>> engine.handlers
            [TimeLimit(seconds=60)]
        """
        for handler in handlers:
            if isinstance(handler, type) or not callable(getattr(handler, "attach", None)):
                raise TypeError(
                    f"attach() takes handlers, objects with a method attach(engine), but got {handler!r}. "
                    "A plain function is added with engine.add_event_handler(event, function) or @engine.on(event)."
                )
        for handler in handlers:
            handler.attach(self)
        return self

    def add_event_handler(
        self, event_name: Any, handler: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> RemovableEventHandle:
        """Call ``handler`` when ``event_name`` fires, as in Ignite.

        Args:
            event_name: an event, with a filter or without, or several joined by ``|``.
            handler: called with the engine if its signature takes it, then with ``args`` and ``kwargs``.
            args: further arguments for ``handler``.
            kwargs: further keyword arguments for ``handler``.

        Returns:
            A handle whose ``remove()`` undoes it.

        Raises:
            ValueError: the event is not registered, its filter has nothing to count, or ``handler`` cannot be called
                with these arguments.

        Example:
            >>> engine = Engine(lambda engine, batch: None)
            >>> handle = engine.add_event_handler(Events.COMPLETED, lambda engine: print(engine.state.iteration))
            >>> state = engine.run(range(3))
            3
        """
        if isinstance(event_name, EventsList):
            for event in event_name:
                self.add_event_handler(event, handler, *args, **kwargs)
            return RemovableEventHandle(event_name, handler, self)

        self._assert_allowed_event(event_name)
        if event_name in STEP_EVENT_ATTRIBUTES and not self._is_of_user(event_name):
            TrainingStep.of(self)  # what fires the moments of a step
        event_args: tuple[Any, ...] = ()
        if event_name == Events.EXCEPTION_RAISED:
            event_args = (Exception(),)
        elif event_name == Events.TERMINATE_SINGLE_EPOCH:
            event_args = (0,)
        try:
            _check_signature(handler, "handler", self, *event_args, *args, **kwargs)
            args = (weakref.ref(self), *args)
        except ValueError:
            _check_signature(handler, "handler", *event_args, *args, **kwargs)

        if isinstance(event_name, CallableEventWithFilter) and event_name.filter is not None:
            handler = self._filtered(handler, event_name, event_name.filter)
        self._event_handlers[event_name].add((handler, args, kwargs), self._subscribing_phase, event_name)
        self.logger.debug("Added handler for event %s", event_name)
        return RemovableEventHandle(event_name, handler, self)

    def _is_of_user(self, event: Any) -> bool:
        """Whether the user has registered an event of this name, which then is fired by the user."""
        return any(known == event and not isinstance(known, StepEvents) for known in self._allowed_events)

    def _filtered(
        self, handler: Callable[..., Any], event: CallableEventWithFilter, event_filter: Callable[..., bool]
    ) -> Callable[..., Any]:
        """``handler`` behind the filter of ``event``, in the form that Ignite's code expects to find."""
        if event not in State.event_to_attr:
            raise ValueError(
                f"The filter of {event!r} has nothing to count: no attribute of engine.state belongs to this event. "
                f"Register it with engine.register_events(..., event_to_attr={{{event.name}: 'attribute'}}), "
                "or attach without a filter."
            )
        engine_reference = weakref.ref(self)
        counted = State.event_to_attr[event]

        @functools.wraps(handler)
        def behind_filter(*args: Any, **kwargs: Any) -> Any:
            engine = engine_reference()
            if engine is not None and event_filter(engine, getattr(engine.state, counted)):
                return handler(*args, **kwargs)
            return None

        behind_filter._parent = weakref.ref(handler)  # type: ignore[attr-defined]
        return behind_filter

    def remove_event_handler(self, handler: Callable[..., Any], event_name: Any) -> None:
        """Remove every attachment of ``handler`` to ``event_name``, as in Ignite.

        Args:
            handler: what was added.
            event_name: the event that it was added to.

        Raises:
            ValueError: it was not.

        Example:
            >>> engine, report = Engine(lambda engine, batch: None), lambda: print("done")
            >>> handle = engine.add_event_handler(Events.COMPLETED, report)
            >>> engine.remove_event_handler(report, Events.COMPLETED)
            >>> state = engine.run(range(3))
        """
        if event_name not in self._event_handlers:
            raise ValueError(f"Input event name '{event_name}' does not exist")
        if not self._event_handlers[event_name].drop(functools.partial(self._compare_handlers, handler)):
            raise ValueError(f"Input handler '{handler}' is not found among registered event handlers")

    def fire_event(self, event_name: Any) -> None:
        """Fire a registered event from the step or a handler.

        Args:
            event_name: the event.

        Raises:
            ValueError: it is not registered.

        Example:
            >>> engine = Engine(lambda engine, batch: engine.fire_event("halfway"))
            >>> engine.register_events("halfway")
            >>> handle = engine.add_event_handler("halfway", lambda: print("halfway"))
            >>> state = engine.run([0])
            halfway
        """
        if event_name not in self._event_handlers:  # only what is registered gets there
            self._assert_allowed_event(event_name)
        self._fire_event(event_name)

    def _fire_event(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        self.logger.debug("%s | %s, Firing handlers for event %s", self.state.epoch, self.state.iteration, event_name)
        self.last_event_name = event_name
        subscribers = self._event_handlers.get(event_name)
        if subscribers:
            subscribers.fire(self, event_args, event_kwargs)

    def _moment(self, event: EventEnum) -> Subscribers | _FiredInFull:
        """What the hot path fires ``event`` through: its subscribers, or ``_fire_event`` where there is more to it."""
        overridden = getattr(self._fire_event, "__func__", None) is not Engine._fire_event
        if overridden or self.logger.isEnabledFor(logging.DEBUG):
            return _FiredInFull(event)
        return self._event_handlers[event]

    # ------------------------------------------------------------------------------------------------ state

    def state_dict(self) -> OrderedDict[str, Any]:
        """What :meth:`load_state_dict` of this engine or of a stock Ignite one takes.

        Both derive the epoch from the iteration. Where an epoch was cut short that would be wrong, so there, and only
        there, two more entries say how many epochs are completed and how many iterations of the next one are done.

        Example:
            >>> engine = Engine(lambda engine, batch: engine.terminate_epoch())
            >>> state = engine.run([0, 1, 2], max_epochs=2)
            >>> dict(engine.state_dict())
            {'epoch_length': 3, 'iteration': 2, 'max_epochs': 2, 'epochs_completed': 2, 'epoch_position': 0}
        """
        state_dict: OrderedDict[str, Any] = super().state_dict()
        state = self.state
        if self._progress is not None and state.epoch_length:
            completed, began = self._progress
            more, position = divmod(state.iteration - began, state.epoch_length)  # after its last iteration it is done
            if (completed + more, position) != divmod(state.iteration, state.epoch_length):
                state_dict.update(epochs_completed=completed + more, epoch_position=position)
        return state_dict

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state that ``state_dict()`` gave; a run that was finished is not started again.

        Args:
            state_dict: with ``"epoch_length"``, ``"iteration"`` or ``"epoch"``, ``"max_epochs"`` or ``"max_iters"``.

        Raises:
            ValueError: a key is missing or contradicts another.

        Example:
            >>> finished, fresh = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
            >>> state = finished.run([0, 1], max_epochs=3)
            >>> fresh.load_state_dict(finished.state_dict())
            >>> fresh.run([0, 1], max_epochs=4).iteration
            8
        """
        super().load_state_dict(state_dict)
        completed, position = state_dict.get("epochs_completed"), state_dict.get("epoch_position")
        if completed is None or position is None:
            self._progress = self._init_iter = None
        else:
            self.state.epoch, self._init_iter = completed, position
            self._progress = completed, self.state.iteration - position
        loop = self._internal_run_generator
        if loop is None or getgeneratorstate(loop) != GEN_RUNNING:  # else a handler loads, and that loop goes on there
            # Ignite's run() takes a state that is done for a run to be started anew, unless a loop is there.
            self._internal_run_generator = self._loop(loaded=True) if self._is_done(self.state) else None

    # ------------------------------------------------------------------------------------------------ looks

    def timeline(self, first: int = 1, iterations: int = 3) -> Timeline:
        """Record which event and handler runs when, over a few iterations of the next run, and cost nothing after.

        Args:
            first: the iteration to begin with; a run that is beyond it already begins where it is.
            iterations: how many; what ends the epoch of the last one, such as a validation, is recorded with it.

        Returns:
            The recording, to be drawn with ``plot("timeline.png")`` or written with ``export("timeline.json")`` after
            the run.

        Raises:
            ValueError: a number is less than 1.

        Example:
            >>> engine = Engine(lambda engine, batch: None)
            >>> timeline = engine.timeline(first=3)
            >>> state = engine.run(range(10))
            >>> sorted({span.iteration for span in timeline.spans if span.name == "step"})
            [3, 4, 5]
        """
        return Timeline(self, first, iterations)

    def _forget_times(self) -> None:
        for subscribers in self._event_handlers.values():
            for subscriber in (*subscribers.prompt, *subscribers.late):
                subscriber.seconds = 0.0

    def __repr__(self) -> str:
        step = getattr(self._process_function, "__name__", type(self._process_function).__name__)
        return f"<{type(self).__name__} of {step}, {sum(map(len, self._event_handlers.values()))} subscribers>"

    def __str__(self) -> str:
        return overview.as_text(self)

    def _repr_html_(self) -> str:
        return overview.as_html(self)


class _FiredInFull:
    """Fires one event through ``_fire_event``, because that is overridden, or logs each event."""

    __slots__ = ("event",)

    def __init__(self, event: EventEnum) -> None:
        self.event = event

    def fire(self, engine: Engine) -> None:
        engine._fire_event(self.event)


class _TerminateRun(Exception):
    """Unwinds the loop after ``terminate()``."""


class _TerminateEpoch(Exception):
    """Unwinds the epoch after ``terminate_epoch()``."""
