from collections import Counter, OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import pytest

from camshaft.engine.nested import rebuilt

Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Sample:
    value: int
    name: str = "a"


class Settings(dict):
    """A dict that cannot be made from a dict alone."""

    def __init__(self, owner, **settings):
        super().__init__(settings)
        self.owner = owner


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({"a": 1}, {"a": "1"}),
        (OrderedDict(a=1), OrderedDict(a="1")),
        (UserDict(a=1), UserDict(a="1")),
        (Counter(a=1), Counter(a="1")),
        ([1, 2], ["1", "2"]),
        ((1, 2), ("1", "2")),
        (Pair(1, 2), Pair("1", "2")),
        (Sample(1), Sample("1", "a")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_item_of_a_container_is_changed_and_its_class_kept(container, expected):
    changed = rebuilt(container, str)
    assert changed == expected
    assert type(changed) is type(container)
    assert changed is not container


def test_a_mapping_keeps_what_else_it_holds():
    changed = rebuilt(defaultdict(list, a=1), str)
    assert changed == {"a": "1"}
    assert changed["absent"] == []
    settings = rebuilt(Settings("me", a=1), str)
    assert (settings, settings.owner) == ({"a": "1"}, "me")


def test_a_mapping_that_cannot_be_changed_is_made_anew():
    changed = rebuilt(MappingProxyType({"a": 1}), str)
    assert type(changed) is MappingProxyType
    assert changed == {"a": "1"}


@pytest.mark.parametrize("value", ["text", b"bytes", 1, None, {1, 2}, Sample], ids=repr)
def test_anything_else_comes_back_as_it_is(value):
    assert rebuilt(value, str) is value
