"""What the session services for Google ADK and tRPC-Agent have in common.

Both frameworks have the same interface of a session service, and Events and Sessions of one shape.
An event is stored as the framework's own JSON, its state delta next to it, where the store applies
it. The frameworks' prefixes of state keys are the store's: `app:`, `user:`, `temp:` and none.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import msgspec

from ..concurrency import HeldTurn
from ..errors import CorruptData, InvalidArgument, SessionNotFound
from ..model import Event as StoredEvent
from ..model import Session as StoredSession
from ..model import SessionKey, Turn
from ..options import Duration, check_bool, check_milliseconds
from ..service import SessionService
from ..windows import Window, choose
from .pydantic_events import EventFormat, from_json_state
from .session_flows import list_all

_ANY = datetime(1970, 1, 1, tzinfo=UTC)  # a Session of this age writes to any session of its id


class SessionServiceAdapter:
    """A framework's session service on a service of sessionstore.

    TTLs, the limit of events and all else are options of the given service, which you close
    yourself. Ids are 1 to 256 bytes of UTF-8; white space around session ids is ignored.

    Every method raises InvalidArgument if an argument is not valid or a value cannot be stored, and
    names it; CorruptData if a session holds something that the adapter did not write; BackendError
    if the store refused the call or did not answer (maybe_applied).

    Args:
        service: where sessions are stored: `RedisSessionService` or `InMemorySessionService`.
        serialize_turns: True = one run at a time works on a session, in any process; others wait.
            Start each run with `sessions.run(runner, ...)`.
        turn_lease: a timedelta or seconds, from 1 ms. After a crash the session is free again when
            the lease ends.
        whole_turns: True = the events of a session never begin inside a turn: they begin with a
            user's message, or a summary, and every function response follows its call.
        options: those of the framework's base class.
    """

    _name: ClassVar[str]  # of the adapter, for error messages
    _format: ClassVar[EventFormat]
    _held: HeldTurn | None = None

    def __init__(
        self,
        service: SessionService,
        serialize_turns: bool,
        turn_lease: Duration,
        whole_turns: bool,
        **options: Any,
    ) -> None:
        if not isinstance(service, SessionService):
            kind = type(service)
            raise InvalidArgument(
                f"{self._name} needs a RedisSessionService or an InMemorySessionService of "
                f"sessionstore, not {kind.__module__}.{kind.__name__}"
            )
        self._service = service
        self._serialize_turns = check_bool("serialize_turns", serialize_turns)
        self._lease = timedelta(milliseconds=check_milliseconds("turn_lease", turn_lease))
        self._whole_turns = check_bool("whole_turns", whole_turns)
        super().__init__(**options)

    def __repr__(self) -> str:
        return f"{self._name}({self._service!r})"

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session with its events and state, if it exists. One round trip."""
        await self._service.delete_session(
            app_name=app_name, user_id=user_id, session_id=session_id.strip()
        )

    async def append_event(self, session: Any, event: Any) -> Any:
        """Append an event and apply its state delta, in one atomic step, exactly once.

        A partial event is returned and not stored. `session` and `event` change once the store
        has accepted the event: `session` has it, with its state, and `temp:` keys leave its delta.
        If the event was stored already, `session` gets what others have written since, too. So
        appending the same event again is safe after any error.

        Raises:
            SessionNotFound: there is no such session, or it was deleted and created again.
            TurnLost: in `run`, another run has acquired the turn.

        One round trip; two more for an event that was stored already.
        """
        if event.partial:
            return event
        turn = self._check_turn(event)
        stored = self._format.store(event)
        handle, version = self._handle(session)
        if turn is not None:  # no other run writes meanwhile
            version = None
        shown = await self._service.append_event(handle, stored, if_version=version, turn=turn)
        if handle.events and handle.events[-1] is shown:
            framework: Any = super()
            await framework.append_event(session, event)
            session.last_update_time = event.timestamp
            self._mark(session, [event], handle)
        else:
            await self._catch_up(session, event)
        return event

    async def run(
        self, runner: Any, *, user_id: str, session_id: str, **arguments: Any
    ) -> AsyncGenerator[Any, None]:
        """The events of `runner.run_async(...)`, which takes the same arguments.

        With `serialize_turns` the run waits until it has the turn of the session, in any process,
        renews it, and releases it at the end. Without, this is `runner.run_async`. The frameworks'
        interface shows where a run begins, but not where it ends. So the runner gets a copy of the
        adapter that holds the turn.

        Raises:
            TurnLost: another run has acquired the turn, because it was not renewed in time.
        """
        async with AsyncExitStack() as stack:
            if self._serialize_turns:
                ids: Any = {"user_id": user_id, "session_id": session_id.strip()}
                key = SessionKey(runner.app_name, **ids)
                if getattr(runner, "auto_create_session", True):
                    await self._service.get_or_create_session(
                        app_name=key.app_name, event_num=0, **ids
                    )
                held = HeldTurn(self._service, key, self._lease)
                with suppress(SessionNotFound):  # the runner says so
                    runner = self._runner_in_turn(runner, await stack.enter_async_context(held))
            events = runner.run_async(user_id=user_id, session_id=session_id, **arguments)
            async for event in await stack.enter_async_context(aclosing(events)):
                yield event

    def _runner_in_turn(self, runner: Any, held: HeldTurn) -> Any:
        """A copy of the runner whose session service holds the turn."""
        runner, sessions = copy(runner), copy(self)
        runner.session_service, sessions._held = sessions, held
        return runner

    def _check_turn(self, event: Any) -> Turn | None:
        """The turn for an append; None without `serialize_turns`.

        Raises:
            InvalidArgument: a user's message begins a run that does not hold the turn.
        """
        if self._held is not None:
            return self._held.turn
        if self._serialize_turns and event.author == "user" and event.content is not None:
            raise InvalidArgument(
                "with serialize_turns=True a run holds a turn: "
                "use sessions.run(runner, ...) instead of runner.run_async(...)"
            )
        return None

    async def _catch_up(self, session: Any, event: Any) -> None:
        """Bring a Session up to date after an append of an event that was stored already.

        Others may have written after it.
        """
        delta = event.actions.state_delta
        session.state.update(
            {key: delta.pop(key) for key in list(delta) if key.startswith("temp:")}
        )
        found = await self._service.get_session(**ids_of(session))
        if found is None:  # deleted meanwhile
            return
        fresh = self._show(found)
        known = {other.id for other in session.events}
        places = [place for place, other in enumerate(fresh.events, 1) if other.id in known]
        newer = fresh.events[max(places, default=0) :]
        session.events += [event if other.id == event.id else other for other in newer]
        session.state.update(fresh.state)
        session.last_update_time = fresh.last_update_time
        self._mark(session, newer, found)

    async def _list(self, app_name: str, user_id: str | None) -> list[Any]:
        """All sessions of a user, the last updated first; None = of all users."""
        users = [user_id] if user_id is not None else await self._service.list_users(app_name)
        found: list[StoredSession] = []
        for user in users:
            found += await self._service._run(list_all(self._service._ops, app_name, user, 1))
        found.sort(key=lambda session: session.updated_at, reverse=True)
        return [self._session(session, []) for session in found]

    def _handle(self, session: Any) -> tuple[StoredSession, int | None]:
        """A Session to write through, and the version that it must have in the store."""
        created_at, version = self._marked(session)
        created_at, ids = created_at or _ANY, (session.app_name, session.user_id, session.id)
        return StoredSession(*ids, {}, [], 0, created_at, created_at), version

    @abstractmethod
    def _session(self, found: StoredSession, events: list[Any]) -> Any:
        """A Session of a stored one that has, if any, its newest event."""

    @abstractmethod
    def _show(self, found: StoredSession) -> Any:
        """A Session of a stored one that has all its events."""

    @abstractmethod
    def _mark(self, session: Any, events: list[Any], shown: StoredSession) -> None:
        """Note in a Session that it shows these new events and the state of a stored one."""

    @abstractmethod
    def _marked(self, session: Any) -> tuple[datetime | None, int | None]:
        """When the session was created that a Session shows, and the version to insist on."""

    def _fields(self, found: StoredSession) -> dict[str, Any]:
        """What the Sessions of both frameworks show of a stored one, but for its events."""
        with reading(found, "its state", self._name):
            state = self._shown_state(found)
        updated = found.updated_at.timestamp()
        if found.events:
            with reading(found, "its newest event", self._name):
                updated = self._time_of(found.events[-1])
        ids = {"id": found.id, "app_name": found.app_name, "user_id": found.user_id}
        return {**ids, "state": state, "last_update_time": updated}

    def _shown_state(self, found: StoredSession) -> dict[str, Any]:
        return from_json_state(found.state)

    def _time_of(self, stored: StoredEvent) -> float:
        content = stored.content  # of release 0.1.0 it is JSON text
        return float(
            (msgspec.json.decode(content) if isinstance(content, str) else content)["timestamp"]
        )

    def _event(self, found: StoredSession, stored: StoredEvent) -> Any:
        with reading(found, f"event {stored.id!r}", self._name):
            return self._format.restore(stored)

    def _cut(self, events: list[Any]) -> list[Any]:
        """The events to show of those that were read."""
        if not self._whole_turns:
            return events
        window = Window(starts_turn=self._starts_turn, calls=function_calls)
        return choose(window, events, is_whole_log=True, is_trimmed=True) or []

    def _starts_turn(self, event: Any) -> bool:
        """Whether an event is a user's message that does not answer a function call."""
        is_message = event.author == "user" and event.content is not None
        return is_message and not function_calls(event)[1]


@contextmanager
def reading(session: StoredSession, what: str, adapter: str) -> Iterator[None]:
    """Turn what reading a part of a stored session raises into CorruptData."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError):
        where = f"session {session.id!r} of user {session.user_id!r}: {what}"
        raise CorruptData(f"{where} was not written by {adapter}", key=where) from None


def function_calls(event: Any) -> tuple[list[str], list[str]]:
    """The ids of the function calls that an event makes, and of those that it answers."""
    opened = [call.id for call in event.get_function_calls() if call.id]
    return opened, [answer.id for answer in event.get_function_responses() if answer.id]


def ids_of(session: Any) -> dict[str, Any]:
    """The ids of a framework's Session, as arguments."""
    return {"app_name": session.app_name, "user_id": session.user_id, "session_id": session.id}
