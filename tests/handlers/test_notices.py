import logging
from types import SimpleNamespace

import pytest

from camshaft.engine import Engine
from camshaft.handlers import notices
from camshaft.handlers.notices import tell


@pytest.fixture
def engine():
    return Engine(lambda engine, batch: None)


def test_a_line_is_a_warning_which_python_shows_where_no_logging_is_set_up(engine, caplog):
    tell(engine, "Going on with %s.", "runs/1")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Going on with runs/1.")
    ]


def test_in_a_notebook_it_is_not_on_the_standard_error(engine, caplog, monkeypatch):
    monkeypatch.setattr(notices, "notebook_shell", lambda: SimpleNamespace(kernel=True))
    with caplog.at_level(logging.INFO):
        tell(engine, "Going on.")
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_of_several_processes_the_first_tells(engine, caplog, monkeypatch):
    monkeypatch.setattr(notices, "rank", lambda: 1)
    tell(engine, "Going on.")
    assert not caplog.records
