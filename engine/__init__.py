"""The engine and its events: what happens when."""

from camshaft.engine.engine import Engine
from camshaft.engine.events import (
    CallableEventWithFilter,
    EventEnum,
    Events,
    EventsList,
    RemovableEventHandle,
    State,
    StepEvents,
)
from camshaft.engine.phases import Phase
from camshaft.engine.seeding import seed_everything

__all__ = [
    "CallableEventWithFilter",
    "Engine",
    "EventEnum",
    "Events",
    "EventsList",
    "Phase",
    "RemovableEventHandle",
    "State",
    "StepEvents",
    "seed_everything",
]
