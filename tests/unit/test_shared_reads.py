"""What a watcher gets from a read that another watcher of the session made."""

from __future__ import annotations

from support.sessions import KEY

from sessionstore import Event, WatchChange, WatchEntry
from sessionstore.flows.watching import News, Place, read_news, start
from sessionstore.sync import InMemorySessionService


def read(service: InMemorySessionService, place: Place) -> News:
    news: News = service._run(read_news(service._ops, KEY, place))
    return news


def from_cursor(service: InMemorySessionService, cursor: str) -> Place:
    return start(service._ops, KEY, cursor, True)[1]


def test_no_cursor_of_a_shared_read_leads_back_to_fragments_that_were_shown() -> None:
    """The read of another watcher may begin before fragments that this one was shown."""
    with InMemorySessionService(stream_ttl=60) as service:
        service.create_session(app_name="app", user_id="user", session_id="sid")
        service.append_event(KEY, Event("user", "first"))
        begin = read(service, Place(0, 0, -1, 0)).place
        service.append_event(KEY, Event("bot", "part", partial=True, invocation_id="run"))
        shown = read(service, begin).place
        assert shown.sequence > begin.sequence
        service.append_event(KEY, Event("user", "second"))
        shared = read(service, begin)
        [entry] = shared.seen_from(shown)
        assert isinstance(entry, WatchEntry)
        assert entry.event.content == "second"
        after = from_cursor(service, entry.cursor)
        assert after.sequence == shown.sequence
        assert read(service, after).items == []
        assert shown.moved_to(shared.place) == shared.place


def test_a_change_in_a_shared_read_does_not_lead_back_either() -> None:
    with InMemorySessionService(stream_ttl=60) as service:
        service.create_session(app_name="app", user_id="user", session_id="sid")
        event = service.append_event(KEY, Event("user", "first"))
        begin = read(service, Place(0, 0, -1, 0)).place
        service.append_event(KEY, Event("bot", "part", partial=True, invocation_id="run"))
        shown = read(service, begin).place
        service.replace_event(KEY, begin.position, event, Event("user", "redacted"))
        [change] = read(service, begin).seen_from(shown)
        assert isinstance(change, WatchChange)
        assert from_cursor(service, change.cursor).sequence == shown.sequence
