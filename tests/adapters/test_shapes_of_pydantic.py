"""Plain values of pydantic's models: the same as read back, whatever they hold."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from adapters_support import needs
from hypothesis import given
from hypothesis import strategies as st

from sessionstore import Event, codec
from sessionstore.adapters import shapes

needs("pydantic", "adk")
from pydantic import BaseModel, ConfigDict, Field, field_validator  # noqa: E402  # not before it is known to be there

NOW = datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=UTC)


class Color(Enum):
    """Members, two of which are not texts."""

    RED = "red"
    BLUE = "blue"
    ONE = 1
    NONE = ()


class Base(BaseModel):
    """As the frameworks have their models."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class Part(Base):
    """A part of a message."""

    text: str | None = None
    data: bytes | None = None
    args: dict[str, Any] | None = None
    words: list[str] | None = None
    counts: dict[str, int] | None = None


class Actions(Base):
    """What is mostly as it is by default."""

    delta: dict[str, Any] = Field(default_factory=dict)
    target: str | None = None
    elsewhere: dict[str, Any] = Field(default_factory=dict)


class Same(Part):
    """Another class with the same fields."""


class First(Base):
    """What is read where nothing is written."""

    one: int | None = None


class Second(Base):
    """Is written alike where nothing is set."""

    two: int | None = None


class Open(Base):
    """Takes any fields."""

    model_config = ConfigDict(extra="allow")


class Node(Base):
    """May hold itself."""

    child: Node | None = None


class Utf8(BaseModel):
    """Writes bytes as text, which not all of them are."""

    raw: bytes | None = None


class Message(Base):
    """Fields of many kinds, few of which are set."""

    parts: list[Part] | None = None
    actions: Actions = Field(default_factory=Actions)
    color: Color | None = None
    paint: Color | str | None = None
    state: Literal["done", "open"] = "done"
    level: int = 0
    cost: float | None = None
    when: datetime | str | None = None
    raw: bytes | str | None = None
    note: str | None = None
    title: str | None = None
    anything: Any = None
    something: Actions | Any = None
    names: set[str] | None = None
    numbers: dict[int, int] | None = None
    mixed: dict[str, Any] | Actions | None = None
    either: First | Second | None = None
    open: Open | None = None
    node: Node | None = None
    utf8: Utf8 | None = None
    within: list[Message] | None = None
    bounded: Annotated[int, Field(lt=5)] | None = None
    short: str = Field(default="", max_length=3)
    checked: str | None = None

    @field_validator("checked")
    @classmethod
    def _check(cls, value: str | None) -> str | None:
        if value == "bad":
            raise ValueError(value)
        return value and value.lower()


