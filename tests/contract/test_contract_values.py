"""Values are read exactly as they were written, by every method."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from support.servers import Server
from support.services import ServiceFactory
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read

import sessionstore
import sessionstore.sync
from sessionstore import Event, InvalidArgument
from sessionstore.model import JsonEvent

VALUES: dict[str, Any] = {
    "true": True,
    "false": False,
    "none": None,
    "zero": 0,
    "one": 1,
    "float one": 1.0,
    "minus zero": -0.0,
    "digits": "123",
    "beyond a double": 2**53 + 1,
    "largest": 2**64 - 1,
    "smallest": -(2**63),
    "seventeen digits": 0.12345678901234567,
    "third": 1 / 3,
    "huge": 1.7976931348623157e308,
    "tiny": 5e-324,
    "empty list": [],
    "empty dict": {},
    "empty text": "",
    "nested": {"a": [[], {}, [None, True, 1, 1.0, "1", {"b": 2**53 + 1}]]},
    "text": 'é日本😀\0\r\n\t"\\\u2028',
    "looks like json": '{"a": 1}',
    "200 kB": "x" * 200_000,
    "200 kB nested": ["y" * 1000] * 200,
}
RAW: dict[str, Any] = {
    "bytes": b"\x00\xff\r\n",
    "no bytes": b"",
    "bytes like json": b'{"a": 1}',
    "bytes like a format": b"\x01\x80",
    "200 kB of bytes": b"\x00" * 200_000,
}
NATIVE: dict[str, Any] = {
    "nested bytes": {"a": [b"\x00\xff"]},
    "instant": datetime(2024, 5, 15, 12, 0, 0, 123456, tzinfo=UTC),
    "int keys": {1: "a", -5: {2**53 + 1: "b"}},
    "infinity": float("inf"),
}

FORMATS = ["json", "msgpack"]


def is_exact(found: Any, expected: Any) -> bool:
    """Whether two values are equal, and of the same types at every level."""
    return found == expected and repr(found) == repr(expected)


def values_of(codec: str) -> dict[str, Any]:
    return {**VALUES, **RAW, **(NATIVE if codec == "msgpack" else {})}


@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize("prefix", ["", "user:", "app:"])
@pytest.mark.parametrize("way", ["create", "get or create", "event", "update"])
async def test_state_is_exact_in_every_tier(
    make_service: ServiceFactory, codec: str, prefix: str, way: str
) -> None:
    service = make_service(codec=codec)
    state = {f"{prefix}{name}": value for name, value in values_of(codec).items()}
    if way == "create":
        session = await service.create_session(**IDS, state=state)
    elif way == "get or create":
        session = await service.get_or_create_session(**IDS, state=state)
    else:
        session = await create(service)
        if way == "event":
            carried = {key: state[key] for key in state if not contains_bytes(codec, state[key])}
            small = {key: carried[key] for key in carried if "200 kB" not in key}
            await service.append_event(session, Event("user", state_delta=small))
            state = small
        else:
            await service.update_session_state(session, state)
    assert is_exact(sorted(session.state.items()), sorted(state.items()))
    stored = await read(service)
    [listed] = await service.list_sessions(**OWNER)
    for found in (stored.state, listed.state):
        assert found.keys() == state.keys()
        for key, value in state.items():
            assert is_exact(found[key], value), key


def contains_bytes(codec: str, value: Any) -> bool:
    """Whether an event cannot carry the value, which is stored inside the event too."""
    return codec == "json" and isinstance(value, bytes)


@pytest.mark.parametrize("codec", FORMATS)
async def test_a_large_state_delta_is_exact(make_service: ServiceFactory, codec: str) -> None:
    service = make_service(codec=codec)
    session = await create(service)
    delta = {"a": "x" * 200_000, "user:b": ["y" * 1000] * 200, "app:c": {"z" * 200_000: 1}}
    await service.append_event(session, Event("user", state_delta=delta))
    assert (await read(service)).state == delta == session.state


async def test_bytes_in_an_events_delta_need_msgpack(make_service: ServiceFactory) -> None:
    """The delta is also stored inside the event, and JSON has no bytes."""
    service = make_service()
    session = await create(service)
    with pytest.raises(InvalidArgument, match=r"^event\.state_delta\['a'\].*bytes"):
        await service.append_event(KEY, Event("user", state_delta={"a": b"x"}))
    assert (await read(service)).version == session.version


@pytest.mark.parametrize("codec", FORMATS)
async def test_updates_of_the_tiers_are_exact(make_service: ServiceFactory, codec: str) -> None:
    service = make_service(codec=codec)
    values = values_of(codec)
    await service.update_app_state(APP, values)
    await service.update_user_state(APP, USER, values)
    for found in (await service.get_app_state(APP), await service.get_user_state(APP, USER)):
        assert found.keys() == values.keys()
        for key, value in values.items():
            assert is_exact(found[key], value), key


@pytest.mark.parametrize("codec", FORMATS)
async def test_content_and_metadata_are_exact(make_service: ServiceFactory, codec: str) -> None:
    service = make_service(codec=codec)
    await create(service)
    values = {key: value for key, value in values_of(codec).items() if key not in RAW}
    if codec == "msgpack":
        values |= RAW
    events = [Event("user", value, metadata={"value": value}) for value in values.values()]
    stored = await service.append_events(KEY, events)
    assert is_exact(stored, events)
    assert is_exact((await read(service)).events, events)
    assert is_exact((await service.get_events(KEY)).events, events)
    assert is_exact(await service.pop_event(KEY), events[-1])


REFUSED: dict[str, Any] = {
    "nan": float("nan"),
    "tuple": (1, 2),
    "set": {1},
    "object": object(),
    "naive datetime": datetime(2024, 5, 15),
    "surrogate": "\ud800",
    "huge integer": 10**5000,
}
REFUSED_BY_JSON: dict[str, Any] = {
    "infinity": float("inf"),
    "nested bytes": [b"x"],
    "int keys": {1: 2},
    "datetime": datetime(2024, 5, 15, tzinfo=UTC),
}


@pytest.mark.parametrize("codec", FORMATS)
async def test_what_would_not_come_back_is_refused_and_nothing_is_written(
    make_service: ServiceFactory, codec: str
) -> None:
    service = make_service(codec=codec)
    session = await create(service, state={"a": 1})
    before = await read(service)
    for value in {**REFUSED, **(REFUSED_BY_JSON if codec == "json" else {})}.values():
        deep = {"list": [0, {"value": value}]}
        path = r"\['list'\]\[1\]\['value'\]"
        for prefix in ("", "user:", "app:", "temp:"):
            state = {"good": 2, f"{prefix}bad": deep}
            with pytest.raises(InvalidArgument, match=rf"state\['{prefix}bad'\]{path}"):
                await service.update_session_state(session, state)
            with pytest.raises(InvalidArgument, match=rf"state_delta\['{prefix}bad'\]{path}"):
                await service.append_event(session, Event("user", state_delta=state))
        with pytest.raises(InvalidArgument, match=rf"^event\.content{path}"):
            await service.append_event(session, Event("user", deep, state_delta={"good": 2}))
        with pytest.raises(InvalidArgument, match=rf"^event\.metadata\['m'\]{path}"):
            await service.append_event(session, Event("user", metadata={"m": deep}))
        with pytest.raises(InvalidArgument, match=rf"^state\['bad'\]{path}"):
            await service.create_session(**OWNER, session_id="other", state={"bad": deep})
        with pytest.raises(InvalidArgument, match=path):
            await service.update_app_state(APP, {"good": 2, "bad": deep})
        with pytest.raises(InvalidArgument, match=path):
            await service.update_user_state(APP, USER, {"good": 2, "bad": deep})
    assert await read(service) == before == session
    assert len(await service.list_sessions(**OWNER)) == 1


async def test_services_with_different_codecs_read_each_other(server: Server) -> None:
    ttl: dict[str, Any] = {"session_ttl": 60, "user_state_ttl": 60, "app_state_ttl": 60}
    async with (
        sessionstore.RedisSessionService(server.url, codec="json", **ttl) as one,
        sessionstore.RedisSessionService(server.url, codec="msgpack", **ttl) as two,
    ):
        state = {**VALUES, **RAW, **{f"user:{key}": value for key, value in VALUES.items()}}
        await one.create_session(**IDS, state=state)
        await two.update_session_state(KEY, {f"app:{key}": VALUES[key] for key in VALUES})
        await two.update_session_state(KEY, NATIVE)
        events = []
        for number, value in enumerate(VALUES.values()):
            writer = (one, two)[number % 2]
            events.append(await writer.append_event(KEY, Event("user", value)))
        found = await read(one)
        assert found == await read(two)
        assert is_exact(found.events, events)
        expected = {**state, **{f"app:{key}": VALUES[key] for key in VALUES}, **NATIVE}
        assert found.state.keys() == expected.keys()
        for key, value in expected.items():
            assert is_exact(found.state[key], value), key
        with sessionstore.sync.RedisSessionService(server.url, codec="msgpack", **ttl) as threaded:
            assert threaded.get_session(**IDS) == found
        assert await one.pop_event(KEY) == events[-1]
        assert await two.pop_event(KEY) == events[-2]


@pytest.mark.parametrize("codec", FORMATS)
async def test_the_event_of_a_framework_is_stored_like_any_event(
    make_service: ServiceFactory, codec: str
) -> None:
    service = make_service(codec=codec)
    session = await create(service)
    values = {name: value for name, value in VALUES.items() if name != "200 kB nested"}
    fields: dict[str, Any] = {
        "content": msgspec.Raw(msgspec.json.encode(values)),
        "state_delta": {"a": values, "user:b": [1], "app:c": None, "temp:d": {"e": 1}},
        "metadata": {"f": 1},
    }
    event = JsonEvent("agent", id="1", **fields)
    await service.append_event(session, event)
    await service.append_events(KEY, [JsonEvent("agent", "x", id="2"), event])
    found = await read(service)
    state = {key: value for key, value in fields["state_delta"].items() if key != "temp:d"}
    first, second = found.events
    assert type(first) is type(second) is Event
    assert (first.content, first.metadata, second.content) == (values, {"f": 1}, "x")
    assert is_exact(first.state_delta, state)
    assert is_exact(found.state, state)
    assert session.state == {**state, "temp:d": {"e": 1}}
