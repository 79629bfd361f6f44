"""State: three tiers, merged on read; keys are set and removed explicitly, in one atomic step."""

from __future__ import annotations

from typing import Any

import pytest
from support.sessions import APP, IDS, KEY, OWNER, USER, create, read

from sessionstore import Event, InvalidArgument, SessionKey

MIXED = {"a": 1, "user:b": 2, "app:c": 3, "temp:d": 4}
STORED = {"a": 1, "user:b": 2, "app:c": 3}


async def check_tiers(service: Any) -> None:
    """Check that each key of MIXED is in its tier and in no other."""
    assert (await read(service)).state == STORED
    assert await service.get_user_state(APP, USER) == {"b": 2}
    assert await service.get_app_state(APP) == {"c": 3}
    same_user = await service.create_session(**OWNER, session_id="same user")
    assert same_user.state == {"user:b": 2, "app:c": 3}
    same_app = await service.create_session(app_name=APP, user_id="another")
    assert same_app.state == {"app:c": 3}
    stranger = await service.create_session(app_name="another", user_id=USER)
    assert stranger.state == {}


# -- to their tier ------------------------------------------------------------------------------


async def test_create_puts_state_into_its_tiers(service: Any) -> None:
    session = await service.create_session(**IDS, state=MIXED)
    assert session.state == MIXED
    await check_tiers(service)


async def test_get_or_create_puts_state_into_its_tiers(service: Any) -> None:
    session = await service.get_or_create_session(**IDS, state=MIXED)
    assert session.state == MIXED
    await check_tiers(service)


async def test_an_event_puts_state_into_its_tiers(service: Any) -> None:
    session = await create(service)
    stored = await service.append_event(session, Event("user", state_delta=MIXED))
    assert session.state == MIXED
    assert stored.state_delta == STORED
    assert (await read(service)).events == [stored]
    await check_tiers(service)


async def test_events_of_a_batch_put_state_into_their_tiers(service: Any) -> None:
    session = await create(service)
    events = [Event("user", state_delta={key: value}) for key, value in MIXED.items()]
    await service.append_events(session, [Event("user"), *events, Event("user")])
    assert session.state == MIXED
    await check_tiers(service)


async def test_an_update_puts_state_into_its_tiers(service: Any) -> None:
    session = await create(service)
    await service.update_session_state(session, MIXED)
    assert session.state == MIXED
    await check_tiers(service)


async def test_updates_of_the_tiers_themselves(service: Any) -> None:
    await create(service, state={"a": 1})
    await service.update_user_state(APP, USER, {"b": 0})
    await service.update_user_state(APP, USER, {"user:b": 2})
    await service.update_app_state(APP, {"c": 0})
    await service.update_app_state(APP, {"app:c": 3})
    await check_tiers(service)


async def test_later_events_of_a_batch_win(service: Any) -> None:
    session = await create(service, state={"x": 0})
    await service.append_events(
        session,
        [
            Event("user", state_delta={"a": 1, "user:b": 1}),
            Event("user", state_delta={"a": 2}, state_removed=["user:b", "x"]),
            Event("user", state_delta={"x": 3, "temp:t": 1}),
            Event("user", state_removed=["temp:t"]),
        ],
    )
    assert session.state == {"a": 2, "x": 3}
    assert await read(service) == session


async def test_temp_state_is_never_stored(service: Any) -> None:
    session = await service.create_session(**IDS, state={"temp:a": 1})
    assert session.state == {"temp:a": 1}
    await service.append_event(session, Event("user", state_delta={"temp:b": [2]}))
    await service.update_session_state(session, {"temp:c": 3})
    assert session.state == {"temp:a": 1, "temp:b": [2], "temp:c": 3}
    await service.delete_session_state(session, "temp:a")
    await service.append_event(session, Event("user", state_removed=["temp:b"]))
    assert session.state == {"temp:c": 3}
    stored = await read(service)
    assert stored.state == {}
    assert all("temp" not in repr(event) for event in stored.events)
    [listed] = await service.list_sessions(**OWNER)
    assert listed.state == {}


