"""Values and events are read back exactly, or refused. Every reader reads every format."""

from __future__ import annotations

import contextlib
import enum
import json
from collections import OrderedDict, UserString, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.events import NOON
from support.services import make_ops
from unit_support import is_same, unhurried

import sessionstore.codec as codec_module
from sessionstore.codec import Codec, Format, decode_event, decode_value
from sessionstore.errors import CorruptData, InvalidArgument, LimitExceeded
from sessionstore.model import Event, JsonEvent, SessionKey
from sessionstore.transform import TierOwner

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS: list[Format] = ["json", "msgpack"]
CODECS = {name: Codec(name) for name in FORMATS}
OWNER = TierOwner("app", "user")
KEY = SessionKey("app", "user", "sid")

each_format = pytest.mark.parametrize("format_name", FORMATS)

# -- strategies ---------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.integers(-(2**63), 2**64 - 1)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
instants = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=offsets)
json_leaves = st.one_of(st.none(), st.booleans(), words, finite, texts)


def nested(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    )


json_values = nested(json_leaves, texts)
msgpack_values = nested(
    st.one_of(json_leaves, st.binary(max_size=20), instants),
    st.one_of(texts, st.integers(-(2**63), 2**64 - 1)),
)
VALUES = {"json": json_values, "msgpack": msgpack_values}


class Color(enum.Enum):
    RED = "red"


class Name(enum.StrEnum):
    ANN = "ann"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Point:
    x: int = 1


# Values that some codec cannot carry, at any depth and as a key.
strange_leaves = st.sampled_from(
    [
        float("nan"),
        float("inf"),
        (1, 2),
        {1, 2},
        frozenset("ab"),
        2**64,
        -(2**63) - 1,
        "\ud800",
        b"bytes",
        bytearray(b"bytes"),
        memoryview(b"bytes"),
        NOON,
        datetime(2024, 5, 15),
        date(2024, 5, 15),
        timedelta(1),
        Decimal("1.5"),
        UUID(int=5),
        Color.RED,
        Name.ANN,
        Point(),
        object(),
        range(3),
        ...,
        1j,
        Event("author"),
        UserString("text"),
    ]
)
strange_keys = st.sampled_from([1, None, True, 1.5, b"x", (1, 2), "\ud800", NOON, Color.RED])
anything = nested(st.one_of(json_leaves, strange_leaves), st.one_of(texts, strange_keys))


def events(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Event]:
    """Events with state keys of the session's tier."""
    keys = texts.filter(lambda key: key and ":" not in key)
    return st.builds(
        Event,
        author=texts.filter(bool),
        content=values,
        id=texts.filter(bool),
        timestamp=instants,
        invocation_id=texts,
        branch=texts,
        state_delta=st.dictionaries(keys, values, max_size=3),
        state_removed=st.lists(keys, max_size=3),
        metadata=st.dictionaries(texts, values, max_size=3),
    )


def containers(value: Any) -> set[int]:
    """The ids of all mutable parts of a value."""
    if isinstance(value, dict):
        return {id(value)}.union(*map(containers, value.values()))
    if isinstance(value, list):
        return {id(value)}.union(*map(containers, value))
    if isinstance(value, msgspec.Struct):
        return set().union(*map(containers, msgspec.structs.astuple(value)))
    return set()


def refusal_of(attempt: Callable[[], Any]) -> str | None:
    """The message of the InvalidArgument that a call raises, or None."""
    try:
        attempt()
    except InvalidArgument as error:
        return str(error)
    return None


def event_with(field: str, value: Any) -> Event:
    arguments: dict[str, Any] = {field: value}
    return Event("author", **arguments)


# -- round trips --------------------------------------------------------------------------------

EXACT: list[Any] = [
    True,
    False,
    None,
    0,
    1,
    -1,
    "123",
    "",
    "0.1",
    "true",
    "null",
    2**53 + 1,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    0.12345678901234567,
    0.1 + 0.2,
    -0.0,
    1.0,
    1e308,
    5e-324,
    1.7976931348623157e308,
    [],
    {},
    [[]],
    {"": {}},
    [None, True, 1, 1.0, "1"],
    "x" * 200_000,
    "\0\x1f\x7f\u2028😀",
    {"x" * 1000: "y" * 199_000},
    ["z" * 1000] * 200,
]


