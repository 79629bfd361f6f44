"""Flows that walk the index of a user's sessions, and the cursors of their pages.

The index is sorted by last update, then by id. A *place* in it is a pair of both. Walks go from
place to place, not by rank: a session that is written moves to the top, which changes the ranks of
other sessions, but not their places.
"""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote, unquote

import msgspec

from ..calls import Flow
from ..errors import BackendError, CorruptData, EventsMissing, InvalidArgument
from ..model import Session, SessionPage
from ..ops import SESSIONS_PER_PAGE_LIMIT, Ops
from ..options import check_int
from ..replies import NOT_COUNTED, Place, SharedState, decode_shared_app_state
from .shared import from_primary, read_whole

_PLACES_PER_CALL = 1000  # places that one call reads or prunes where no session is read
_SESSIONS_PER_CALL = 100  # sessions that one call reads
_HIGHEST_US = 2**53  # scores are exact up to here


class Walk(msgspec.Struct):
    """How far a list of sessions has been read.

    First the walk goes down, to the oldest session. A session that is written meanwhile moves to
    the top, where the walk does not see it. So the walk then turns and goes up from its start, over
    all sessions that were written since.

    Attributes:
        start: the top of the index when the walk began; None = it has not begun.
        place: the last place that was read.
        is_upward: the walk has turned.
    """

    start: Place | None = None
    place: Place | None = None
    is_upward: bool = False

    def turn(self) -> None:
        """Continue upwards from the start."""
        self.place, self.is_upward = self.start, True

    def cursor(self) -> str:
        """The walk as text."""
        assert self.start is not None
        assert self.place is not None
        parts = ["up" if self.is_upward else "down"]
        for place in (self.start, self.place):
            parts += (str(place.updated_us), quote(place.session_id, safe=""))
        return ":".join(parts)

    @classmethod
    def from_cursor(cls, cursor: object) -> Walk:
        """A walk that continues at a cursor; None = a new one.

        Raises:
            InvalidArgument: it is not a cursor.
        """
        if cursor is None:
            return cls()
        if not isinstance(cursor, str):
            raise InvalidArgument(f"after must be a str, not {type(cursor).__name__}")
        parts = cursor.split(":")
        try:
            direction, start_us, start_id, place_us, place_id = parts
            start = Place(int(start_us), unquote(start_id, errors="strict"))
            place = Place(int(place_us), unquote(place_id, errors="strict"))
            is_valid = direction in ("down", "up") and all(
                abs(each.updated_us) <= _HIGHEST_US for each in (start, place)
            )
        except ValueError:
            is_valid = False
        if not is_valid:
            raise InvalidArgument("after must be the cursor of a page from list_sessions")
        return cls(start, place, direction == "up")


def list_sessions(
    ops: Ops,
    app_name: str,
    user_id: str,
    limit: int,
    offset: int,
    event_num: int,
    after: str | None = None,
) -> Flow[SessionPage]:
    """Read a page of a user's sessions and prune expired ones from the index.

    A script can only use keys that it was given, so the ids are read first and then the sessions. A
    session that is deleted in between is left out. The page is short only at the end of the walk.
    """
    check_int("limit", limit, low=1, high=SESSIONS_PER_PAGE_LIMIT)
    check_int("offset", offset, low=0)
    check_int("event_num", event_num, low=0)
    if offset and after is not None:
        raise InvalidArgument("after and offset cannot be given together")
    walk = Walk.from_cursor(after)
    if offset and not (yield from _skip(ops, app_name, user_id, walk, offset)):
        return SessionPage()
    found: dict[str, Session] = {}
    while len(found) < limit:
        wanted = limit - len(found)
        is_first = walk.start is None
        places, is_end = yield from next_places(ops, app_name, user_id, walk, wanted)
        if is_first and not places:
            break
        if places:
            ids = [place.session_id for place in places]
            sessions = yield from _read(ops, app_name, user_id, ids, event_num)
            found.update((session.id, session) for session in sessions)
            if len(sessions) < len(ids):
                yield ops.prune_index(app_name, user_id, ids)
                if not is_end and len(found) < limit:
                    yield from _prune(ops, app_name, user_id, walk)
        if not is_end:
            continue
        if is_first or offset or walk.is_upward:
            # The walk is complete: it read the whole index at once, or it has gone up as well. With
            # an offset it does not go up.
            return SessionPage(found.values())
        walk.turn()
    return SessionPage(found.values(), walk.cursor() if found else None)