class Reader:
    """Reads back what was made plain, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.shapes = shapes.Shapes(self.comes_back, {(Actions, "elsewhere")})

    def read(self, content: dict[str, Any], written: Message) -> Message:
        """As an adapter does; what stands elsewhere is taken from there."""
        message = Message.model_validate_json(msgspec.json.encode(content))
        message.actions.elsewhere = written.actions.elsewhere
        return message

    def comes_back(self, content: dict[str, Any], message: Any) -> bool:
        self.count += 1
        try:
            return bool(self.read(content, message) == message)
        except (AttributeError, ValueError):
            return False

    def plain(self, message: Any) -> Any:
        return self.shapes.plain(message)


def test_one_message_of_a_shape_is_read_back() -> None:
    reader = Reader()
    for number in range(5):
        message = Message(
            parts=[Part(text=f"text {number}"), Part(args={"a": [number]}, data=b"\xfb\xff")],
            color=Color.RED,
            level=number,
            names={"b", "a"},
        )
        content = reader.plain(message)
        assert reader.read(content, message) == message
    assert reader.count == 1
    assert content == {
        "parts": [{"text": "text 4"}, {"data": "-_8=", "args": {"a": [4]}}],
        "actions": {},
        "color": "red",
        "state": "done",
        "level": 4,
        "names": ["a", "b"],
        "short": "",
    }


def test_what_stands_elsewhere_is_neither_written_nor_looked_at() -> None:
    reader = Reader()
    for elsewhere in ({"a": 1}, {"b": b"\xff"}, {}, {"c": object()}):
        message = Message(actions=Actions(target="x", elsewhere=elsewhere))
        assert reader.plain(message)["actions"] == {"delta": {}, "target": "x"}
    assert reader.count == 1


def test_a_shape_that_does_not_come_back_is_read_back_once() -> None:
    reader = Reader()
    for number in range(3):
        assert reader.plain(Message.model_construct(anything=number, state="lost")) is None
    assert reader.count == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("anything", ["x", b"x"]),
        ("anything", [{"a": 1}, {"a": b"\xff"}]),
        ("anything", [{"a": 1}, {"a": (1, 2)}]),
        ("anything", [{"a": 1}, {"a": math.nan}]),
        ("anything", [{"a": 1}, {"a": 1 << 70}]),
        ("anything", [["x"], [Part()]]),
        ("anything", [["x"], ("x",)]),
        ("anything", ["x", "\ud800"]),
        ("something", [{"delta": 1}, {"target": "x"}]),
        ("mixed", [{"delta": 1}, {"target": "x"}, {"other": 1}]),
        ("numbers", [{}, {"1": 2}, {1: 2}]),
        ("parts", [[Part(words=["x"])], [Part.model_construct(words=[1])]]),
        ("parts", [[Part(counts={"x": 1})], [Part.model_construct(counts={"x": "1"})]]),
        ("parts", [[Part(data=b"x")], [Part(data=b"")]]),
        ("parts", [[Part(text="x")], [Actions()]]),
        ("parts", [[Part(text="x")], [Same(text="x")]]),
        ("parts", [[Part(text="x")], ["x"]]),
        ("parts", [[Part(text="x")], (Part(text="x"),)]),
        ("color", [Color.RED, Color.ONE, Color.NONE, "red"]),
        ("paint", ["green", "red"]),
        ("state", ["open", "lost"]),
        ("level", [1, 1.0, 1.5, True, 1 << 64]),
        ("cost", [1.5, (1 << 53) + 1, math.inf]),
        ("when", ["x", "2024-05-15T12:00:00Z"]),
        ("when", [NOW, NOW.replace(tzinfo=None)]),
        ("raw", ["", "x", "aGk="]),
        ("raw", [b"x", b""]),
        ("utf8", [Utf8(raw=b""), Utf8(raw=b"x"), Utf8(raw=b"\xff")]),
        ("names", [{"x"}, {"x", 1}, {1}]),
        ("bounded", [1, 7]),
        ("short", ["x", "too long"]),
        ("checked", ["good", "bad", "Upper"]),
        ("actions", [Actions(), Actions(delta={"a": b"\xff"}), Part(), {}]),
        ("open", [Open(), Open.model_validate({"note": "x"})]),
        ("open", [Open.model_validate({"note": "x"}), Open()]),
    ],
)
def test_what_would_be_read_as_something_else_is_not_plain(name: str, values: list[Any]) -> None:
    reader = Reader()
    for value in values:
        message = Message.model_construct(**{name: value})
        found = reader.plain(message)
        if found is None:
            continue
        if value == "\ud800":  # it is refused when it is written
            with pytest.raises(UnicodeEncodeError):
                reader.read(found, message)
            continue
        read = reader.read(found, message)
        assert read == message
        assert type(getattr(read, name)) is type(value)


def test_two_models_with_nothing_set_are_told_apart() -> None:
    reader = Reader()
    assert reader.plain(Message(either=Second(), level=1 << 64)) is None
    assert reader.plain(Message(either=Second(two=1)))["either"] == {"two": 1}
    assert reader.plain(Message(either=Second())) is None


def test_fields_are_told_by_their_names_whatever_their_order() -> None:
    reader = Reader()
    for known in (Message(note="x"), Message(title="x"), Message(note="x", title="y")):
        assert reader.plain(known) is not None
    moved = Message(note="x")
    for name in ("title", "note"):  # now they stand behind all others
        value = moved.__dict__.pop(name)
        moved.__dict__[name] = value
    assert reader.read(reader.plain(moved), moved) == moved
    named = Message()
    assert reader.plain(named) is not None
    named.__dict__["beside"] = "not a field"
    assert reader.plain(named) is None
    del named.__dict__["beside"], named.__dict__["state"]
    assert reader.plain(named) is None


def test_what_is_no_model_of_the_kind_is_not_plain() -> None:
    reader = Reader()
    for other in (None, "x", object(), {"a": 1}, [Message()], Message):
        assert reader.plain(other) is None
    assert reader.plain(Open.model_validate({"note": "x"})) is None


def test_depth_is_bounded() -> None:
    reader = Reader()
    value: Any = 1
    for depth in range(250):
        found = reader.plain(Message(anything=value))
        assert (found is not None) == (depth <= 100)
        value = [value]
    node = None
    for depth in range(1, 50):
        node = Node(child=node)
        assert (reader.plain(Message(node=node)) is not None) == (depth <= 32)
    assert node is not None
    node.child = node
    assert reader.plain(Message(node=node)) is None
    assert reader.plain(Message(note="forms are left")) is not None


def test_the_deepest_is_carried() -> None:
    reader = Reader()
    value: Any = 1
    for _ in range(100):
        value = [value]
    message = Message(anything=value)
    for _ in range(31):
        message = Message(within=[message])
    content = reader.plain(message)
    assert content is not None
    codec.Codec().encode_event(Event("author", content), "event")


def test_the_number_of_forms_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    monkeypatch.setattr(shapes, "_FORMS_LIMIT", 2)
    assert reader.plain(Message(parts=[Part(text="x")])) is not None
    assert reader.plain(Message(note="x")) is None
    assert reader.plain(Message(parts=[Part(text="y")])) is not None


texts = st.text(max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
odd = st.one_of(json_values, st.datetimes(), st.tuples(texts), st.builds(Part), st.sets(texts))
parts = st.builds(
    Part.model_construct,
    text=st.none() | texts,
    data=st.none() | st.binary(max_size=3),
    args=st.none() | st.dictionaries(texts, json_values, max_size=3),
    words=st.none() | st.lists(texts, max_size=2),
    counts=st.none() | st.dictionaries(texts, st.integers() | texts, max_size=2),
)
messages = st.builds(
    Message.model_construct,
    parts=st.none() | st.lists(parts, max_size=3),
    actions=st.builds(Actions.model_construct, delta=st.dictionaries(texts, odd, max_size=2)),
    color=st.none() | st.sampled_from(Color),
    paint=st.none() | st.sampled_from(Color) | st.sampled_from(["red", "green"]),
    state=st.sampled_from(["done", "open", "lost"]),
    level=st.integers() | st.booleans() | st.floats(),
    cost=st.none() | st.floats() | st.integers(),
    when=st.none() | st.sampled_from(["x", "2024-05-15T12:00:00Z", NOW]),
    raw=st.none() | st.binary(max_size=3) | st.sampled_from(["x", "aGk="]),
    anything=odd,
    something=odd,
    names=st.none() | st.sets(texts, max_size=3),
    bounded=st.none() | st.integers(0, 9),
    short=texts,
    checked=st.none() | st.sampled_from(["", "bad", "Upper"]),
)


@given(st.lists(messages, min_size=1, max_size=8))
def test_what_is_plain_comes_back(written: list[Message]) -> None:
    reader = Reader()
    for message in written:
        found = reader.plain(message)
        if found is not None:
            assert reader.read(found, message) == message
            assert msgspec.json.decode(msgspec.json.encode(found)) == found
            msgspec.msgpack.encode(found)
