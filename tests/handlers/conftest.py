"""What tests of handlers share: each behaviour is shown on Camshaft's engine and on a stock Ignite engine."""

from collections.abc import Callable
from typing import Any

import pytest
from ignite.engine import Engine as IgniteEngine

from camshaft.engine import Engine


@pytest.fixture(params=[Engine, IgniteEngine], ids=["camshaft", "ignite"])
def engine_class(request: pytest.FixtureRequest) -> type[IgniteEngine]:
    """The class of engine that a test runs on: ours and Ignite's in turn."""
    return request.param


@pytest.fixture
def engine_of(engine_class: type[IgniteEngine]) -> Callable[..., Any]:
    """Makes an engine of ``engine_class`` from a step and the handlers to attach."""

    def make(step: Callable[[Any, Any], Any], *handlers: Any) -> Any:
        engine = engine_class(step)
        for handler in handlers:
            handler.attach(engine)
        return engine

    return make