@each_format
@pytest.mark.parametrize("value", [*EXACT, b"", b"\0", b"\x01{}", b'"text"', b"x" * 200_000])
def test_a_value_is_read_exactly_as_it_was_written(format_name: Format, value: Any) -> None:
    data, copy = CODECS[format_name].encode_value(value, "state['x']", OWNER, "x")
    assert is_same(decode_value(data), value)
    assert is_same(copy, value)


@each_format
@pytest.mark.parametrize("value", EXACT)
def test_content_is_read_exactly_as_it_was_written(format_name: Format, value: Any) -> None:
    event = Event("author", {"parts": [value]}, metadata={"value": value})
    data, copy = CODECS[format_name].encode_event(event, "event", OWNER)
    assert is_same(decode_event(data), event)
    assert is_same(copy, event)


@each_format
@unhurried
@given(st.data())
def test_every_value_round_trips_and_shares_nothing(
    format_name: Format, data: st.DataObject
) -> None:
    value = data.draw(VALUES[format_name])
    encoded, copy = CODECS[format_name].encode_value(value, "state['x']", OWNER, "x")
    assert is_same(decode_value(encoded), value)
    assert is_same(copy, value)
    assert not containers(copy) & containers(value)


@each_format
@settings(unhurried, max_examples=200)
@given(anything)
@example([(1, 2)])
@example({"a": [{"b": {1}}]})
@example({1: "int", "1": "text"})
def test_anything_else_is_refused_with_its_path(format_name: Format, value: Any) -> None:
    codec = CODECS[format_name]
    refusal = refusal_of(lambda: codec.encode_value(value, "state['x']", OWNER, "x"))
    if refusal is not None:
        assert refusal.startswith("state['x']")
    else:
        encoded, copy = codec.encode_value(value, "state['x']", OWNER, "x")
        assert decode_value(encoded) == value
        assert copy == value


@each_format
@unhurried
@given(st.data())
def test_every_event_round_trips_and_shares_nothing(
    format_name: Format, data: st.DataObject
) -> None:
    event = data.draw(events(VALUES[format_name]))
    encoded, copy = CODECS[format_name].encode_event(event, "event", OWNER)
    assert is_same(decode_event(encoded), event)
    assert is_same(copy, event)
    assert not containers(copy) & containers(event)


@each_format
@unhurried
@given(st.data())
def test_an_event_that_was_read_encodes_to_the_same_bytes(
    format_name: Format, data: st.DataObject
) -> None:
    """Otherwise an append of it would not be recognized as a repeat."""
    encoded, copy = CODECS[format_name].encode_event(
        data.draw(events(VALUES[format_name])), "event", OWNER
    )
    again, _ = CODECS[format_name].encode_event(copy, "event", OWNER)
    assert again == encoded


@each_format
@settings(unhurried, max_examples=200)
@given(anything)
def test_an_event_with_anything_is_kept_or_refused(format_name: Format, value: Any) -> None:
    codec = CODECS[format_name]
    for field in ("content", "metadata"):
        event = event_with(field, value if field == "content" else {"key": value})
        refusal = refusal_of(lambda: codec.encode_event(event, "event", OWNER))  # noqa: B023  # called at once
        if refusal is not None:
            assert refusal.startswith(f"event.{field}")
        else:
            assert decode_event(codec.encode_event(event, "event", OWNER)[0]) == event


@unhurried
@given(json_values)
def test_any_reader_reads_any_format(value: Any) -> None:
    event = Event("author", value, timestamp=NOON)
    is_text = type(value) is int and abs(value) < 2**53  # under every codec
    written = {CODECS[name].encode_value(value, "x", OWNER, "x")[0] for name in FORMATS}
    assert len(written) == (1 if is_text else 2)
    for name in FORMATS:
        assert is_same(decode_value(CODECS[name].encode_value(value, "x", OWNER, "x")[0]), value)
        assert is_same(decode_event(CODECS[name].encode_event(event, "x", OWNER)[0]), event)


@each_format
def test_bytes_of_a_state_value_are_stored_raw(format_name: Format) -> None:
    assert (
        CODECS[format_name].encode_value(b"\xff\x00raw", "x", OWNER, "x")[0] == b"\x00\xff\x00raw"
    )


def test_the_first_byte_tells_the_format() -> None:
    values: list[Any] = [None, True, 2**53, -(2**53), 0.5, "text", [], {}]
    for value in values:
        assert CODECS["json"].encode_value(value, "x", OWNER, "x")[0][0] >= 0x20
        assert CODECS["msgpack"].encode_value(value, "x", OWNER, "x")[0][0] == 0x01


