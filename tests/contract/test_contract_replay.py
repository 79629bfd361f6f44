"""Recorded conversations of agents are read back as they were appended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.services import ServiceFactory
from support.sessions import append_many, create, read

from sessionstore import Event, SessionKey

RECORDING = Path(__file__).parents[2] / "../shared/data/airline.jsonl"

pytestmark = pytest.mark.skipif(
    not RECORDING.exists(), reason=f"no recording at {RECORDING.resolve()}"
)


class Conversation(msgspec.Struct):
    app_name: str
    user_id: str
    session_id: str
    messages: list[dict[str, Any]]

    @property
    def key(self) -> SessionKey:
        return SessionKey(self.app_name, self.user_id, self.session_id)


def conversations() -> list[Conversation]:
    decode = msgspec.json.Decoder(Conversation).decode
    return [decode(line) for line in RECORDING.read_bytes().splitlines()]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_every_message_comes_back(make_service: ServiceFactory, codec: str) -> None:
    service = make_service(codec=codec)
    recorded = conversations()
    assert len(recorded) == 100
    events: list[list[Event]] = []
    for number, conversation in enumerate(recorded):
        session = await create(service, conversation.key)
        mine = [
            Event(message["role"], message, state_delta={"messages": index + 1})
            for index, message in enumerate(conversation.messages)
        ]
        events.append(mine)
        if number % 2:
            await append_many(service, session, mine)
        else:
            for event in mine:
                await service.append_event(session, event)
        assert session.events == mine
    for conversation, mine in zip(recorded, events, strict=True):
        found = await read(service, conversation.key)
        assert found.events == mine
        assert [event.content for event in found.events] == conversation.messages
        assert found.state == {"messages": len(mine)}
        assert (await read(service, conversation.key, event_num=5)).events == mine[-5:]
        assert (await service.get_events(conversation.key, limit=1000)).events == mine
