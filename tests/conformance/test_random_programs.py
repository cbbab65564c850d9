"""Programs made at random do the same on both engines.

200 of them in every run of the tests; `pytest --hypothesis-profile nightly tests/conformance/test_random_programs.py`
tries 2,000 new ones. What is known to differ (test_differences.py) is left out, each where a comment says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from camshaft.engine import EventEnum, Events
from tests.conformance.recorder import Recorder, compare

PROGRAMS = max(200, settings().max_examples)


class Custom(EventEnum):
    BETWEEN = "between"


class Lengthless:
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


EVENTS = [*(event for event in Events if event is not Events.EXCEPTION_RAISED), Custom.BETWEEN]
# Ignite admits filters on others, and fails when these fire.
FILTERED_EVENTS = [
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.COMPLETED,
    Custom.BETWEEN,
]
FILTERS = st.one_of(
    st.fixed_dictionaries({"every": st.integers(1, 4)}),
    st.fixed_dictionaries({"once": st.integers(1, 6) | st.lists(st.integers(1, 6), min_size=1, max_size=3)}),
    st.fixed_dictionaries(
        {"before": st.integers(0, 6)}, optional={"after": st.integers(0, 4), "every": st.integers(2, 3)}
    ),
    st.fixed_dictionaries({"after": st.integers(0, 6)}, optional={"every": st.integers(2, 3)}),
    st.just({"event_filter": lambda engine, count: count % 3 == 1}),
)
ACTIONS = [
    "note",
    "terminate",
    "terminate, skip COMPLETED",
    "terminate_epoch",
    "terminate_epoch, skip EPOCH_COMPLETED",
    "interrupt",
    "set should_terminate",
    "set_data",
    "raise ValueError",
    "raise StopIteration",
    "fire BETWEEN",
    "fire DATALOADER_STOP_ITERATION",
    "add a handler",
    "add a filtered handler",
    "remove the first handler",
    "remove itself",
    "change max_epochs",
    "replace the batch",
    "save and load the state elsewhere",
]
# At these, raising or firing further events would differ, or never end.
ACTIONS_ON_ERRORS = ["note", "terminate", "terminate_epoch", "interrupt", "set_data", "add a handler"]


@dataclass(frozen=True)
class Handler:
    event: Any
    arguments: dict[str, Any]  # of the event's filter; {} for none
    action: str
    acts_at: frozenset[int]  # at which of its calls it does so
    takes_engine: bool


@dataclass(frozen=True)
class Run:
    data: Any
    arguments: dict[str, int]


def handlers(events: list[Any], actions: list[str], filters: st.SearchStrategy[dict[str, Any]]) -> Any:
    return st.builds(
        Handler,
        st.sampled_from(events),
        filters,
        st.sampled_from(actions),
        st.frozensets(st.integers(1, 4), min_size=1, max_size=3),
        st.booleans(),
    )


HANDLERS = st.lists(
    handlers(EVENTS, ACTIONS, st.just({})) | handlers(FILTERED_EVENTS, ACTIONS, FILTERS), min_size=1, max_size=6
)
ERROR_HANDLERS = st.lists(handlers([Events.EXCEPTION_RAISED], ACTIONS_ON_ERRORS, st.just({})), max_size=2)
DATA = st.tuples(st.sampled_from(["list", "iterator", "without length", "nothing"]), st.integers(0, 5))
LIMITS = st.one_of(
    st.fixed_dictionaries({}, optional={"max_epochs": st.integers(1, 4), "epoch_length": st.integers(1, 5)}),
    st.fixed_dictionaries({"max_iters": st.integers(1, 9)}, optional={"epoch_length": st.integers(1, 5)}),
)
RUNS = st.lists(st.builds(Run, DATA, LIMITS), min_size=1, max_size=4)


class Program:
    """What a generated program does on one engine."""

    def __init__(self, recorder: Recorder, program_handlers: list[Handler]) -> None:
        self.recorder = recorder
        self.engine = recorder.engine(self.step, max_steps=40)
        self.engine.register_events(*Custom, event_to_attr={Custom.BETWEEN: "iteration"})
        self.functions: list[tuple[Any, Any]] = []
        self.added = 0
        for number, handler in enumerate(program_handlers):
            self.add(handler, number)

    def step(self, engine: Any, batch: Any) -> Any:
        engine.fire_event(Custom.BETWEEN)
        return batch

    def add(self, handler: Handler, number: int) -> None:
        calls = 0

        def act(*_: Any, **keywords: Any) -> None:
            nonlocal calls
            calls += 1
            self.recorder.note((f"handler {number} of {handler.event.name}", keywords), self.engine)
            if calls in handler.acts_at:
                self.do(handler, function)

        def with_engine(engine: Any, *args: Any, **keywords: Any) -> None:
            act(engine, *args, **keywords)

        function = with_engine if handler.takes_engine else act
        event = handler.event(**handler.arguments) if handler.arguments else handler.event
        self.engine.add_event_handler(event, function)
        self.functions.append((handler.event, function))

    def do(self, handler: Handler, function: Any) -> None:  # noqa: C901, PLR0912 - a list of cases
        engine = self.engine
        match handler.action:
            case "terminate":
                engine.terminate()
            case "terminate, skip COMPLETED":
                engine.terminate(skip_completed=True)
            case "terminate_epoch":
                engine.terminate_epoch()
            case "terminate_epoch, skip EPOCH_COMPLETED":
                engine.terminate_epoch(skip_epoch_completed=True)
            case "interrupt":
                engine.interrupt()
            case "set should_terminate":
                engine.should_terminate = True
            case "set_data":
                engine.set_data([10, 11, 12])
            case "raise ValueError":
                raise ValueError(handler.event.name)
            case "raise StopIteration":
                raise StopIteration
            case "fire BETWEEN" if handler.event is not Custom.BETWEEN:
                engine.fire_event(Custom.BETWEEN)
            case "fire DATALOADER_STOP_ITERATION" if handler.event is not Events.DATALOADER_STOP_ITERATION:
                engine.fire_event(Events.DATALOADER_STOP_ITERATION)
            case "add a handler" if self.added < 5:
                self.added += 1
                self.add(Handler(handler.event, {}, "note", frozenset(), handler.takes_engine), 100 + self.added)
            case "add a filtered handler" if handler.event in FILTERED_EVENTS and self.added < 5:
                self.added += 1
                self.add(Handler(handler.event, {"every": 2}, "note", frozenset(), True), 100 + self.added)
            case "remove the first handler":
                self.remove(*self.functions[0])
            case "remove itself":
                self.remove(handler.event, function)
            case "change max_epochs":
                if engine.state.max_epochs is not None:
                    engine.state.max_epochs += 1
            case "replace the batch":
                engine.state.batch = "replaced"
            case "save and load the state elsewhere":
                self.load_elsewhere()

    def remove(self, event: Any, function: Any) -> None:
        # Without its last handler of EXCEPTION_RAISED, Ignite swallows all errors.
        if event != Events.EXCEPTION_RAISED and self.engine.has_event_handler(function, event):
            self.engine.remove_event_handler(function, event)

    def load_elsewhere(self) -> None:
        """Load the state into another engine, and let that go on."""
        saved = dict(self.engine.state_dict())
        saved.pop("epochs_completed", None)  # what Ignite does not save
        saved.pop("epoch_position", None)
        self.recorder.note(saved)
        other = self.recorder.engine(name="other ", max_steps=20)
        with self.recorder.outcome("loading", other):
            other.load_state_dict(saved)
            if not other._is_done(other.state):  # Ignite starts it again from the beginning
                self.recorder.run(other, range(3))


def make_data(kind: str, length: int) -> Any:
    return {"list": list(range(length)), "iterator": iter(range(length)), "without length": Lengthless(length)}.get(
        kind
    )


@settings(max_examples=PROGRAMS, suppress_health_check=[HealthCheck.too_slow])
@given(HANDLERS, ERROR_HANDLERS, RUNS)
def test_a_random_program_does_the_same_on_both_engines(program_handlers, error_handlers, runs) -> None:
    def program(recorder: Recorder) -> None:
        made = Program(recorder, [*program_handlers, *error_handlers])
        for run in runs:
            recorder.run(made.engine, make_data(*run.data), **run.arguments)

    compare(program)