@pytest.mark.parametrize("value", [0, 5, -5, 2**53 - 1, 1 - 2**53])
def test_integers_that_scripts_can_add_to_are_text_under_every_codec(value: int) -> None:
    for codec in CODECS.values():
        assert codec.encode_value(value, "x", OWNER, "x") == (b"%d" % value, value)


# -- refusals -----------------------------------------------------------------------------------

REFUSED: list[tuple[Any, str, str]] = [
    (float("nan"), "", "nan"),
    ({"a": [1, {"b": float("nan")}]}, "['a'][1]['b']", "nan"),
    ((1, 2), "", "tuple"),
    ([[], (1,)], "[1]", "tuple"),
    ({1, 2}, "", "set"),
    ({"a": {"b": {1}}}, "['a']['b']", "set"),
    (10**5000, "", "integer"),
    ("\ud800", "", "surrogate"),
    (["a", {"k": "\udfff"}], "[1]['k']", "surrogate"),
    (datetime(2024, 5, 15), "", "datetime"),
    (date(2024, 5, 15), "", "date"),
    (timedelta(1), "", "timedelta"),
    ([Decimal("1.5")], "[0]", "Decimal"),
    ({"id": UUID(int=5)}, "['id']", "UUID"),
    ([Color.RED], "[0]", "Color"),
    ([Point()], "[0]", "Point"),
    ([object()], "[0]", "object"),
    ({"event": Event("author")}, "['event']", "Event"),
]
REFUSED_BY_JSON: list[tuple[Any, str, str]] = [
    (10**4300, "", "up to 4300 digits"),
    (float("inf"), "", "inf"),
    ([float("-inf")], "[0]", "-inf"),
    ([b"x"], "[0]", "bytes"),
    ({"a": {"b": b"x"}}, "['a']['b']", "bytes"),
    (bytearray(b"x"), "", "bytearray"),
    ({1: "a"}, "", "int"),
    ({"a": {None: 1}}, "['a']", "NoneType"),
    ({True: 1}, "", "bool"),
    ({1.5: 1}, "", "float"),
    ({"a": [{b"x": 1}]}, "['a'][0]", "bytes"),
    (NOON, "", "datetime"),
    ({"at": NOON}, "['at']", "datetime"),
]
REFUSED_BY_MSGPACK: list[tuple[Any, str, str]] = [
    (2**64, "", "from -2**63 to 2**64 - 1"),
    ([-(2**63) - 1], "[0]", "from -2**63 to 2**64 - 1"),
]


def refusals() -> list[tuple[Format, Any, str, str]]:
    everywhere: list[tuple[Format, Any, str, str]] = [
        (name, *row) for name in FORMATS for row in REFUSED
    ]
    only_json: list[tuple[Format, Any, str, str]] = [("json", *row) for row in REFUSED_BY_JSON]
    only_msgpack: list[tuple[Format, Any, str, str]] = [
        ("msgpack", *row) for row in REFUSED_BY_MSGPACK
    ]
    return everywhere + only_json + only_msgpack


