"""Every stored value passes the transforms of its service, with the context in which it is read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from support.compression import COMPRESSION
from support.services import make_options

from sessionstore import CorruptData, Event, InMemorySessionService, SessionKey, SessionService
from sessionstore.codec import Codec
from sessionstore.ops import Ops
from sessionstore.transform import COMPRESSED, ENCRYPTED, Context, Unreadable
from sessionstore.twin import AsyncMemoryExecutor, MemoryExecutor

KEY = SessionKey("app", "user", "sid")
OWNER: dict[str, Any] = {"app_name": "app", "user_id": "user"}


class Sealing:
    """Stores values with their context, and reads them only in the same one."""

    def __init__(self) -> None:
        self.contexts: set[Context] = set()
        self.num_compressed = 0

    def wrap(self, data: bytes, context: Context) -> bytes:
        self.contexts.add(context)
        self.num_compressed += data[:1] == COMPRESSED
        return ENCRYPTED + msgspec.msgpack.encode((context, data))

    def unwrap(self, data: bytes, context: Context) -> bytes:
        sealed, inner = msgspec.msgpack.decode(data[1:], type=tuple[Context, bytes])
        if sealed != context:
            raise Unreadable(f"it was sealed as {sealed}, not as {context}")
        return inner


def sealing_service() -> tuple[SessionService, Sealing]:
    seal = Sealing()
    codec = Codec("json", compression=COMPRESSION, encryption=seal)
    options = msgspec.structs.replace(make_options(), codec=codec)
    memory = MemoryExecutor.of(options, None, None)
    return SessionService(Ops(options), AsyncMemoryExecutor(memory)), seal


async def test_what_is_written_is_read_in_the_same_context() -> None:
    service, seal = sealing_service()
    state = {"a": [1], "user:b": b"raw", "app:c": {"d": None}, "n": 5}
    session = await service.create_session(**OWNER, session_id="sid", state=state)
    assert session.state == state
    events = [Event("user", number, state_delta={"user:e": [number]}) for number in range(5)]
    await service.append_event(session, events[0])
    await service.append_event(session, events[0])
    assert session.event_count == 1
    await service.append_events(session, events)
    await service.append_event(session, Event("user", "text", partial=True))
    watched = [entry async for entry in first_of(service, 6)]
    assert [entry.event.partial for entry in watched] == [False] * 5 + [True]
    page = await service.get_events(session)
    assert page.events == events
    await service.replace_event(session, page.positions[1] or 0, events[1], Event("user", "new"))
    await service.delete_event(session, page.positions[2] or 0, events[2])
    assert await service.pop_event(session) == events[4]
    await service.update_session_state(session, {"a": [2], "x": 1.5}, if_absent=True)
    assert await service.increment_session_state(session, {"n": 2}) == {"n": 7}
    await service.compact_session(session, upto=page.positions[0] or 0, summary="summary")
    fork = await service.fork_session(session, session_id="fork")
    for name in ("sid", fork.id):
        found: Any = await service.get_session(**OWNER, session_id=name)
        assert found.summary is not None
        assert found.summary.content == "summary"
        assert found.state == {**state, "user:e": [4], "x": 1.5, "n": 7}
    assert [each.state for each in await service.list_sessions(**OWNER)] == [found.state] * 2
    assert await service.get_user_state(**OWNER) == {"b": b"raw", "e": [4]}
    assert await service.get_app_state("app") == {"c": {"d": None}}
    restored = await service.restore_session(
        **OWNER, session_id="restored", events=events, state={"a": 0.5}, summary=found.summary
    )
    assert restored.state["a"] == 0.5
    assert seal.num_compressed > 10
    assert seal.contexts == {
        Context("app", "user", "event", ""),
        Context("app", "user", "fragment", ""),
        Context("app", "user", "summary", ""),
        *(Context("app", "user", "state", name) for name in ("a", "x", "user:b", "user:e")),
        Context("app", "", "state", "app:c"),
    }


async def first_of(service: SessionService, count: int) -> Any:
    """The first entries of a watcher."""
    async for entry in service.watch_events(KEY, partial=True):
        yield entry
        count -= 1
        if not count:
            return


async def test_a_plain_service_says_what_it_needs_to_read_a_value() -> None:
    service, _ = sealing_service()
    session = await service.create_session(**OWNER, session_id="sid")
    await service.append_event(session, Event("user", "Hello"))
    await service.update_user_state(**OWNER, state={"a": "b"})
    plain = InMemorySessionService()
    plain._executor = service._executor
    with pytest.raises(CorruptData, match=r"events:.*is encrypted"):
        await plain.get_events(session)
    with pytest.raises(CorruptData, match=r"userdata:.* field a .*is encrypted"):
        await plain.get_user_state(**OWNER)
