"""Ids may have any characters, and no id gives access to the data of another."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from support.events import numbers_of
from support.sessions import create, read

from sessionstore import Event, SessionKey

HOSTILE = [
    ":",
    "{",
    "}",
    "{}",
    "}{",
    "*",
    "?",
    "[a-z]",
    "[",
    "]",
    "%",
    "%3A",
    "%253A",
    "\\",
    "\0",
    "a\0b",
    " ",
    " a ",
    "\n",
    "\r\n",
    "\t",
    "'",
    '"',
    "/",
    "..",
    "-",
    "--@include x",
    "$1",
    "é",
    "e\u0301",
    "日本語",
    "😀",
    "\u202e",
    "İ",
    "a",
    "A",
    "None",
    "0",
    "version",
    "session:{a:b}:c",
    "x" * 256,
    "é" * 128,
    "😀" * 64,
    ":" * 256,
]


@pytest.mark.parametrize("position", [0, 1, 2], ids=["app_name", "user_id", "session_id"])
async def test_every_hostile_id_has_a_session_of_its_own(service: Any, position: int) -> None:
    keys = []
    for text in HOSTILE:
        parts = ["app", "user", "sid"]
        parts[position] = text
        keys.append(SessionKey(*parts))
    for number, key in enumerate(keys):
        session = await create(service, key, state={"n": number})
        assert session.key == key
        event = Event("user", number, state_delta={"event": number})
        await service.append_event(key, event)
        if position < 2:
            await service.update_user_state(key.app_name, key.user_id, {"n": number})
        if position < 1:
            await service.update_app_state(key.app_name, {"n": number})
    for number, key in enumerate(keys):
        found = await read(service, key)
        expected = {"n": number, "event": number}
        if position < 2:
            expected["user:n"] = number
            assert await service.get_user_state(key.app_name, key.user_id) == {"n": number}
        if position < 1:
            expected["app:n"] = number
            assert await service.get_app_state(key.app_name) == {"n": number}
        assert found.key == key
        assert found.state == expected
        assert numbers_of(found) == numbers_of((await service.get_events(key)).events) == [number]
        listed = await service.list_sessions(
            app_name=key.app_name, user_id=key.user_id, event_num=5, limit=1000
        )
        if position < 2:
            assert listed == [found]
        else:
            assert [one for one in listed if one.id == key.session_id] == [found]
            assert {one.id for one in listed} == set(HOSTILE)
    for key in keys[::2]:
        await service.delete_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
        )
    for number, key in enumerate(keys):
        found_or_none = await service.get_session(
            app_name=key.app_name, user_id=key.user_id, session_id=key.session_id
        )
        assert (found_or_none is None) == (number % 2 == 0)


@pytest.mark.parametrize("partition_by", ["user", "app"])
async def test_ids_that_join_to_the_same_text_are_kept_apart(
    make_service: Any, partition_by: str
) -> None:
    service = make_service(partition_by=partition_by)
    owners = [("a:b", "c"), ("a", "b:c"), ("a}:{b", "c"), ("a", "b}:{c"), ("a%3Ab", "c")]
    for app, user in owners:
        key = SessionKey(app, user, "sid")
        mark = f"{app} {user}"
        await create(service, key, state={"owner": mark, "user:owner": mark})
        await service.append_event(key, Event("user", mark))
    for app, user in owners:
        mark = f"{app} {user}"
        found = await read(service, SessionKey(app, user, "sid"))
        assert found.state == {"owner": mark, "user:owner": mark}
        assert numbers_of(found) == [mark]
        assert await service.get_user_state(app, user) == {"owner": mark}
        assert len(await service.list_sessions(app_name=app, user_id=user)) == 1
    await service.delete_session(app_name="a:b", user_id="c", session_id="sid")
    for app, user in owners[1:]:
        assert (await read(service, SessionKey(app, user, "sid"))).state["owner"] == f"{app} {user}"


async def test_all_triples_of_some_hostile_ids_are_kept_apart(service: Any) -> None:
    parts = [":", "a:", ":a", "{a}", "%", "a"]
    keys = [SessionKey(*triple) for triple in product(parts, repeat=3)]
    for number, key in enumerate(keys):
        await create(service, key, state={"n": number})
    for number, key in enumerate(keys):
        assert (await read(service, key)).state == {"n": number}
    for app, user in product(parts, repeat=2):
        listed = await service.list_sessions(app_name=app, user_id=user)
        assert {found.id for found in listed} == set(parts)


async def test_event_ids_and_texts_may_be_anything(service: Any) -> None:
    key = SessionKey("app", "user", "sid")
    await create(service, key)
    events = [
        Event(text, text, id=text, invocation_id=text, branch=text, metadata={text: text})
        for text in HOSTILE
    ]
    await service.append_events(key, events)
    assert (await read(service, key)).events == events