async def test_state_given_with_a_key_leaves_temp_nowhere(service: Any) -> None:
    await create(service)
    await service.update_session_state(KEY, {"temp:a": 1})
    await service.append_event(KEY, Event("user", state_delta={"temp:a": 1}))
    assert (await read(service)).state == {}


# -- names --------------------------------------------------------------------------------------

HOSTILE_KEYS = [
    "version",
    "created_us",
    "updated_us",
    "last_us",
    "generation",
    "deadline_ms",
    ".x",
    ".version",
    "other:x",
    "App:x",
    ":x",
    "application:x",
    "a b",
    "\0",
    "{x}",
    "*",
    "é😀",
    "x" * 1024,
]


async def test_keys_of_any_kind_are_kept_apart(service: Any) -> None:
    state = {key: number for number, key in enumerate(HOSTILE_KEYS)}
    shared = {key: -number for number, key in enumerate(HOSTILE_KEYS)}
    session = await service.create_session(**IDS, state=state)
    assert session.state == state
    await service.update_user_state(APP, USER, {f"user:{key}": shared[key] for key in shared})
    await service.update_app_state(APP, {f"app:{key}": shared[key] for key in shared})
    merged = {
        **state,
        **{f"user:{key}": shared[key] for key in shared},
        **{f"app:{key}": shared[key] for key in shared},
    }
    stored = await read(service)
    assert stored.state == merged
    assert (stored.version, stored.created_at) == (session.version, session.created_at)
    assert await service.get_user_state(APP, USER) == shared
    assert await service.get_app_state(APP) == shared
    await service.delete_session_state(KEY, *HOSTILE_KEYS)
    assert (await read(service)).state == {key: merged[key] for key in merged if key not in state}
    assert (await read(service)).version > session.version


async def test_prefixes_nest(service: Any) -> None:
    """Only the first prefix counts. The rest is the name."""
    await create(service)
    await service.update_session_state(KEY, {"app:app:x": 1, "user:app:x": 2, "app:temp:x": 3})
    assert (await read(service)).state == {"app:app:x": 1, "user:app:x": 2, "app:temp:x": 3}
    assert await service.get_app_state(APP) == {"app:x": 1, "temp:x": 3}
    await service.update_app_state(APP, {"app:app:x": 4})
    assert await service.get_app_state(APP) == {"app:x": 4, "temp:x": 3}


@pytest.mark.parametrize("key", ["user:a", "temp:a", "app:", ""])
async def test_the_app_tier_refuses_what_is_not_its_own(service: Any, key: str) -> None:
    with pytest.raises(InvalidArgument, match="state key"):
        await service.update_app_state(APP, {"good": 1, key: 1})
    with pytest.raises(InvalidArgument, match="key"):
        await service.delete_app_state(APP, "good", key)
    assert await service.get_app_state(APP) == {}


@pytest.mark.parametrize("key", ["app:a", "temp:a", "user:", ""])
async def test_the_user_tier_refuses_what_is_not_its_own(service: Any, key: str) -> None:
    with pytest.raises(InvalidArgument, match="state key"):
        await service.update_user_state(APP, USER, {"good": 1, key: 1})
    with pytest.raises(InvalidArgument, match="key"):
        await service.delete_user_state(APP, USER, "good", key)
    assert await service.get_user_state(APP, USER) == {}


async def test_the_same_key_with_and_without_prefix_is_refused(service: Any) -> None:
    """It is not clear which of the two values is meant."""
    with pytest.raises(InvalidArgument, match="a"):
        await service.update_app_state(APP, {"a": 1, "app:a": 2})
    with pytest.raises(InvalidArgument, match="a"):
        await service.update_user_state(APP, USER, {"user:a": 1, "a": 2})


# -- None and removing --------------------------------------------------------------------------


async def test_none_is_a_value(service: Any) -> None:
    state = {"a": None, "user:b": None, "app:c": None}
    session = await service.create_session(**IDS, state=state)
    assert session.state == state == (await read(service)).state
    await service.append_event(session, Event("user", state_delta={"d": None}))
    await service.update_session_state(session, {"e": None})
    assert (await read(service)).state == {**state, "d": None, "e": None} == session.state
    assert await service.get_user_state(APP, USER) == {"b": None}
    assert await service.get_app_state(APP) == {"c": None}


