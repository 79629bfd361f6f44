"""The pages of one session: the conversation, state and header, search, and raw JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...calls import Flow
from ...drive import drive
from ...errors import BackendRejected, CorruptData, InvalidArgument, SessionNotFound
from ...flows.watching import Place
from ...model import EventPage, Session, SessionKey
from ...ops import ids_of
from ...ops.watching import Head
from ...times import from_us
from ..keyspace import ask
from ..ls import Size, size_of
from ..show import get_session, tiers_of
from ..transcript import around, to_json
from .addresses import ids_in, number_in
from .conversation import Part, parts_of, plain_text, shown_events, value_parts
from .pages import Pages

_EVENTS = 50  # of a page
_PAGE_BYTES = 16 << 20  # of events that a page reads
_SEARCHED_EVENTS = 2000
_SEARCHED_BYTES = 16 << 20
_FOUND = 50
_EVENTS_IF_UNKNOWN = 10  # read at once if the size is unknown: MEMORY USAGE is not allowed


class Facts(NamedTuple):
    """What a page shows about a session, without its events."""

    session: Session
    size: Size
    turn_holder: str  # empty: the turn is free
    turn_until: datetime | None
    tiers: list[tuple[str, list[tuple[str, Part]]]]
    summary: list[Part] | None


class SessionPages:
    """The pages of one session.

    Args:
        pages: has the service, and renders.
    """

    def __init__(self, pages: Pages) -> None:
        self._service = pages.service
        self._renderer = pages.renderer

    def session(self, request: Request) -> Response:
        """A part of the conversation, with state and header. The newest part is followed live.

        `before`, `after` and `around` are positions; without them the newest events are shown.
        """
        parameters = request.query_params
        key = SessionKey(*ids_in(parameters, 3))
        facts = self._facts(key)
        limit = _limit(facts, _EVENTS, _PAGE_BYTES)
        before, after, middle = (
            number_in(parameters, name) for name in ("before", "after", "around")
        )
        head, page, has_older, problem = None, EventPage([], None, None), False, ""
        try:
            if middle is not None:
                page, has_older = self._events_around(key, middle, max(limit // 2, 1))
            elif before is not None:
                page = self._service.get_events(key, before=before, limit=limit)
                has_older = len(page.events) == limit
            elif after is not None:
                page = self._service.get_events(key, after=after, limit=limit)
                has_older = True
            else:
                head = drive(_begin(self._service, key), self._service._executor)
                page = self._service.get_events(key, limit=limit, newest=True)
                has_older = facts.session.event_count > len(page.events)
        except CorruptData as error:
            problem = str(error)
        return self._renderer.page(
            "session.html",
            500 if problem else 200,
            key=key,
            facts=facts,
            events=shown_events(page.positions, page.events),
            first=page.first if has_older and page.events else None,
            last=None if head else page.last,
            cursor=None if head is None else _cursor(head, page),
            problem=problem,
        )

    def facts(self, request: Request) -> Response:
        """State and header, which the page reads again while it follows."""
        key = SessionKey(*ids_in(request.query_params, 3))
        return self._renderer.page("facts.html", key=key, facts=self._facts(key))

    def search(self, request: Request) -> Response:
        """The newest events with a text, before a position."""
        key = SessionKey(*ids_in(request.query_params, 3))
        text = request.query_params.get("text", "")
        before = number_in(request.query_params, "before")
        facts = self._facts(key)
        limit = _limit(facts, _SEARCHED_EVENTS, _SEARCHED_BYTES)
        page = self._service.get_events(key, before=before, limit=limit, newest=before is None)
        wanted = text.casefold()
        found = []
        for position, event in zip(reversed(page.positions), reversed(page.events), strict=True):
            content = plain_text(event)
            if wanted and wanted in content.casefold():
                found.append((position, event.author, event.timestamp, _marked(content, wanted)))
                if len(found) == _FOUND:
                    break
        is_full = len(found) == _FOUND
        next_before = page.first if len(page.events) == limit else None
        return self._renderer.page(
            "search.html",
            key=key,
            text=text,
            found=found,
            before=before,
            num_events=facts.session.event_count,
            num_searched=len(page.events),
            is_full=is_full,
            next_before=found[-1][0] if is_full else next_before,
        )

    def raw_event(self, request: Request) -> Response:
        """An event as JSON, whole."""
        key = SessionKey(*ids_in(request.query_params, 3))
        position = number_in(request.query_params, "position")
        if position is None:
            raise InvalidArgument("the address of this page is not complete")
        page = self._service.get_events(key, after=position - 1, before=position + 1, limit=1)
        if not page.events:
            raise SessionNotFound(
                f"no event is at position {position} of this session; it was removed or trimmed"
            )
        return _json({"position": position, "event": page.events[0]})

    def raw_session(self, request: Request) -> Response:
        """The header and the state of a session as JSON, whole."""
        session = self._get(SessionKey(*ids_in(request.query_params, 3)))
        return _json(session)

    def _get(self, key: SessionKey) -> Session:
        return get_session(self._service, key.app_name, key.user_id, key.session_id)

    def _facts(self, key: SessionKey) -> Facts:
        session = self._get(key)
        name = self._service._ops.options.keys.session(*ids_of(key)).session
        [(until_us, holder), (seconds, micros)] = ask(
            self._service, ("HMGET", name, "turn_until_us", "turn_holder"), ("TIME",)
        )
        until = int(until_us) if until_us and until_us.isdigit() else 0
        is_held = until > int(seconds) * 10**6 + int(micros)
        summary = session.summary
        return Facts(
            session,
            size_of(self._service, key),
            (holder or b"?").decode("utf-8", "replace") if is_held else "",
            from_us(until) if is_held else None,
            [(tier, value_parts(state)) for tier, state in tiers_of(session).items()],
            None if summary is None else parts_of(summary.content),
        )

    def _events_around(self, key: SessionKey, position: int, half: int) -> tuple[EventPage, bool]:
        """The events up to a position and after it, and whether there may be older ones."""
        older = self._service.get_events(key, before=position + 1, limit=half)
        newer = self._service.get_events(key, after=position, limit=half)
        events, positions = older.events + newer.events, older.positions + newer.positions
        page = EventPage(events, older.first, newer.last, positions)
        return page, len(older.events) == half


def _begin(service: Any, key: SessionKey) -> Flow[Head | None]:
    """Let the header record changes of old events from now on, and read where the log ends."""
    head: Head | None
    try:
        head = yield service._ops.listen_session(key, 0)
    except BackendRejected:  # the user may not write: a change is shown when a watcher reads
        head = yield service._ops.read_head(key)
    return head


def _cursor(head: Head, page: EventPage) -> str:
    """Where a watcher continues after a page. The head was read before the page."""
    end = Place.of(head)
    return end._replace(position=max(end.position, page.last or 0), sequence=0).cursor


def _limit(facts: Facts, most: int, num_bytes: int) -> int:
    """How many events to read at once, at most about this many bytes."""
    if facts.size.num_bytes is None:
        return _EVENTS_IF_UNKNOWN
    each = facts.size.num_bytes // max(facts.session.event_count, 1)
    return max(min(most, num_bytes // max(each, 1)), 1)


def _marked(content: str, wanted: str) -> tuple[str, str, str]:
    """The text around the first match: before it, the match, after it."""
    snippet = around(content, wanted)
    at = snippet.casefold().find(wanted)
    end = at + len(wanted)
    return snippet[:at], snippet[at:end], snippet[end:]


def _json(value: Any) -> Response:
    text = msgspec.json.format(to_json(value).encode(), indent=2)
    return Response(text, media_type="application/json")
