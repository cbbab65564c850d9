"""The documentation site: what its check finds, and that its reference has an entry for every public name.

``make docs`` builds the site and runs the check on it.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import camshaft
from camshaft import Events, StepEvents
from tests.docs.code_blocks import ROOT
from tests.public_api import public_modules

REFERENCE = ROOT / "docs" / "reference"


def load(path: Path) -> ModuleType:
    """A script in docs/, which is no package."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


check_site = load(ROOT / "docs" / "check_site.py")

# The check of the built site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "guides").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="guides/Fast.html#profile">fast</a> <a href="#here" id="here">here</a> <img src="a.png" alt="a curve">'
        '<a href="https://pytorch.org/nowhere">elsewhere</a> <div class="table-wrapper"><table></table></div>'
    )
    (tmp_path / "guides" / "Fast.html").write_text('<h2 id="profile">Profile</h2> <a href="../index.html">back</a>')
    (tmp_path / "a.png").touch()
    (tmp_path / "searchindex.js").write_text('Search.setIndex({"objects": {"camshaft": [[0, 0, 1, "", "EMA"]]}})')
    return tmp_path


def test_the_last_line_of_the_check_is_the_page_to_open(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(camshaft, "__all__", ["EMA"])
    monkeypatch.setattr(sys, "argv", ["check_site.py", str(site)])
    assert check_site.main() == 0
    assert str(site / "index.html") in capsys.readouterr().out.splitlines()[-1]
    add(site, "<a href='nowhere.html'>nowhere</a>")
    assert check_site.main() == 1
    assert capsys.readouterr().out == ""


def add(site: Path, html: str) -> None:
    with (site / "index.html").open("a") as file:
        file.write(f"\n{html}\n")


def test_a_site_that_is_whole_has_no_problems(site: Path) -> None:
    assert check_site.problems(site, ["EMA"]) == []


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="guides/slow.html">slow</a>', "guides/slow.html leads to no file"),
        ('<script src="search.js"></script>', "search.js leads to no file"),
        ('<a href="../outside.html">outside</a>', "../outside.html leads to no file"),
        ('<a href="guides/fast.html">fast</a>', "guides/fast.html leads to no file"),  # the disk has Fast.html
        ('<a href="guides/Fast.html#trace">trace</a>', "guides/Fast.html#trace leads to no anchor on guides/Fast.html"),
        ('<a href="#there">there</a>', "#there leads to no anchor on index.html"),
    ],
    ids=["page", "file", "outside", "case", "anchor", "own anchor"],
)
def test_a_link_that_leads_nowhere_is_named(site: Path, html: str, problem: str) -> None:
    add(site, html)
    assert check_site.problems(site) == [f"index.html, line 2: {problem}"]


def test_a_picture_that_does_not_say_what_it_shows_is_named(site: Path) -> None:
    add(site, '<img src="a.png">')
    assert check_site.problems(site) == ["index.html, line 2: the picture a.png does not say what it shows"]


@pytest.mark.parametrize("tag", ["table", "pre"])
def test_what_would_be_wider_than_a_phone_is_named(site: Path, tag: str) -> None:
    add(site, f'<div class="highlight"></div><br><p>text<{tag}>wide</{tag}>')
    assert check_site.problems(site) == [f"index.html, line 2: a <{tag}> that does not scroll on a narrow screen"]


def test_hidden_python_that_is_left_in_a_page_is_named(site: Path) -> None:
    add(site, "<!-- python\nassert True\n-->")
    assert check_site.problems(site) == ["index.html, line 2: python that readers need not see"]


def test_a_name_that_the_search_does_not_find_is_named(site: Path) -> None:
    assert check_site.problems(site, ["EMA", "AMP"]) == ["searchindex.js: the search does not find AMP"]


# The reference


def entries() -> list[Any]:
    """What has an entry in docs/reference: written for it, or by the ``__all__`` of its module."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.rst")))
    kinds = r"auto(?:class|function|exception)|class|data"
    names = re.findall(rf"^\.\. (?:{kinds}):: (\S+(?:\n {{10}}\S+)*)", text, re.MULTILINE)
    found = [value_of(name) for several in names for name in several.split()]
    for module in map(import_module, re.findall(r"^\.\. automodule:: (\S+)", text, re.MULTILINE)):
        values = (value_in(module, name) for name in module.__all__)
        found += [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]
    return found


def value_of(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return value_in(import_module(module), attribute)


def value_in(module: ModuleType, name: str) -> Any:
    value = getattr(module, name)
    return getattr(value, name) if inspect.ismodule(value) else value  # camshaft.launch is the name of both


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_every_public_name_has_an_entry_in_the_reference(module: ModuleType) -> None:
    described = {id(value) for value in entries()}
    public = (name for name in module.__all__ if not name.startswith("__"))
    assert [name for name in public if id(value_in(module, name)) not in described] == []


def test_every_handler_is_in_the_table_of_the_reference() -> None:
    table = (REFERENCE / "index.rst").read_text(encoding="utf-8")
    listed = re.findall(r"^   ~camshaft\.(\w+)$", table, re.MULTILINE)
    assert listed == [name for name in camshaft.handlers.__all__ if name != "On"]


# What the guides say of others


def test_all_peers_but_keras_end_in_the_weights_of_the_loop_by_hand() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^(\w[\w ]*?)  .* (same bits|others)\b", results, re.MULTILINE)
    assert {name for name, weights in rows if weights == "others"} <= {"Keras on torch"}
    assert {"Ignite", "Accelerate", "TorchTNT"} <= {name for name, weights in rows if weights == "same bits"}
    assert "with all of them but Keras" in " ".join((ROOT / "docs" / "comparison.md").read_text("utf-8").split())


# The guides for those who come from other libraries


@pytest.mark.parametrize("guide", ["from-keras.md", "from-fastai.md"])
def test_what_a_guide_puts_in_the_place_of_another_name_is_there(guide: str) -> None:
    rows = re.findall(r"^\| .* \| (.*) \|$", (ROOT / "docs" / guide).read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([A-Z][A-Za-z_]+)[`(.]", row)}
    known = {*dir(camshaft), *Events.__members__, *StepEvents.__members__, "DataLoader", "OneCycleLR"}
    assert len(names) > 20
    assert sorted(names - known) == []


# Drawings that stand in the text, so that it is whole where there is no site, and in the code


@pytest.mark.parametrize("path", ["engine/events.py", "engine/training_step.py", "CONTRIBUTING.md"])
def test_what_how_it_works_shows_is_what_the_code_says(path: str) -> None:
    def lines(text: str) -> list[str]:
        return [line.strip() for line in text.splitlines()]

    shown = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    source = lines((ROOT / path).read_text(encoding="utf-8"))
    first = {"engine/events.py": "STARTED", "engine/training_step.py": "FORWARD_STARTED"}.get(path, "| phase | who |")
    found = re.findall(r"```text\n([^`]*)```|^((?:\|[^\n]*\n)+)", shown, re.MULTILINE)
    drawings = [lines(block or table) for block, table in found]
    (drawing,) = [one for one in drawings if one[0].startswith(first) and len(one) > 4]
    begin = source.index(drawing[0])
    assert source[begin : begin + len(drawing)] == drawing