async def test_an_event_removes_from_every_tier(service: Any) -> None:
    session = await service.create_session(**IDS, state={**MIXED, "kept": 1, "user:kept": 1})
    event = Event("user", state_delta={"new": 1}, state_removed=[*MIXED, "missing", "app:missing"])
    stored = await service.append_event(session, event)
    assert session.state == {"kept": 1, "user:kept": 1, "new": 1}
    assert (await read(service)).state == session.state
    assert stored.state_removed == ["a", "user:b", "app:c", "missing", "app:missing"]


async def test_delete_session_state_removes_from_every_tier(service: Any) -> None:
    session = await service.create_session(**IDS, state={**MIXED, "kept": 1})
    await service.delete_session_state(session, *MIXED, "missing", "user:missing")
    assert session.state == {"kept": 1}
    assert (await read(service)).state == {"kept": 1}


async def test_the_tiers_remove_with_and_without_their_prefix(service: Any) -> None:
    await service.update_app_state(APP, {"a": 1, "b": 2, "c": 3})
    await service.delete_app_state(APP, "a", "app:b", "missing")
    assert await service.get_app_state(APP) == {"c": 3}
    await service.update_user_state(APP, USER, {"a": 1, "b": 2, "c": 3})
    await service.delete_user_state(APP, USER, "a", "user:b", "missing")
    assert await service.get_user_state(APP, USER) == {"c": 3}
    await service.delete_app_state(APP, "c")
    await service.delete_user_state(APP, USER, "c")
    assert await service.get_app_state(APP) == await service.get_user_state(APP, USER) == {}


async def test_removing_the_last_key_keeps_the_session(service: Any) -> None:
    session = await service.create_session(**IDS, state={"a": 1})
    await service.delete_session_state(session, "a")
    assert (await read(service)).state == {}
    await service.update_session_state(session, {"b": 1})
    assert (await read(service)).state == {"b": 1}


async def test_an_update_of_nothing_changes_nothing(service: Any) -> None:
    await create(service, state={"a": 1})
    before = await read(service)
    await service.update_session_state(KEY, {})
    await service.delete_session_state(KEY)
    await service.update_app_state(APP, {})
    await service.update_user_state(APP, USER, {})
    await service.delete_app_state(APP)
    await service.delete_user_state(APP, USER)
    assert await read(service) == before


@pytest.mark.parametrize("count", [449, 450, 451, 5000])
async def test_many_keys_at_once(service: Any, count: int) -> None:
    state = {f"key-{number}": number for number in range(count)}
    await create(service, state=state)
    assert (await read(service)).state == state
    await service.update_session_state(KEY, {key: -state[key] for key in state})
    assert (await read(service)).state == {key: -state[key] for key in state}
    event = Event("user", state_removed=list(state), state_delta={f"app:{key}": 1 for key in state})
    await service.append_event(KEY, event)
    assert (await read(service)).state == {f"app:{key}": 1 for key in state}
    assert (await read(service)).events == [event]
    await service.delete_app_state(APP, *state)
    assert (await read(service)).state == {}


async def test_sessions_of_a_user_see_each_others_user_state_at_once(service: Any) -> None:
    one = await create(service, SessionKey(APP, USER, "one"))
    two = await create(service, SessionKey(APP, USER, "two"))
    await service.append_event(one, Event("user", state_delta={"user:a": 1, "app:b": 2, "c": 3}))
    assert (await read(service, two.key)).state == {"user:a": 1, "app:b": 2}
    await service.append_event(two, Event("user", state_removed=["user:a"]))
    assert (await read(service, one.key)).state == {"app:b": 2, "c": 3}


async def test_state_may_be_any_mapping(service: Any) -> None:
    from collections import ChainMap, OrderedDict
    from types import MappingProxyType

    mappings: list[Any] = [
        OrderedDict(a=1),
        MappingProxyType({"b": 2}),
        ChainMap({"c": 3}, {"d": 4}),
    ]
    await create(service)
    for mapping in mappings:
        await service.update_session_state(KEY, mapping)
    assert (await read(service)).state == {"a": 1, "b": 2, "c": 3, "d": 4}