@pytest.mark.parametrize(
    ("format_name", "value", "path", "kind"),
    refusals(),
    ids=lambda part: repr(part)[:20] if isinstance(part, str) else "",
)
def test_what_would_not_come_back_is_refused_by_path(
    format_name: Format, value: Any, path: str, kind: str
) -> None:
    codec = CODECS[format_name]
    with pytest.raises(InvalidArgument) as caught:
        codec.encode_value(value, "state['x']", OWNER, "x")
    assert str(caught.value).startswith(f"state['x']{path} ")
    assert kind in str(caught.value)
    for field, wrapped, inner in (
        ("content", value, path),
        ("metadata", {"k": value}, f"['k']{path}"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            codec.encode_event(event_with(field, wrapped), "events[3]", OWNER)
        assert str(caught.value).startswith(f"events[3].{field}{inner} ")


def cyclic_list() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def cyclic_dict() -> Any:
    value: dict[str, Any] = {}
    value["left"] = value["right"] = value
    return value


def deep(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@each_format
@pytest.mark.parametrize("make", [cyclic_list, cyclic_dict, lambda: deep(100_000)])
def test_endless_nesting_is_refused(format_name: Format, make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"^state.*levels deep"):
        CODECS[format_name].encode_value(make(), "state", OWNER, "x")
    with pytest.raises(InvalidArgument, match=r"^event\.content.*levels deep"):
        CODECS[format_name].encode_event(Event("author", make()), "event", OWNER)


@each_format
@pytest.mark.parametrize("levels", [100, 200])
def test_what_was_taken_can_be_read_under_a_deep_stack(format_name: Format, levels: int) -> None:
    with pytest.raises(InvalidArgument, match="200 levels"):
        CODECS[format_name].encode_value(deep(201), "state", OWNER, "x")
    data, _ = CODECS[format_name].encode_value(deep(levels), "state", OWNER, "x")

    def below(frames: int) -> Any:
        return below(frames - 1) if frames else decode_value(data)

    assert below(300) is not None


class Text(str):
    __slots__ = ()


@each_format
@pytest.mark.parametrize(
    ("value", "wrong"), [(Text("x"), "surrogate"), ({"key": Text("x")}, "surrogate")]
)
def test_a_refusal_does_not_name_a_wrong_reason(
    format_name: Format, value: Any, wrong: str
) -> None:
    refusal = refusal_of(lambda: CODECS[format_name].encode_value(value, "state", OWNER, "x"))
    assert refusal is not None
    assert wrong not in refusal


@each_format
def test_a_surrogate_in_a_key_is_named(format_name: Format) -> None:
    with pytest.raises(InvalidArgument, match=r"^state\['a'\].*(surrogate|\\ud800)"):
        CODECS[format_name].encode_value({"a": {"\ud800": 1}}, "state", OWNER, "x")


@each_format
@pytest.mark.parametrize(
    "changes",
    [
        {"author": ""},
        {"author": None},
        {"author": 5},
        {"author": "\ud800"},
        {"id": ""},
        {"id": 5},
        {"timestamp": datetime(2024, 5, 15)},
        {"timestamp": "2024-05-15T00:00:00Z"},
        {"timestamp": None},
        {"invocation_id": None},
        {"branch": 5},
        {"branch": "\ud800"},
        {"metadata": None},
        {"metadata": []},
        {"metadata": {"\ud800": 1}},
        {"state_delta": []},
        {"state_removed": "key"},
        {"state_removed": [5]},
        {"state_removed": ["\ud800"]},
    ],
    ids=repr,
)
def test_a_bad_field_is_refused_by_name(format_name: Format, changes: dict[str, Any]) -> None:
    event = Event(**{"author": "author", **changes})
    [name] = changes
    with pytest.raises(InvalidArgument, match=rf"^event\.{name}\b"):
        CODECS[format_name].encode_event(event, "event", OWNER)


@each_format
def test_a_refusal_of_a_field_does_not_name_a_wrong_reason(format_name: Format) -> None:
    event = Event("author", state_removed=("a", "b"))  # type: ignore[arg-type]  # a tuple
    with pytest.raises(InvalidArgument, match=r"^event\.state_removed") as caught:
        CODECS[format_name].encode_event(event, "event", OWNER)
    assert "Unicode" not in str(caught.value)


def test_no_refusal_quotes_the_value() -> None:
    for value in ("secret\ud800", ["secret", "\ud800"], {"k": ("secret",)}, {"a": {"secret"}}):
        for name in FORMATS:
            with pytest.raises(InvalidArgument) as caught:
                CODECS[name].encode_value(value, "state", OWNER, "x")
            assert "secret" not in str(caught.value)


# -- limits -------------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("value", ["x" * 100, [1] * 50, b"x" * 100])
def test_a_value_may_be_as_large_as_the_limit_and_no_larger(
    format_name: Format, value: Any
) -> None:
    size = len(Codec(format_name).encode_value(value, "x", OWNER, "x")[0])
    Codec(format_name, value_size_limit=size).encode_value(value, "state['x']", OWNER, "x")
    with pytest.raises(LimitExceeded, match=r"^state\['x'\]") as caught:
        Codec(format_name, value_size_limit=size - 1).encode_value(value, "state['x']", OWNER, "x")
    assert (caught.value.limit, caught.value.actual) == (size - 1, size)


@each_format
def test_an_event_may_be_as_large_as_the_limit_and_no_larger(format_name: Format) -> None:
    event = Event("author", "x" * 100)
    size = len(Codec(format_name).encode_event(event, "x", OWNER)[0])
    Codec(format_name, event_size_limit=size).encode_event(event, "event", OWNER)
    with pytest.raises(LimitExceeded, match=r"^event ") as caught:
        Codec(format_name, event_size_limit=size - 1).encode_event(event, "event", OWNER)
    assert (caught.value.limit, caught.value.actual) == (size - 1, size)


def test_the_default_limits_are_eight_mebibytes() -> None:
    room = 8 << 20
    codec = Codec()
    codec.encode_value("x" * (room - 2), "state", OWNER, "x")
    with pytest.raises(LimitExceeded) as caught:
        codec.encode_value("x" * (room - 1), "state", OWNER, "x")
    assert (caught.value.limit, caught.value.actual) == (room, room + 1)
    with pytest.raises(LimitExceeded):
        codec.encode_event(Event("author", "x" * room), "event", OWNER)


@each_format
def test_the_size_is_checked_before_the_parts(format_name: Format) -> None:
    """Looking for the part that is not valid takes long in a large value."""
    codec = Codec(format_name, event_size_limit=1000, value_size_limit=1000)
    for large in ([0.5] * 1000 + [float("nan")], {"a": ["x" * 1000, (1,)]}):
        with pytest.raises(LimitExceeded):
            codec.encode_event(Event("author", large), "event", OWNER)
        with pytest.raises(LimitExceeded):
            codec.encode_value(large, "state", OWNER, "x")


@each_format
@pytest.mark.parametrize("bad", [object(), (1,), float("nan"), "\ud800"])
@pytest.mark.parametrize("position", [0, 1, 4_999, 9_999])
def test_the_part_that_is_not_valid_is_found_without_trying_each(
    format_name: Format, bad: Any, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    round_trips = Codec._round_trips

    def count(codec: Codec, value: Any) -> bool:
        nonlocal tried
        tried += 1
        return round_trips(codec, value)

    monkeypatch.setattr(Codec, "_round_trips", count)
    items: list[Any] = [0.5] * 10_000
    items[position] = bad
    with pytest.raises(InvalidArgument, match=rf"^x\['a'\]\[{position}\] is "):
        Codec(format_name).encode_value({"b": 1, "a": items}, "x", OWNER, "x")
    named = {f"k{number}": item for number, item in enumerate(items)}
    with pytest.raises(InvalidArgument, match=rf"^x\['k{position}'\] is "):
        Codec(format_name).encode_value(named, "x", OWNER, "x")
    keys: dict[Any, int] = {f"k{number}": 1 for number in range(10_000)} | {object(): 2}
    with pytest.raises(InvalidArgument, match=r"^x has the object key"):
        Codec(format_name).encode_value(keys, "x", OWNER, "x")
    assert tried < 200


@pytest.mark.parametrize("name", ["", "JSON", "pickle", None])
def test_an_unknown_codec_is_refused(name: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^codec"):
        Codec(name)


# -- events of frameworks -----------------------------------------------------------------------


@each_format
def test_a_json_event_is_stored_as_json_under_every_codec(format_name: Format) -> None:
    codec = CODECS[format_name]
    text = b'{"n": 1.50, "list": [1, "x"]}'
    event = JsonEvent("agent", msgspec.Raw(text), id="1", timestamp=NOON, metadata={"m": 1})
    data, found = codec.for_event(event).encode_event(event, "event", OWNER)
    assert text in data
    assert data.startswith(b"{")
    assert type(found) is Event
    assert found == decode_event(data)
    assert found.content == {"n": 1.5, "list": [1, "x"]}
    assert codec.for_event(event).encode_value([1.5], "state", OWNER, "x") == (b"[1.5]", [1.5])
    values = JsonEvent("agent", {"n": 1}, id="1", timestamp=NOON)
    assert codec.for_event(values).encode_event(values, "event", OWNER)[1].content == {"n": 1}


@each_format
@pytest.mark.parametrize("text", [b"", b'{"a"', b"NaN", b'"\xff"', b'"\\ud800"'])
def test_a_json_event_with_invalid_json_is_refused(format_name: Format, text: bytes) -> None:
    event = JsonEvent("agent", msgspec.Raw(text))
    with pytest.raises(InvalidArgument, match=r"^event\.content is not valid JSON$"):
        CODECS[format_name].for_event(event).encode_event(event, "event", OWNER)


@each_format
def test_a_json_event_is_as_limited_as_any(format_name: Format) -> None:
    codec = Codec(format_name, event_size_limit=2000)
    nameless = JsonEvent("agent", msgspec.Raw(b"{}"), id="")
    with pytest.raises(InvalidArgument, match=r"^event\.id"):
        codec.for_event(nameless).encode_event(nameless, "event", OWNER)
    deep = JsonEvent("agent", msgspec.Raw(b"[" * 300 + b"]" * 300))
    with pytest.raises(InvalidArgument, match="more than 200 levels deep"):
        codec.for_event(deep).encode_event(deep, "event", OWNER)
    large = JsonEvent("agent", msgspec.Raw(b"[" + b"1," * 1000 + b"1]"))
    with pytest.raises(LimitExceeded, match=r"^event "):
        codec.for_event(large).encode_event(large, "event", OWNER)
    binary = JsonEvent("agent", {"a": b"x"})
    with pytest.raises(InvalidArgument, match=r"^event\.content\['a'\] is a bytes"):
        codec.for_event(binary).encode_event(binary, "event", OWNER)


# -- corrupt data -------------------------------------------------------------------------------

CORRUPT = [
    b"",
    b"\x01",
    b"\x02{}",
    b"\x1f{}",
    b"{",
    b"nul",
    b'{"author":"a"}x',
    b"\xff\xfe",
    b'"\xff"',
    b"\x01\xc1",
    b"\x01\x92\x01",
    b"[" * 100_000,
    b"\x01" + b"\x91" * 100_000,
]
NO_EVENTS = [
    b"{}",
    b"[]",
    b"null",
    b"5",
    b'{"author":""}',
    b'{"author":5}',
    b'{"author":"a","id":""}',
    b'{"author":"a","timestamp":"2024-05-15T12:00:00"}',
    b"\x00raw",
    b"\x01\x80",
    b"\x01\xc0",
]


@pytest.mark.parametrize("data", CORRUPT, ids=lambda data: repr(data[:20]))
def test_bytes_that_are_not_a_value_raise(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # its message is not for users
        decode_value(data)


@pytest.mark.parametrize("data", [*CORRUPT, *NO_EVENTS], ids=lambda data: repr(data[:20]))
def test_bytes_that_are_not_an_event_raise(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # its message is not for users
        decode_event(data)


@unhurried
@given(
    st.one_of(st.binary(), st.binary().map(lambda data: b"\x01" + data), st.text().map(str.encode))
)
def test_any_bytes_decode_or_raise_value_error(data: bytes) -> None:
    for decode in (decode_value, decode_event):
        with contextlib.suppress(ValueError):
            decode(data)


HEADER = {b"version": b"1", b"created_us": b"1", b"updated_us": b"1"}
EVENT_DATA = CODECS["json"].encode_event(Event("author"), "event", OWNER)[0]


@pytest.mark.parametrize(
    ("value", "plain", "formats"),
    [
        (Level.LOW, 1, FORMATS),
        (Name.ANN, "ann", FORMATS),
        (OrderedDict(a=Level.LOW), {"a": 1}, FORMATS),
        (defaultdict(list, {Name.ANN: []}), {"ann": []}, FORMATS),
        (bytearray(b"x"), b"x", ["msgpack"]),
        (NOON.astimezone(timezone(timedelta(hours=2))), NOON, ["msgpack"]),
    ],
)
def test_a_value_becomes_an_equal_value_of_a_plain_type(
    value: Any, plain: Any, formats: list[Format]
) -> None:
    for name in formats:
        data, copy = CODECS[name].encode_value([value], "state", OWNER, "x")
        assert is_same(copy, [plain])
        assert is_same(decode_value(data), [plain])
        assert is_same(
            CODECS[name].encode_event(Event("user", value), "event", OWNER)[1].content, plain
        )


@pytest.mark.parametrize(
    ("session", "user", "app", "log", "key"),
    [
        (HEADER | {b".x": b"\x02secret"}, {}, {}, [], "session:{app:user}:sid field .x"),
        (HEADER | {b".\xff": b"1"}, {}, {}, [], "session:{app:user}:sid field .\ufffd"),
        (HEADER | {b".x": b"[" * 100_000}, {}, {}, [], "session:{app:user}:sid field .x"),
        (HEADER, {b"x": b"secret"}, {}, [], "userdata:{app:user} field x"),
        (HEADER, {}, {b"x": b""}, [], "appdata:{app} field x"),
        (HEADER, {}, {}, [EVENT_DATA, b"secret"], "events:{app:user}:sid"),
        (HEADER, {}, {}, [b"\x01" + b"\x91" * 100_000], "events:{app:user}:sid"),
        ({b"version": b"1"}, {}, {}, [], "session:{app:user}:sid"),
        ({b".x": b"1"}, {}, {}, [], "session:{app:user}:sid"),
        (HEADER | {b"version": b"secret"}, {}, {}, [], "session:{app:user}:sid"),
        (HEADER | {b"created_us": b"1.5"}, {}, {}, [], "session:{app:user}:sid"),
        (HEADER | {b"updated_us": b"9" * 30}, {}, {}, [], "session:{app:user}:sid"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_corrupt_data_is_raised_with_its_key_and_without_its_bytes(
    session: dict[bytes, bytes],
    user: dict[bytes, bytes],
    app: dict[bytes, bytes],
    log: list[bytes],
    key: str,
    protocol: Literal[2, 3],
) -> None:
    def reply(fields: dict[bytes, bytes]) -> Any:
        return fields if protocol == 3 else [part for pair in fields.items() for part in pair]

    call = make_ops().get_session(KEY, None, None)
    with pytest.raises(CorruptData) as caught:
        call.decode([reply(session), reply(user), reply(app), len(log), log])
    assert caught.value.key == key
    assert key in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("field", ["id", "timestamp"])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("content", [None, {"id": "x", "timestamp": "2024-05-15T12:00:00Z"}])
def test_a_stored_event_without_id_or_timestamp_is_corrupt(
    field: str, codec: str, content: Any
) -> None:
    fields = msgspec.to_builtins(Event("user", content))
    del fields[field]
    encoded = msgspec.json.encode(fields)
    data = encoded if codec == "json" else b"\x01" + msgspec.msgpack.encode(fields)
    call = make_ops().get_session(KEY, None, None)
    with pytest.raises(CorruptData) as caught:
        call.decode([HEADER, {}, {}, 1, [data]])
    assert caught.value.key == "events:{app:user}:sid"


def test_an_event_of_the_future_and_an_id_with_escapes_are_read() -> None:
    events = [
        Event("user", id='a"\\b\n', timestamp=datetime(2100, 1, 1, tzinfo=UTC)),
        Event("user", id="ü\x01"),
    ]
    for name in ("json", "msgpack"):
        members = [CODECS[name].encode_event(event, "event", OWNER)[0] for event in events]
        assert CODECS["json"].decode_events(members, OWNER) == events


def test_a_log_may_have_events_of_both_formats() -> None:
    events = [Event("user", number) for number in range(4)]
    codecs = (CODECS["json"], CODECS["msgpack"], CODECS["msgpack"], CODECS["json"])
    pairs = zip(codecs, events, strict=True)
    members = [codec.encode_event(event, "event", OWNER)[0] for codec, event in pairs]
    assert CODECS["json"].decode_events(members, OWNER) == events


def test_events_that_are_made_while_a_log_is_decoded_do_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = Event("user", "hello")
    members = [CODECS["json"].encode_event(event, "event", OWNER)[0]] * 2
    decode = codec_module._decode_event_json
    others: list[Event] = []

    def decode_slowly(data: bytes) -> Event:
        others.append(Event("another thread"))
        return decode(data)

    monkeypatch.setattr(codec_module, "_decode_event_json", decode_slowly)
    assert CODECS["json"].decode_events(members, OWNER) == [event, event]
    assert len(others) == 2


def test_corrupt_data_elsewhere_is_raised_with_its_key() -> None:
    ops = make_ops()
    for call, replies, key in (
        (ops.list_places("app", "user", 9), [[b"", b"1"]], "sessions:{app:user}"),
        (ops.list_places("app", "user", 9), [[b"x" * 257, b"1"]], "sessions:{app:user}"),
        (
            ops.get_events(KEY, None, None, 9),
            [[b"1", b"1"], 1, [EVENT_DATA, b"inf"]],
            "events:{app:user}:sid",
        ),
        (ops.get_app_state("app"), [{b"x": b"?"}], "appdata:{app} field x"),
        (ops.get_user_state("app", "user"), [{b"x": b"?"}], "userdata:{app:user} field x"),
        (
            ops.get_events(KEY, None, None, 9),
            [[b"1", b"1"], 1, [[b"?", 1.0]]],
            "events:{app:user}:sid",
        ),
        (ops.pop_event(KEY, None), [[b"OK", 2, 1, b"?"]], "events:{app:user}:sid"),
        (ops.list_places("app", "user", 9), [[[b"\xff", 1.0]]], "sessions:{app:user}"),
        (
            ops.list_sessions("app", "user", ["sid"], 0),
            [{}, {}, {b"version": b"1"}],
            "session:{app:user}:sid",
        ),
    ):
        with pytest.raises(CorruptData) as caught:
            call.decode(replies)
        assert caught.value.key == key


# -- golden bytes -------------------------------------------------------------------------------
# Users have stored such bytes. Add files, but never change one.

PLAIN_EVENT = Event("user", id="e1", timestamp=datetime(2024, 5, 15, 12, 0, tzinfo=UTC))
FULL_EVENT = Event(
    author="agent",
    content={
        "role": "assistant",
        "parts": ["é😀", 1, -1, 2**53 + 1, 0.1, True, False, None, [], {}],
    },
    id="9f0c6f0e7f6d4f0f8f1b0d6f0a4e5c3b",
    timestamp=datetime(2024, 5, 15, 14, 30, 1, 123456, timezone(timedelta(hours=2))),
    invocation_id="run-7",
    branch="root.child",
    state_delta={"step": 7, "user:name": "Ann", "app:mode": None},
    state_removed=["pending", "user:old"],
    metadata={"tokens": {"in": 10, "out": 20}},
)
NATIVE_EVENT = Event(
    "tool",
    {"blob": b"\x00\xff", "at": NOON, 5: "five"},
    id="e2",
    timestamp=datetime(2024, 5, 15, 12, 0, tzinfo=UTC),
)
COUNTING_EVENT = Event(
    "agent",
    id="e3",
    timestamp=datetime(2024, 5, 15, 12, 0, tzinfo=UTC),
    state_increments={"turns": 1, "user:tokens": -(2**53) + 1},
)
VALUE = {"a": [True, "123", 2**53 + 1, 0.12345678901234567, [], {}, None], "é": "x"}
NATIVE_VALUE = {"blob": b"\x00\xff", "at": NOON, 5: "five"}

GOLDEN_EVENTS: list[tuple[str, Format, Event]] = [
    ("event_plain.json", "json", PLAIN_EVENT),
    ("event_full.json", "json", FULL_EVENT),
    ("event_plain.msgpack.bin", "msgpack", PLAIN_EVENT),
    ("event_full.msgpack.bin", "msgpack", FULL_EVENT),
    ("event_native.msgpack.bin", "msgpack", NATIVE_EVENT),
    ("event_counting.json", "json", COUNTING_EVENT),
    ("event_counting.msgpack.bin", "msgpack", COUNTING_EVENT),
]
GOLDEN_VALUES: list[tuple[str, Format, Any]] = [
    ("value.json", "json", VALUE),
    ("value.msgpack.bin", "msgpack", VALUE),
    ("value_native.msgpack.bin", "msgpack", NATIVE_VALUE),
    ("value.raw.bin", "json", b"\x00\x01\xffraw"),
    ("value.raw.bin", "msgpack", b"\x00\x01\xffraw"),
]


@pytest.mark.parametrize(("name", "format_name", "event"), GOLDEN_EVENTS)
def test_golden_events_decode_and_encode_as_ever(
    name: str, format_name: Format, event: Event
) -> None:
    golden = (GOLDEN / name).read_bytes()
    assert is_same(decode_event(golden), event)
    assert CODECS[format_name].encode_event(event, "event", OWNER)[0] == golden


@pytest.mark.parametrize(("name", "format_name", "value"), GOLDEN_VALUES)
def test_golden_values_decode_and_encode_as_ever(
    name: str, format_name: Format, value: Any
) -> None:
    golden = (GOLDEN / name).read_bytes()
    assert is_same(decode_value(golden), value)
    assert CODECS[format_name].encode_value(value, "value", OWNER, "x")[0] == golden


def test_every_golden_file_is_tested() -> None:
    tested = {name for name, _, _ in (*GOLDEN_EVENTS, *GOLDEN_VALUES)}
    assert tested | {"event_of_a_later_version.json", "compressed", "encrypted"} == {
        path.name for path in GOLDEN.iterdir()
    }


def test_an_event_of_a_later_version_decodes() -> None:
    """New fields have defaults, and an older reader skips them."""
    golden = (GOLDEN / "event_of_a_later_version.json").read_bytes()
    assert "field_of_later" in json.loads(golden)
    assert decode_event(golden) == PLAIN_EVENT
