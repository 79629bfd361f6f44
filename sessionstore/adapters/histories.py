"""What the histories for the OpenAI Agents SDK, LangChain and Pydantic AI have in common.

An item of a conversation is an event of a session. A repeated append stores nothing twice, and what
is read begins where a model may begin to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import msgspec

import sessionstore.sync

from .. import flows
from ..calls import Flow
from ..errors import InvalidArgument
from ..model import Event, Session, SessionKey, num_after_summary
from ..ops import EVENTS_PER_CALL_LIMIT, Ops
from ..windows import Window, choose, may_be_trimmed
from .services import AnyService, Services
from .session_flows import append

T = TypeVar("T")

_UNKNOWN_LIMIT = 1000  # sessions of a service of which an append with an unknown outcome is kept
_PAGE = 64  # events of the first read that looks for the start of a turn


class _Unknown(NamedTuple):
    """An append whose outcome is unknown: what it was to store, and the identity of its events."""

    digest: bytes
    identities: list[tuple[str, datetime]]


_unknown: WeakKeyDictionary[AnyService, dict[SessionKey, _Unknown]] = WeakKeyDictionary()


class HistoryAdapter:
    """A conversation whose items are the events of one session. The first item creates the session.

    Its TTL and its event limit are the service's. Objects are cheap: make one for every run.

    Args:
        session_id: the conversation, 1 to 256 bytes of UTF-8.
        service: a service for asyncio, on whose event loop the methods without await run, so only
            other threads can call them; or one of `sessionstore.sync`, with which the asynchronous
            methods run in threads.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: likewise.
        sync_service: one of `sessionstore.sync` on the same server, in addition to one for asyncio.
            Then both kinds of methods work everywhere. In memory the two would share nothing.

    Raises:
        InvalidArgument: a service is not valid, or both are of one kind.
        NotImplementedError: methods without await: there is only a service for asyncio, and its
            event loop does not run, or runs in this thread.
        BackendError: methods: the store refused the call or did not answer (maybe_applied).
    """

    # `_append` and `_aappend` append events that have no ids of their own, so that a repeat stores
    # nothing twice. A repeat is recognized if the newest append of the service to the session has
    # an unknown outcome, and was of events that are equal except for ids and timestamps. It is also
    # recognized if it is the first append of this object, the framework gave an id to each of its
    # items, and they are the newest ones of the session.

    def __init__(
        self,
        session_id: str,
        service: AnyService,
        *,
        app_name: str,
        user_id: str,
        sync_service: sessionstore.sync.SessionService | None = None,
    ) -> None:
        self.session_id = session_id
        self._key = SessionKey(app_name, user_id, session_id)
        self._services = Services(type(self).__name__, service, sync_service)
        self._has_appended = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._key!r})"

    async def _aappend(self, events: Sequence[Event], have_ids: bool) -> Sequence[Event]:
        """Append events, and return them as they are stored.

        Args:
            events: JsonEvents; up to 500 go in one atomic step.
            have_ids: the framework gave an id to each of the items.
        """
        with self._recognized(events, have_ids) as arguments:
            return await self._services.arun(_append_unless_newest, self._key, *arguments)

    def _append(self, events: Sequence[Event], have_ids: bool) -> None:
        """Append events. See `_aappend`."""
        with self._recognized(events, have_ids) as arguments:
            self._services.run(_append_unless_newest, self._key, *arguments)

    @contextmanager
    def _recognized(
        self, events: Sequence[Event], have_ids: bool
    ) -> Iterator[tuple[Sequence[Event], bool]]:
        """The events to append: those of the earlier call, if this one is its repeat."""
        may_be_stored = have_ids and not self._has_appended
        self._has_appended = True
        unknown = _unknown.setdefault(self._services._service, {})
        earlier = unknown.get(self._key)
        if earlier is not None and earlier.digest == _digest(events):
            events = [
                msgspec.structs.replace(event, id=event_id, timestamp=timestamp)
                for event, (event_id, timestamp) in zip(events, earlier.identities, strict=True)
            ]
        try:
            yield events, may_be_stored
        except InvalidArgument:
            raise
        except BaseException:  # a cancelled call may be stored, too
            identities = [(event.id, event.timestamp) for event in events]
            unknown[self._key] = _Unknown(_digest(events), identities)
            if len(unknown) > _UNKNOWN_LIMIT:
                unknown.pop(next(iter(unknown)), None)
            raise
        if unknown.get(self._key) is earlier:
            unknown.pop(self._key, None)


def _digest(events: Iterable[Event]) -> bytes:
    """A digest that is equal for events that differ only in ids and timestamps."""
    parts = [(event.author, event.metadata, event.content) for event in events]
    return blake2b(msgspec.json.encode(parts, enc_hook=repr)).digest()


def _append_unless_newest(
    ops: Ops, key: SessionKey, events: Sequence[Event], may_be_stored: bool
) -> Flow[Sequence[Event]]:
    """Append events, and return them as they are stored.

    If they may be stored already, look first whether they are the newest ones.
    """
    if may_be_stored and 0 < len(events) <= EVENTS_PER_CALL_LIMIT:
        session = yield from flows.get_session(ops, key, len(events), None)
        if session is not None and _digest(session.events) == _digest(map(_decoded, events)):
            return session.events
    yield from append(ops, key, events)
    return events


def _decoded(event: Event) -> Event:
    return msgspec.structs.replace(event, content=msgspec.json.decode(event.content))


# -- where a model may begin to read ---------------------------------------------------------------


@dataclass(frozen=True)
class Turns(Generic[T]):
    """The rules of a framework: where a model may begin to read its items.

    Args:
        starts_turn: whether a turn starts at an item.
        calls: the ids of the calls that an item makes, and of those whose results it holds.
        is_inside: whether an item needs others before it, so that something is missing if it is
            the first one.
        rest: what a model can read of a turn whose start was trimmed, if there is no other.
    """

    starts_turn: Callable[[T], bool]
    calls: Callable[[T], tuple[Iterable[str], Iterable[str]]]
    is_inside: Callable[[T], bool]
    rest: Callable[[list[T]], list[T]] = list


class History(NamedTuple, Generic[T]):
    """The newest items of a session.

    Attributes:
        session: with the events of `items`; None = there is no session.
        items: what was read, oldest first.
        shown: the newest of them, from a place on at which a model may begin to read.
    """

    session: Session | None
    items: list[T]
    shown: list[T]


def read_turns(
    ops: Ops, key: SessionKey, limit: int | None, read: Callable[[Event], T], turns: Turns[T]
) -> Flow[History[T]]:
    """The newest items of a session: a Window of them. A log that was never trimmed is shown whole.

    Args:
        ops: builds the Calls.
        key: the session.
        limit: most items to show; None = all. The newest turn is shown even if it has more.
        read: the item of an event.
        turns: the rules.

    One round trip, O(items read). More if the newest turn has more items than the limit.
    """
    rules: Any = {"starts_turn": turns.starts_turn, "calls": turns.calls}
    window = Window(max_events=limit, **rules)
    event_num = None if limit is None else limit + 1  # one more tells whether that is all
    while True:
        session = yield from flows.get_session(ops, key, event_num, None)
        if session is None:
            return History(None, [], [])
        items = [read(event) for event in session.events]
        is_whole = len(items) >= num_after_summary(session)
        is_full = is_whole and may_be_trimmed(session)
        is_trimmed = is_full or any(map(turns.is_inside, items[:1]))
        if is_whole and not is_trimmed and (limit is None or len(items) <= limit):
            return History(session, items, items)
        is_rest = is_full and not any(map(turns.starts_turn, items))
        left = turns.rest(items) if is_rest else items
        shown = choose(window, left, is_whole_log=is_whole, is_trimmed=is_trimmed)
        if shown is not None:
            return History(session, items, shown)
        event_num = max(_PAGE, 2 * len(items))
