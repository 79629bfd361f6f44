"""What `update_session` of TrpcSessionService stores: changed events, summaries, state."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from adapters_support import needs

from sessionstore import InvalidArgument, SessionKey

needs("trpc_agent_sdk", "trpc-agent")
with warnings.catch_warnings(action="ignore"):  # of the framework
    from trpc_agent_sdk.types import (
        EventActions,
        Part,
    )
    from trpc_support import IDS, OWNER, Make, changed, filled, new_runner, read, said, say, summary
    from trpc_support import make as make
    from trpc_support import sessions as sessions
    from trpc_support import texts_of as texts

    from sessionstore.adapters.trpc_agent import TrpcSessionService


JSON: dict[str, Any] = {
    "big": 1 << 90,
    "$": {"$": "bytes", "value": "no"},
    "plain": [1, "two", None, True, {"x": 1.5}],
}
NESTED: list[Any] = []
NESTED.append(NESTED)


class Opaque:
    """Nothing serializes this."""


async def test_a_summary_takes_the_place_of_events(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 6)
    session.compact_events(summary("sum"), session.events[3].id, compaction_id="c1")
    session.conversation_count = 0
    await sessions.update_session(session)
    found = await read(sessions)
    assert found == session
    assert texts(found.events) == ["sum", "4", "5"]
    assert texts(found.historical_events) == ["0", "1", "2", "3"]
    for number in (6, 7):
        await sessions.append_event(session, said(str(number)))
    session.compact_events(summary("again"), session.events[2].id, compaction_id="c2")
    await sessions.update_session(session)
    found = await read(sessions)
    assert found == session
    assert texts(found.events) == ["again", "6", "7"]
    assert texts(found.historical_events) == ["0", "1", "2", "3", "sum", "4", "5"]


async def test_events_and_state_can_be_changed_freely(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 4)
    await sessions.append_event(session, changed(a=[1], b=1, user__c=1, app__d=1))
    session.events[1].content.parts = [Part(text="changed", inline_data=None)]
    del session.events[2]
    session.insert_events([said("first"), said("second", custom_metadata={"b": "x"})])
    session.events.append(said("last", actions=EventActions(state_delta={"n": 1})))
    session.state["a"].append(2)
    session.state["e"] = ("x",)
    session.state["user:c"] = 2
    session.state["temp:t"] = object()
    del session.state["b"]
    await sessions.update_session(session)
    del session.state["temp:t"]
    found = await read(sessions)
    session.historical_events, session.state = found.historical_events, found.state
    assert found.model_dump() == session.model_dump()
    assert texts(found.events) == ["first", "second", "0", "changed", "3", "", "last"]
    assert found.state == {"a": [1, 2], "e": ["x"], "user:c": 2, "app:d": 1}
    assert (await sessions.create_session(**OWNER)).state == {"user:c": 2, "app:d": 1}


async def test_an_update_without_changes_writes_nothing(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 3)
    session.compact_events(summary("sum"), session.events[0].id, compaction_id="c")
    await sessions.update_session(session)
    before = await sessions._service.get_session(**IDS)
    await sessions.update_session(session)
    await sessions.update_session(await read(sessions))
    after = await sessions._service.get_session(**IDS)
    assert before is not None
    assert after is not None
    assert after.version == before.version


async def test_what_others_wrote_meanwhile_stays(make: Make) -> None:
    ours, theirs = make(), make()
    mine = await filled(ours, 4)
    other = await read(theirs)
    await theirs.append_event(other, said("foreign"))
    await theirs.update_session_state(other, {"theirs": 1, "both": 1})
    await ours.append_event(mine, said("own"))
    mine.compact_events(summary("sum"), mine.events[2].id, compaction_id="c")
    mine.state["mine"] = 1
    await ours.update_session(mine)
    found = await read(ours)
    assert texts(found.events) == ["sum", "3", "foreign", "own"]
    assert found.state == {"theirs": 1, "both": 1, "mine": 1}
    # Also by way of a copy, which the service does not know.
    copy = mine.model_copy(deep=True)
    copy.insert_events([said("note")])
    copy.state["copy"] = 1
    await ours.update_session(copy)
    found = await read(theirs)
    assert texts(found.events)[:3] == ["note", "sum", "3"]
    assert texts(found.events)[-1] == "own"
    assert found.state == {"theirs": 1, "both": 1, "mine": 1, "copy": 1}


async def test_updates_at_once_are_all_applied(make: Make) -> None:
    services = [make() for _ in range(4)]
    await filled(services[0], 4)
    handles = [await read(service) for service in services]

    async def work(number: int) -> None:
        session, service = handles[number], services[number]
        del session.events[number]
        session.state[f"w{number}"] = number
        await service.update_session(session)
        await service.append_event(session, said(f"by {number}"))

    await asyncio.gather(*(work(number) for number in range(4)))
    found = await read(services[0])
    assert sorted(texts(found.events)) == [f"by {number}" for number in range(4)]
    assert found.state == {f"w{number}": number for number in range(4)}


async def test_a_refused_update_changes_nothing(sessions: TrpcSessionService) -> None:
    session = await filled(sessions, 2)
    before = await read(sessions)
    session.state["f"] = NESTED
    with pytest.raises(InvalidArgument, match=r"session\.state\['f'\] cannot be serialized"):
        await sessions.update_session(session)
    del session.state["f"]
    session.insert_events([said("x", custom_metadata={"f": Opaque()})])
    with pytest.raises(InvalidArgument, match=r"session\.events\[0\]\.custom_metadata"):
        await sessions.update_session(session)
    assert await read(sessions) == before


async def test_an_update_survives_trimming(make: Make) -> None:
    sessions = make(session_event_limit=5)
    session = await filled(sessions, 5)
    session.compact_events(summary("sum"), session.events[3].id, compaction_id="c")
    await sessions.update_session(session)
    assert texts((await read(sessions)).events) == ["sum", "4"]
    for number in (5, 6, 7):
        await sessions.append_event(session, said(str(number)))
    assert texts((await read(sessions)).events) == ["sum", "4", "5", "6", "7"]
    await sessions.append_event(session, said("8"))
    assert texts((await read(sessions)).events)[-4:] == ["5", "6", "7", "8"]
    await sessions.update_session(session)  # what was trimmed does not come back
    for number in range(9, 15):
        await sessions.append_event(session, said(str(number)))
    # A summary is not trimmed.
    found = await read(sessions)
    assert texts(found.events) == ["sum", "10", "11", "12", "13", "14"]
    assert texts(found.historical_events) == []
    found.compact_events(summary("again"), found.events[2].id, compaction_id="d")
    await sessions.update_session(found)
    found = await read(sessions)
    assert texts(found.events) == ["again", "12", "13", "14"]
    assert texts(found.historical_events) == ["10", "11"]  # what it followed is gone, and so is sum
    for number in range(15, 20):
        await sessions.append_event(found, said(str(number)))
    found = await read(sessions)
    assert texts(found.events) == ["again", "15", "16", "17", "18", "19"]
    assert texts(found.historical_events) == []


# -- in the log and in the View -----------------------------------------------------------------


async def test_summaries_do_not_pile_up(make: Make) -> None:
    sessions = make(session_event_limit=20)
    session = await sessions.create_session(**IDS)
    sizes = []
    for number in range(60):
        for step in range(3):
            await sessions.append_event(session, said(f"{number}/{step}"))
        session = await read(sessions)
        last = session.events[-2].id
        session.compact_events(summary(f"sum {number}"), last, compaction_id=str(number))
        await sessions.update_session(session)
        found = await read(sessions)
        assert texts(found.events) == [f"sum {number}", f"{number}/2"]
        historical = texts(found.historical_events)
        assert len(historical) == len(set(historical))
        stored = await sessions._service.get_session(**IDS, event_num=0)
        assert stored is not None
        sizes.append(len(str(stored.state)))
        session = found
    assert max(sizes[30:]) < 1.1 * max(sizes[10:20])


async def test_the_view_is_not_shown_as_state(make: Make) -> None:
    sessions = make()
    session = await sessions.create_session(**IDS, state={"a": 1})
    await say(new_runner(sessions), "x")
    session = await read(sessions)
    session.compact_events(summary("sum"), session.events[1].id, compaction_id="c")
    await sessions.update_session(session)
    assert (await read(sessions)).state == {"a": 1, "count": 1, "last": "x"}
    [listed] = (await sessions.list_sessions(**OWNER)).sessions
    assert listed.state == {"a": 1, "count": 1, "last": "x"}
    assert listed.conversation_count == 1


async def test_an_event_that_is_gone_is_not_historical(make: Make) -> None:
    sessions = make()
    session = await sessions.create_session(**IDS)
    for number in range(4):
        await sessions.append_event(session, said(str(number)))
    del session.events[1]
    await sessions.update_session(session)
    found = await read(sessions)
    assert texts(found.events) == ["0", "2", "3"]
    assert found.historical_events == []
    found.compact_events(summary("sum"), found.events[1].id, compaction_id="c")
    await sessions.update_session(found)
    found = await read(sessions)
    assert texts(found.events) == ["sum", "3"]
    assert texts(found.historical_events) == ["0", "2"]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_changed_event_may_have_any_valid_content(make: Make, codec: str) -> None:
    sessions = make(codec=codec)
    session = await sessions.create_session(**IDS)
    odd = {"big": 1 << 90, "$": {"$": "bytes", "value": "no"}}
    actions = EventActions(state_delta={"odd": odd})
    await sessions.append_event(session, said("x", custom_metadata=odd, actions=actions))
    session.events[0].visible = False
    await sessions.update_session(session)
    found = await read(sessions)
    assert found == session
    assert found.events[0].visible is False
    assert found.events[0].custom_metadata == found.state["odd"] == odd


@pytest.mark.parametrize("number", range(9))
async def test_an_event_that_is_deleted_leaves_the_others(make: Make, number: int) -> None:
    # As a redaction does, also of the last event that `update_session` saw.
    sessions, key = make(), SessionKey(**IDS)
    session = await sessions.create_session(**IDS)
    for text in range(7):
        await sessions.append_event(session, said(str(text)))
    session.compact_events(summary("sum"), session.events[2].id, compaction_id="c")
    del session.events[2]
    await sessions.update_session(session)
    for text in (7, 8):
        await sessions.append_event(session, said(str(text)))
    page = await sessions._service.get_events(key)
    assert await sessions._service.delete_event(key, page.positions[number], page.events[number])
    found = await read(sessions)
    shown = [text for text in ("sum", "3", "5", "6", "7", "8") if text != str(number)]
    assert texts(found.events) == shown
    historical = texts(found.historical_events)
    assert historical == [text for text in "012" if text != str(number)]


async def test_events_that_are_rewound_are_not_shown(make: Make) -> None:
    sessions, key = make(), SessionKey(**IDS)
    session = await sessions.create_session(**IDS)
    for text in range(7):
        await sessions.append_event(session, said(str(text)))
    session.compact_events(summary("sum"), session.events[2].id, compaction_id="c")
    await sessions.update_session(session)
    positions = (await sessions._service.get_events(key)).positions
    await sessions._service.rewind_session(key, to=positions[4])
    assert texts((await read(sessions)).events) == ["sum", "3", "4"]
    await sessions.append_event(await read(sessions), said("next"))
    assert texts((await read(sessions)).events) == ["sum", "3", "4", "next"]


async def test_replaced_events_stay_hidden_if_the_last_one_is_deleted(make: Make) -> None:
    sessions, key = make(), SessionKey(**IDS)
    session = await sessions.create_session(**IDS)
    for text in range(4):
        await sessions.append_event(session, said(str(text)))
    session.compact_events(summary("sum"), session.events[3].id, compaction_id="c")
    await sessions.update_session(session)
    await sessions.append_event(session, said("next"))
    page = await sessions._service.get_events(key)
    await sessions._service.delete_event(key, page.positions[3], page.events[3])
    found = await read(sessions)
    assert texts(found.events) == ["sum", "next"]
    assert texts(found.historical_events) == ["0", "1", "2"]
