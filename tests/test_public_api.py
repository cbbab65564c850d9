"""What is public changes only where somebody has seen it change: the list in docs/ is what the code has."""

from __future__ import annotations

import difflib
import sys
from types import ModuleType

import pytest

import camshaft
from camshaft.lazy import lazy_names
from tests.public_api import FILE, public_api


def test_what_is_public_is_what_the_list_says() -> None:
    listed, found = FILE.read_text(encoding="utf-8").splitlines(), public_api().splitlines()
    changes = list(difflib.unified_diff(listed, found, "the list", "the code", n=0, lineterm=""))
    assert not changes, "\n".join(
        [
            "The public API has changed. If it is meant, run `python tests/public_api.py` and add to CHANGELOG.md:",
            *changes,
        ]
    )


def test_the_list_sees_a_parameter_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def summary(model, sample=None, *, depth=3) -> None: ...

    before = public_api()
    monkeypatch.setattr(camshaft, "summary", summary)
    changed = set(public_api().splitlines()) - set(before.splitlines())
    assert "    summary(model, sample=None, *, depth=3)" in changed


def test_no_default_shows_an_address() -> None:
    assert "0x" not in public_api()


# Names that change


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of which `lazy_names` was `names_at_leisure` before."""
    module = ModuleType("camshaft.example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__path__ = camshaft.__path__
    renamed = {"names_at_leisure": ("lazy_names", "0.3.0")}
    module.__getattr__, module.__dir__ = lazy_names(module.__name__, {"lazy_names": "lazy"}, renamed)
    return module


def test_a_name_that_has_changed_works_and_warns_where_it_is_used(package: ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match=r"named camshaft\.example\.lazy_names now; version 0\.3\.0") as warned:
        assert package.names_at_leisure is package.lazy_names
    assert warned[0].filename == __file__


def test_a_name_that_has_changed_is_not_proposed(package: ModuleType) -> None:
    assert "lazy_names" in dir(package)
    assert "names_at_leisure" not in dir(package)
