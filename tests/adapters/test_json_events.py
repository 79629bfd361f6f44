"""What adapters share to make JSON: sorted sets, faults with their path, texts for odd values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from adapters_support import needs

from sessionstore import CorruptData, Event, InvalidArgument, SessionKey
from sessionstore.adapters.json_events import (
    dict_of,
    find_fault,
    json_event,
    text_of,
    with_sorted_sets,
)

WORDS = [f"word {number}" for number in range(20)]
KEY = SessionKey("shop", "ann", "one")


@dataclass(frozen=True)
class Frozen:
    """A dataclass that refuses to be changed."""

    tags: Any
    other: int = 1


@dataclass(slots=True)
class Slots:
    """A dataclass without a `__dict__`."""

    tags: Any
    missing: int = field(init=False)


def test_sets_are_sorted_in_whatever_holds_them() -> None:
    words = set(WORDS)
    assert with_sorted_sets({"a": [words, 1]}) == {"a": [sorted(words), 1]}
    assert with_sorted_sets((1, frozenset(words))) == [1, sorted(words)]
    assert with_sorted_sets({frozenset({"b", "a"}), frozenset("c")}) == [["a", "b"], ["c"]]
    for kind in (Frozen, Slots):
        made = kind(words)
        assert with_sorted_sets(made).tags == sorted(words)
        assert made.tags is words, "what the caller holds is not changed"


def test_sets_in_models_are_sorted() -> None:
    pydantic: Any = needs("pydantic", "pydantic-ai")

    class Found(pydantic.BaseModel):  # type: ignore[misc]  # Any
        model_config = pydantic.ConfigDict(extra="allow")
        tags: set[str]

    made = Found(tags=set(WORDS), more=[set(WORDS)])
    found = json.loads(with_sorted_sets(made).model_dump_json(warnings=False))
    assert found == {"tags": sorted(WORDS), "more": [sorted(WORDS)]}
    assert made.tags == set(WORDS)


@pytest.mark.parametrize("value", [1, "x", [1, {"a": (2,)}], Frozen([1]), Slots("x"), Frozen, None])
def test_what_contains_no_set_is_not_copied(value: Any) -> None:
    assert with_sorted_sets(value) is value


def test_an_invalid_value_is_found_in_any_container() -> None:
    odd = object()
    for value, path in (
        ({"a": [1, {"b": odd}]}, "x['a'][1]['b']"),
        ([Frozen({"n": odd})], "x[0].tags['n']"),
        (odd, "x"),
    ):

        def encode(part: Any) -> str:
            if isinstance(part, Frozen):
                part = part.tags
            return json.dumps(part, default=lambda each: each.tags)

        found, part = find_fault(value, "x", encode)
        assert (found, part is odd) == (path, True)
    itself: list[Any] = []
    itself.append(itself)
    assert find_fault(itself, "x", json.dumps)[1] is itself


@pytest.mark.parametrize(
    "value",
    [{"a": "\u2615"}, {"a": "\ud800"}, {"\udfff": [float("-inf")]}, {"a": 1 << 200, "b": -0.0}],
)
def test_what_python_writes_as_json_is_read_back(value: Any) -> None:
    event = json_event("author", value, "item")
    stored = Event("author", json.loads(bytes(event.content)))
    assert dict_of(stored, KEY, "an item") == value


def test_what_is_not_json_is_refused_with_its_path() -> None:
    with pytest.raises(InvalidArgument, match=r"^item\['a'\]\[0\] is a object, which is not JSON$"):
        json_event("author", {"a": [object()]}, "item")
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidArgument, match=r"^item is nested too deeply$"):
        json_event("author", deep, "item")
    with pytest.raises(CorruptData, match="is not an item"):
        dict_of(Event("author", "1"), KEY, "an item")


def test_the_first_valid_text_is_found() -> None:
    names = ("a", "b", "c")
    assert text_of({"a": "", "b": 1, "c": "x"}, *names) == "x"
    assert text_of({"a": "x\ud800", "b": "line\n"}, *names) == ""
