"""Keys: ids are encoded, a key has one owner, and the keys of a user share a slot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot
from unit_support import unhurried

from sessionstore.errors import InvalidArgument
from sessionstore.keys import ID_LIMIT, Keys, PartitionBy, encode_id

Triple = tuple[str, str, str]

HOSTILE = ":{}*?[]%\\\0 \n\r\t/'\"é日😀aA0._~@+=,-"

hostile_ids = st.text(HOSTILE, min_size=1, max_size=6)
any_ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64)
ids = st.one_of(hostile_ids, any_ids)
triples = st.tuples(ids, ids, ids)
close_triples = st.tuples(*[st.text(":{}%a", min_size=1, max_size=3)] * 3)
prefixes = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=8)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("plain", "plain"),
        ("Aa0._~@+=,-", "Aa0._~@+=,-"),
        ("user@example.com", "user@example.com"),
        ("a:b", "a%3Ab"),
        ("{a}", "%7Ba%7D"),
        ("*?[x]", "%2A%3F%5Bx%5D"),
        ("100%", "100%25"),
        ("%3A", "%253A"),
        ("\\", "%5C"),
        ("\0", "%00"),
        ("a b\n", "a%20b%0A"),
        ("a/b", "a%2Fb"),
        ("é", "%C3%A9"),
        ("日本", "%E6%97%A5%E6%9C%AC"),
        ("😀", "%F0%9F%98%80"),
        ("Ａ", "%EF%BC%A1"),
        ("٣", "%D9%A3"),
    ],
)
def test_encoding_table(value: str, encoded: str) -> None:
    assert encode_id("user_id", value) == encoded


@pytest.mark.parametrize(
    "value", ["x" * ID_LIMIT, ":" * ID_LIMIT, "é" * (ID_LIMIT // 2), "😀" * (ID_LIMIT // 4)]
)
def test_an_id_of_256_bytes_is_taken(value: str) -> None:
    assert unquote(encode_id("user_id", value)) == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "must not be empty"),
        ("x" * (ID_LIMIT + 1), "257 bytes"),
        ("é" * (ID_LIMIT // 2) + "x", "257 bytes"),
        ("\ud800", "surrogate"),
        ("a\udfffb", "surrogate"),
        (None, "NoneType"),
        (b"bytes", "bytes"),
        (5, "int"),
        (["a"], "list"),
    ],
)
def test_what_is_no_id_is_refused_by_name(value: Any, reason: str) -> None:
    for name in ("app_name", "user_id", "session_id"):
        with pytest.raises(InvalidArgument, match=f"^{name} .*{reason}"):
            encode_id(name, value)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_every_key_refuses_a_bad_id(position: int) -> None:
    names = ["app_name", "user_id", "session_id"]
    triple: list[Any] = ["a", "u", "s"]
    triple[position] = ""
    with pytest.raises(InvalidArgument, match=names[position]):
        Keys().session(*triple)
    if position < 2:
        with pytest.raises(InvalidArgument, match=names[position]):
            Keys().user(*triple[:2])
    if position < 1:
        with pytest.raises(InvalidArgument, match=names[position]):
            Keys().app(triple[0])


@pytest.mark.parametrize("prefix", ["{", "}", "a{b}", "\ud800", "x" * 257, None, 5, b"x"])
def test_a_bad_prefix_is_refused(prefix: Any) -> None:
    with pytest.raises(InvalidArgument, match="key_prefix"):
        Keys(prefix)


@pytest.mark.parametrize("partition_by", ["", "session", None, True])
def test_a_bad_partition_is_refused(partition_by: Any) -> None:
    with pytest.raises(InvalidArgument, match="partition_by"):
        Keys("", partition_by)


def test_keys_are_spelled_as_documented() -> None:
    assert Keys().session("app", "user", "sid") == (
        b"session:{app:user}:sid",
        b"events:{app:user}:sid",
        b"sessions:{app:user}",
        b"userdata:{app:user}",
        b"appdata:{app}",
    )
    assert Keys("p:", "app").session("a:b", "u", "s") == (
        b"p:session:{a%3Ab}:u:s",
        b"p:events:{a%3Ab}:u:s",
        b"p:sessions:{a%3Ab}:u",
        b"p:userdata:{a%3Ab}:u",
        b"p:appdata:{a%3Ab}",
    )


@unhurried
@given(triples, prefixes, st.sampled_from(["user", "app"]))
def test_all_functions_spell_a_key_the_same_way(
    triple: Triple, prefix: str, partition_by: PartitionBy
) -> None:
    keys = Keys(prefix, partition_by)
    session = keys.session(*triple)
    assert session[2:] == keys.user(*triple[:2])
    assert session.app == keys.app(triple[0])


def owners(
    keys: Keys, prefix: str, partition_by: str, triple: Triple
) -> Iterator[tuple[bytes, Any]]:
    """Every key of a triple, with the ids that own it."""
    app, user, _ = triple
    found = keys.session(*triple)
    yield found.session, ("session", prefix, partition_by, triple)
    yield found.events, ("events", prefix, partition_by, triple)
    yield found.session_index, ("sessions", prefix, partition_by, app, user)
    yield found.user, ("user", prefix, partition_by, app, user)
    yield found.app, ("app", prefix, app)


@settings(unhurried, max_examples=400)
@given(
    st.lists(st.one_of(triples, close_triples), min_size=2, max_size=6),
    st.lists(prefixes, min_size=2, max_size=2),
)
@example([("a:b", "c", "d"), ("a", "b:c", "d"), ("a", "b", "c:d"), ("a}", "{b", "d")], ["", "p"])
@example([("a", "b", "c"), ("a:b", "c", "c"), ("a%3Ab", "c", "c")], ["session", "s"])
@example([("a", "b", "c")], ["", "session:"])
def test_no_two_owners_share_a_key(found: list[Triple], two_prefixes: list[str]) -> None:
    owner_of: dict[bytes, Any] = {}
    for prefix in two_prefixes:
        for partition_by in ("user", "app"):
            keys = Keys(prefix, partition_by)
            for triple in found:
                for key, owner in owners(keys, prefix, partition_by, triple):
                    assert owner_of.setdefault(key, owner) == owner


@unhurried
@given(triples)
def test_the_triple_can_be_read_out_of_its_key(triple: Triple) -> None:
    spelled: dict[PartitionBy, re.Pattern[str]] = {
        "user": re.compile(r"session:\{([^:{}]+):([^:{}]+)\}:([^:{}]+)"),
        "app": re.compile(r"session:\{([^:{}]+)\}:([^:{}]+):([^:{}]+)"),
    }
    for partition_by, pattern in spelled.items():
        key = Keys("", partition_by).session(*triple).session.decode()
        match = pattern.fullmatch(key)
        assert match is not None
        assert tuple(map(unquote, match.groups())) == triple


@unhurried
@given(triples)
def test_no_id_acts_as_a_pattern_or_control_character(triple: Triple) -> None:
    for key in Keys().session(*triple):
        assert re.fullmatch(rb"[A-Za-z0-9._~@+=,:{}%-]+", key)
        assert key.count(b"{") == key.count(b"}") == 1


@unhurried
@given(ids, ids, st.lists(ids, min_size=2, max_size=4), prefixes)
def test_all_keys_of_a_user_share_a_slot(
    app: str, user: str, session_ids: list[str], prefix: str
) -> None:
    keys = Keys(prefix)
    slots = {key_slot(key) for name in session_ids for key in keys.session(app, user, name)[:4]} | {
        key_slot(key) for key in keys.user(app, user)[:2]
    }
    assert len(slots) == 1


@unhurried
@given(ids, st.lists(st.tuples(ids, ids), min_size=2, max_size=4), prefixes)
def test_all_keys_of_an_app_share_a_slot_when_partitioned_by_app(
    app: str, pairs: list[tuple[str, str]], prefix: str
) -> None:
    keys = Keys(prefix, "app")
    slots = {key_slot(key) for user, name in pairs for key in keys.session(app, user, name)}
    assert slots == {key_slot(keys.app(app))}


def test_users_spread_over_slots() -> None:
    keys = Keys()
    slots = {key_slot(keys.user("app", f"user-{number}").session_index) for number in range(1000)}
    assert len(slots) > 900


@pytest.mark.parametrize("partition_by", ["user", "app"])
@pytest.mark.parametrize("prefix", ["", "p:[x]*"])
def test_a_key_is_taken_apart(partition_by: Any, prefix: str) -> None:
    keys = Keys(prefix, partition_by)
    ids = ("a b", "u:{1}/é", "s*")
    found = keys.session(*ids)
    expected = {
        found.session: ("session", *ids, False),
        found.events: ("events", *ids, False),
        found.stream: ("stream", *ids, True),
        keys.staged(found, "0" * 32): ("events", *ids, True),
        found.session_index: ("sessions", *ids[:2], "", False),
        found.user: ("userdata", *ids[:2], "", False),
        found.app: ("appdata", ids[0], "", "", False),
    }
    for key, parts in expected.items():
        assert keys.parse(key) == (*parts, key)
        assert keys.parse(b"x" + key) is None
    assert keys.parse(b"other") is None
    others = Keys(prefix, "app" if partition_by == "user" else "user")
    for key in {*expected} - {found.app}:  # only the key of the app tier is the same
        assert others.parse(key) is None
    assert others.parse(found.app) is not None
