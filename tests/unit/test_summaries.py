"""What a service reads of a session with a summary."""

from __future__ import annotations

from typing import Any

import pytest

from sessionstore import Event, SessionKey, Window
from sessionstore.calls import Call, SyncExecutor
from sessionstore.observe import wrap_executor
from sessionstore.ops import Ops
from sessionstore.summaries import SESSIONS_LIMIT, Summaries
from sessionstore.sync import InMemorySessionService

OWNER: Any = {"app_name": "app", "user_id": "user"}
IDS: Any = {**OWNER, "session_id": "s"}
KEY = SessionKey("app", "user", "s")


class Counting:
    """An executor that counts Calls, and the events in their replies."""

    def __init__(self, inner: SyncExecutor) -> None:
        self.inner = inner
        self.num_calls = self.num_events = 0

    def execute(self, call: Call[Any]) -> list[Any]:
        replies = self.inner.execute(call)
        self.num_calls += 1
        self.num_events += sum(len(reply) for reply in replies if isinstance(reply, list))
        return replies

    def close(self) -> None:
        self.inner.close()


class Scene:
    """A session of 500 events, of which a summary covers all but the last 10."""

    def __init__(self) -> None:
        self.service = InMemorySessionService()
        self.service.create_session(**IDS)
        events = [Event("user", number) for number in range(500)]
        self.service.append_events(KEY, events)
        self.upto = self.service.get_events(KEY, limit=490).positions[-1]
        self.service.compact_session(KEY, upto=self.upto, summary="s")
        wrap_executor(self.service, self._count)

    def _count(self, inner: SyncExecutor) -> SyncExecutor:
        self.counting = Counting(inner)
        return self.counting

    @property
    def ops(self) -> Ops:
        return self.service._ops

    def read(self, **arguments: Any) -> tuple[int, int]:
        """Read the session. Returns the number of Calls, and of events that were transferred."""
        self.counting.num_calls = self.counting.num_events = 0
        session = self.service.get_session(**IDS, **arguments)
        assert session
        assert [event.content for event in session.events] == list(range(490, 500))
        return self.counting.num_calls, self.counting.num_events

    def forget(self) -> None:
        """What the service knows at its start."""
        self.ops.summaries = Summaries()


def test_a_service_that_knows_the_summary_reads_only_what_comes_after_it() -> None:
    scene = Scene()
    for arguments in ({}, {"event_num": 64}, {"window": Window(max_turns=20)}):
        assert scene.read(**arguments) == (1, 10)


def test_a_new_service_reads_covered_events_once() -> None:
    scene = Scene()
    scene.forget()
    assert scene.read() == (1, 500)
    assert scene.read() == (1, 10)
    scene.forget()
    assert scene.read(window=Window(max_turns=20)) == (1, 64)
    assert scene.read() == (1, 10)


@pytest.mark.parametrize("event_num", [0, 3])
def test_listing_tells_where_a_summary_ends(event_num: int) -> None:
    scene = Scene()
    scene.forget()
    scene.service.list_sessions(**OWNER, event_num=event_num)
    assert scene.read() == (1, 10)


def test_a_summary_that_moved_or_went_is_noticed() -> None:
    scene = Scene()
    assert scene.ops.summaries.upto(KEY) == scene.upto
    scene.ops.summaries.put(KEY, scene.upto - 5)  # another service has compacted it since
    assert scene.read() == (1, 15)
    scene.ops.summaries.put(KEY, scene.upto + 5)  # another one has removed the summary
    assert scene.read() == (2, 5 + 500)
    assert scene.read() == (1, 10)
    scene.service.clear_events(KEY)
    scene.counting.num_calls = 0
    scene.service.get_session(**IDS)
    assert scene.counting.num_calls == 1, "no event can be missing"
    assert scene.ops.summaries.upto(KEY) is None


def test_a_service_does_not_remember_more_than_some_sessions() -> None:
    summaries = Summaries()
    for number in range(SESSIONS_LIMIT + 1):
        summaries.put(SessionKey("app", "user", str(number)), number)
    known = [SessionKey("app", "user", str(number)) for number in (0, SESSIONS_LIMIT)]
    assert [summaries.upto(key) for key in known] == [None, SESSIONS_LIMIT]