def next_places(
    ops: Ops, app_name: str, user_id: str, walk: Walk, num_wanted: int
) -> Flow[tuple[list[Place], bool]]:
    """Walk past up to `num_wanted` places. Returns them, and whether no more follow."""
    found: list[Place] = yield ops.list_places(
        app_name, user_id, num_wanted + 1, walk.place, upward=walk.is_upward
    )
    places = found[:num_wanted]
    if places:
        walk.start, walk.place = walk.start or places[0], places[-1]
    return places, len(found) <= num_wanted


def _read(
    ops: Ops, app_name: str, user_id: str, ids: list[str], event_num: int
) -> Flow[list[Session]]:
    """Read sessions by id. Those that are gone are left out.

    Each call reads 100, so that other calls and tasks run in between. The user and app tiers are
    read once, by the first call.
    """
    found: list[Session] = []
    app = SharedState()
    user_and_app = SharedState()
    for first in range(0, len(ids), _SESSIONS_PER_CALL):
        some = ids[first : first + _SESSIONS_PER_CALL]
        call = ops.list_sessions(app_name, user_id, some, event_num, tiers=not first)
        if first or not ops.app_in_own_slot:
            sessions, shared = yield from read_whole(call)
            user_and_app = user_and_app if first else shared
        else:
            tier = ops.options.keys.app(app_name)
            copied = ops.app_copies.get(tier)
            if copied is not None:
                sessions, user_and_app = yield from read_whole(call)
                app = decode_shared_app_state(ops.options.codec, app_name, copied, tier)
            else:
                app_call = ops.list_app_state(app_name)
                try:
                    (sessions, user_and_app), app = yield call, app_call
                except EventsMissing:
                    (sessions, user_and_app), app = yield from_primary(call), app_call
        yield from _count_events(ops, app_name, user_id, sessions)
        for session in sessions:
            if session is not None:
                state = user_and_app.merged_with(session.state)
                session.state = app.merged_with(state) if ops.app_in_own_slot else state
                ops.summaries.note(session, None)
                found.append(session)
    return found


def _count_events(
    ops: Ops, app_name: str, user_id: str, sessions: list[Session | None]
) -> Flow[None]:
    """Count the events of sessions whose header does not tell: those of release 0.1.0."""
    rest = [each for each in sessions if each is not None and each.event_count == NOT_COUNTED]
    if rest:
        counts = yield ops.count_events(app_name, user_id, [session.id for session in rest])
        for session, count in zip(rest, counts, strict=True):
            session.event_count = count


def _skip(ops: Ops, app_name: str, user_id: str, walk: Walk, offset: int) -> Flow[bool]:
    """Walk past `offset` sessions, not counting expired ones; False if there are fewer."""
    while offset:
        count = min(_PLACES_PER_CALL, offset)
        places: list[Place] = yield ops.list_places(app_name, user_id, count, walk.place)
        if not places:
            return False
        walk.start, walk.place = walk.start or places[0], places[-1]
        ids = [place.session_id for place in places]
        pruned: int = yield ops.prune_index(app_name, user_id, ids)
        offset -= len(places) - pruned
    return True


def _prune(ops: Ops, app_name: str, user_id: str, walk: Walk) -> Flow[None]:
    """Walk past expired sessions, 1,000 at a time, up to sessions that exist."""
    pruned = _PLACES_PER_CALL
    while pruned == _PLACES_PER_CALL:
        places: list[Place] = yield ops.list_places(
            app_name, user_id, _PLACES_PER_CALL, walk.place, upward=walk.is_upward
        )
        ids = [place.session_id for place in places]
        pruned = (yield ops.prune_index(app_name, user_id, ids)) if ids else 0
        if pruned == len(places) > 0:
            walk.place = places[-1]


def prune_index(ops: Ops, app_name: str, user_id: str, members: list[bytes]) -> Flow[None]:
    """Remove those of some sessions that have expired from the index. Ignores failures."""
    with suppress(BackendError, CorruptData, ValueError):
        yield ops.prune_index(app_name, user_id, [member.decode() for member in members])


def count_sessions(ops: Ops, app_name: str, user_id: str) -> Flow[int]:
    """Count a user's sessions, and prune expired ones from the index."""
    count = 0
    walk = Walk()
    while True:
        places: list[Place] = yield ops.list_places(app_name, user_id, _PLACES_PER_CALL, walk.place)
        if places:
            walk.place = places[-1]
            ids = [place.session_id for place in places]
            pruned: int = yield ops.prune_index(app_name, user_id, ids)
            count += len(places) - pruned
        if len(places) < _PLACES_PER_CALL:
            return count
