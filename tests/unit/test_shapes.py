"""Plain values of dataclasses: the framework reads them back equal, and is rarely called."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionstore.adapters.shapes import Shapes

NOW = datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=UTC)


@dataclasses.dataclass
class Text:
    """A part with text."""

    text: str
    at: datetime | None = None
    kind: Literal["text"] = "text"


@dataclasses.dataclass
class Use:
    """A part with any JSON as arguments."""

    args: dict[str, Any] | str | None = None
    typed: dict[str, int] | None = None
    tool_kind: str | None = None
    anything: Any = None


@dataclasses.dataclass
class Message:
    """Parts, and numbers with and without defaults."""

    parts: list[Any] = dataclasses.field(default_factory=list)
    state: Literal["done", "open"] = "done"
    count: int = 0
    cost: float | None = 0.5
    is_last: bool | None = None


class Reader:
    """Reads plain values back, and counts how often."""

    def __init__(self) -> None:
        self.count = 0
        self.shapes = Shapes(self.comes_back)

    def read(self, content: dict[str, Any]) -> Message:
        """Read a value as a framework does: by annotations, and parts by their `kind`."""
        data = msgspec.json.decode(msgspec.json.encode(content))
        parts = [
            msgspec.convert(part, Text if part.get("kind") == "text" else Use)
            for part in data.pop("parts", [])
        ]
        message = msgspec.convert(data | {"parts": []}, Message)
        message.parts = parts
        for part in parts:
            # `kind` decides what is read, as in a discriminated union.
            if isinstance(part, Use) and part.tool_kind == "cursed":
                part.anything = "else"
            if isinstance(part, Use) and isinstance(part.anything, dict):
                part.anything = Text(**part.anything) if "text" in part.anything else part.anything
        return message

    def comes_back(self, content: dict[str, Any], message: Message) -> bool:
        self.count += 1
        try:
            return self.read(content) == message
        except (TypeError, ValueError):
            return False


def plain(reader: Reader, message: Message) -> Any:
    return reader.shapes.plain(message)


def test_one_message_of_a_shape_is_read_back() -> None:
    reader = Reader()
    for number in range(5):
        message = Message([Text(f"text {number}", NOW), Use({"a": [number]})], count=number)
        content = plain(reader, message)
        assert reader.read(content) == message
    assert reader.count == 1
    assert content == {
        "parts": [
            {"text": "text 4", "at": "2024-05-15T12:00:00.123456Z", "kind": "text"},
            {"args": {"a": [4]}},
        ],
        "state": "done",
        "count": 4,
        "cost": 0.5,
    }


def test_parts_of_known_shapes_may_come_in_any_number() -> None:
    reader = Reader()
    assert plain(reader, Message([Text("a"), Use({})]))
    assert plain(reader, Message([Use({}), Text("a"), Text("b"), Use({})]))
    assert reader.count == 1


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (Message([Use({"a": 1})]), Message([Use({"a": b"\xff"})])),
        (Message([Use({"a": 1})]), Message([Use({"a": (1, 2)})])),
        (Message([Use({"a": 1})]), Message([Use({"a": math.inf})])),
        (Message([Use({"a": 1})]), Message([Use({"a": 1 << 70})])),
        (Message([Use({"a": 1})]), Message([Use({"a": "\ud800"})])),
        (Message([Use(typed={})]), Message([Use(typed={"a": "b"})])),  # type: ignore[dict-item]
        (Message([Use(anything={})]), Message([Use(anything={"text": "x"})])),
        (Message([Use(anything="x")]), Message([Use(anything=b"x")])),
        (Message([Use(anything=[])]), Message([Use(anything=["x"])])),
        (Message([Use(anything=[])]), Message([Use(anything=[{"text": "x"}])])),
        (Message([Use(anything=[]), Text("x")]), Message([Use(anything=[Text("x")])])),
        (Message([Use(tool_kind="a")]), Message([Use(tool_kind="cursed")])),
        (Message([Use(args="cursed")]), Message([Use(tool_kind="cursed")])),
        (Message([Text("x", NOW)]), Message([Text("x", NOW.replace(tzinfo=None))])),
        (
            Message([Text("x", NOW)]),
            Message([Text("x", NOW.astimezone(timezone(timedelta(seconds=30))))]),
        ),
        (Message([Text("x")]), Message([Text(1)])),  # type: ignore[arg-type]
        (Message([Text("x")]), Message([Text(None)])),  # type: ignore[arg-type]
        (Message([Text("x")]), Message([Text("x", kind="other")])),  # type: ignore[arg-type]
        (Message([Text("x")]), Message(["x"])),
        (Message([Text("x")]), Message([{"text": "x"}])),
        (Message([Text("x")]), Message((Text("x"),))),  # type: ignore[arg-type]
        (Message(), Message(state="lost")),  # type: ignore[arg-type]
        (Message(), Message(count=1 << 64)),
        (Message(), Message(cost=math.nan)),
        (Message(), Message(cost=None)),  # not the default
        (Message(), Message(count=True)),
    ],
    ids=repr,
)
def test_what_would_be_read_as_something_else_is_not_plain(known: Message, other: Message) -> None:
    reader = Reader()
    assert plain(reader, known) is not None
    found = plain(reader, other)
    assert found is None or repr(reader.read(found)) == repr(other)
    msgspec.msgpack.encode(found)


def test_what_was_set_beside_the_fields_is_not_plain() -> None:
    message = Message(is_last=True)
    message.note = "x"  # type: ignore[attr-defined]
    assert plain(Reader(), message) is None


def test_defaults_of_the_class_are_told_from_none() -> None:
    reader = Reader()
    default, none = Message(), Message(cost=None)
    del default.__dict__["cost"]  # the same as never set
    del none.__dict__["is_last"]
    assert reader.read(plain(reader, default)) == default
    found = plain(reader, none)
    assert found is None or reader.read(found) == none


texts = st.text(max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
anything = st.one_of(json_values, st.datetimes(), st.tuples(texts), st.just(Text("x")))
parts = st.one_of(
    st.builds(Text, texts, st.none() | st.datetimes(timezones=st.just(UTC)) | st.datetimes()),
    st.builds(
        Use,
        st.none() | texts | st.dictionaries(texts, json_values, max_size=3),
        st.none() | st.dictionaries(texts, st.integers() | texts, max_size=2),
        st.none() | st.sampled_from(["a", "cursed"]),
        anything,
    ),
)
messages = st.builds(
    Message,
    st.lists(parts, max_size=3),
    st.sampled_from(["done", "open", "lost"]),
    st.integers(),
    st.none() | st.floats(),
    st.none() | st.booleans(),
)


@given(st.lists(messages, min_size=1, max_size=8))
def test_what_is_plain_comes_back(written: list[Message]) -> None:
    reader = Reader()
    for message in written:
        found = plain(reader, message)
        if found is not None:
            assert reader.read(found) == message
            assert msgspec.json.decode(msgspec.json.encode(found)) == found
            msgspec.msgpack.encode(found)
