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
from camshaft.engine.tensor_loader import TensorLoader

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
    "TensorLoader",
    "seed_everything",
]
