"""A Session as JSON and back, as README shows it for web frameworks."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from sessionstore import Event, EventPage, Session
from sessionstore.sync import InMemorySessionService

STATE = {"cart": [{"mug": 2}, None, 1.5, "ä"], "user:language": "en", "app:open": True, "temp:x": 1}


def sent(value: Any) -> Any:
    """The Session that a receiver of JSON decodes."""
    return json.loads(json.dumps(msgspec.to_builtins(value)))


def test_a_session_is_the_same_afterwards() -> None:
    service = InMemorySessionService()
    session = service.create_session(app_name="shop", user_id="ann", state=STATE)
    event = Event(
        "tool",
        {"text": "Ünï", "parts": [1, [], {}]},
        invocation_id="run",
        branch="a.b",
        state_delta={"user:language": None},
        state_removed=["cart"],
        metadata={"cost": 0.5},
    )
    service.append_events(session, [event, Event("user")])
    received = msgspec.convert(sent(session), Session)
    assert received == session
    service.append_event(received, Event("user", "It is a handle as good as the first."))
    assert received.version > session.version


def test_a_page_is_the_same_afterwards() -> None:
    service = InMemorySessionService()
    session = service.create_session(app_name="shop", user_id="ann")
    service.append_event(session, Event("user", "Hello"))
    page = service.get_events(session)
    assert msgspec.convert(sent(page), EventPage) == page


def test_bytes_datetimes_and_int_keys_come_back_as_text() -> None:
    service = InMemorySessionService(codec="msgpack")
    session = service.create_session(app_name="shop", user_id="ann", state={"b": b"raw"})
    content = {"at": session.created_at, "counts": {1: 2}}
    service.append_event(session, Event("tool", content))
    received = msgspec.convert(sent(session), Session)
    assert received.state == {"b": "cmF3"}
    assert set(received.events[0].content["counts"]) == {"1"}
    assert isinstance(received.events[0].content["at"], str)
    assert received.created_at == session.created_at
