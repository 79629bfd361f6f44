"""Runs an agent on stored sessions: creates, loads and updates them by itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, MutableMapping
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import uuid4

import msgspec

from .errors import BackendError, InvalidArgument, SessionNotFound, TurnTaken
from .model import Event, Session, SessionKey, Turn
from .options import Duration, check_int, check_seconds
from .service import InMemorySessionService, SessionService
from .times import utc_now

_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 0.25


class RunState(MutableMapping[str, Any]):
    """The session's state as the agent sees and changes it.

    Changes ride on the next event that the agent yields, in the same atomic write. Keys carry
    their tier as in `Session.state`; those of `temp:` live as long as the run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._set: dict[str, Any] = {}
        self._removed: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key in self._removed:
            raise KeyError(key)
        return self._set[key] if key in self._set else self._session.state[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._removed.discard(key)
        self._set[key] = value

    def __delitem__(self, key: str) -> None:
        self[key]  # a KeyError for what is not there
        self._set.pop(key, None)
        self._removed.add(key)

    def __iter__(self) -> Iterator[str]:
        return iter(({*self._session.state, *self._set}) - self._removed)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def onto(self, event: Event) -> Event:
        """The event with the changes made so far; what it says itself counts more."""
        if not self._set and not self._removed:
            return event
        delta = {**self._set, **event.state_delta}
        for key in event.state_removed:
            delta.pop(key, None)
        removed = list(dict.fromkeys([*event.state_removed, *sorted(self._removed)]))
        removed = [key for key in removed if key not in event.state_delta]
        return msgspec.structs.replace(event, state_delta=delta, state_removed=removed)

    def clear_changes(self) -> None:
        """The changes have been stored."""
        self._set.clear()
        self._removed.clear()


class RunContext(msgspec.Struct, frozen=True):
    """What an agent is given for one run.

    Attributes:
        session: the session with merged state and the newest events, the user's message last.
        message: what the user said, as given to `Runner.run`.
        invocation_id: the id of this run; every event of it carries it.
        state: the state to read and change.
    """

    session: Session
    message: Any
    invocation_id: str
    state: RunState


class Agent(Protocol):
    """An agent: an object with this method, or an async generator function that is it."""

    def run(self, context: RunContext) -> AsyncIterator[Event]:
        """Events, in order; `partial=True` for fragments of a stream."""


class Run(AsyncIterator[Event]):
    """One run of an agent: iterate over it for its events.

    Attributes:
        key: the session; known at once, also when the id was left to the Runner.
        invocation_id: the id that every event of the run carries.
    """

    def __init__(
        self, key: SessionKey, invocation_id: str, events: AsyncGenerator[Event, None]
    ) -> None:
        self.key = key
        self.invocation_id = invocation_id
        self._events = events

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Stop the run; what it has yielded so far is stored."""
        await self._events.aclose()


class Runner:
    """Runs one agent for many users, each conversation in its stored session.

    May be used by any number of tasks at once.

    Args:
        app_name: the application that all sessions belong to.
        agent: an object with `async def run(context)` that yields Events, or such a function.
        session_service: where sessions are kept; never closed by the Runner. None = in memory,
            closed with the Runner.
        history_limit: newest events that the agent sees; None = all, 0 = only the message.
        serialize_turns: let only one run at a time work on a session, in any process; others
            wait. A run that loses its turn, because it could not renew it, fails with TurnLost.
        turn_lease: time after which the turn of a run that died is free, renewed while it lives.
        store_interrupted: store what was streamed when a run is cancelled, as an event with
            `metadata={"interrupted": True}`.

    Raises:
        InvalidArgument: an argument is out of range or of the wrong type.
    """

    def __init__(
        self,
        app_name: str,
        agent: Any,
        session_service: SessionService | None = None,
        *,
        history_limit: int | None = 100,
        serialize_turns: bool = False,
        turn_lease: Duration = 30.0,
        store_interrupted: bool = False,
    ) -> None:
        run = getattr(agent, "run", agent)
        if not callable(run):
            raise InvalidArgument("agent must have a method run(context), or be such a function")
        if session_service is not None and not isinstance(session_service, SessionService):
            kind = type(session_service).__name__
            raise InvalidArgument(f"session_service must be a SessionService, not {kind}")
        if history_limit is not None:
            check_int("history_limit", history_limit, low=0)
        self._run_agent = run
        self._app_name = app_name
        self._is_owner = session_service is None
        self._service = session_service or InMemorySessionService()
        self._history_limit = history_limit
        self._serializes = serialize_turns
        self._lease_s = check_seconds("turn_lease", turn_lease)
        self._stores_interrupted = store_interrupted

    @property
    def session_service(self) -> SessionService:
        """Where the sessions are kept."""
        return self._service

    def run(
        self,
        user_id: str,
        session_id: str | None,
        message: Any,
        *,
        state: Mapping[str, Any] | None = None,
    ) -> Run:
        """Let the agent answer a message; iterate over the result for its events.

        Every complete event is stored before it is handed on; partial ones are handed on at once.

        Args:
            user_id: the user within the application.
            session_id: the session, created if there is none; "" or None makes a new one.
            message: what the user says: any content, or an Event.
            state: initial state if the session is created.

        Returns:
            The run. Its events raise InvalidArgument, SessionStoreErrors of the store, TurnLost,
            and whatever the agent raises, which is also stored, as an event with
            `metadata={"error": True}`.
        """
        key = SessionKey(self._app_name, user_id, session_id or str(uuid4()))
        invocation_id = uuid4().hex
        return Run(key, invocation_id, self._events(key, invocation_id, message, state))

    async def _events(
        self, key: SessionKey, invocation_id: str, message: Any, state: Mapping[str, Any] | None
    ) -> AsyncGenerator[Event, None]:
        names: dict[str, Any] = {
            "app_name": key.app_name,
            "user_id": key.user_id,
            "session_id": key.session_id,
        }
        session = await self._service.get_or_create_session(
            **names, state=state, event_num=0 if self._serializes else self._history_limit
        )
        if not self._serializes:
            async with aclosing(self._answer(session, None, invocation_id, message)) as events:
                async for event in events:
                    yield event
            return
        async with _HeldTurn(self._service, key, self._lease_s) as held:
            found = await self._service.get_session(**names, event_num=self._history_limit)
            if found is None:
                raise SessionNotFound(f"session {key.session_id!r} was deleted before its turn")
            async with aclosing(self._answer(found, held, invocation_id, message)) as events:
                async for event in events:
                    yield event

    async def _answer(
        self, session: Session, held: _HeldTurn | None, invocation_id: str, message: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of a run on a session whose turn, if any, is held."""
        said = message if isinstance(message, Event) else Event("user", message)
        await self._append(session, held, _of_run(said, invocation_id))
        state = RunState(session)
        context = RunContext(session, message, invocation_id, state)
        streamed: list[Event] = []
        agent_events = self._run_agent(context)
        try:
            async for event in agent_events:
                if not isinstance(event, Event):
                    kind = type(event).__name__
                    raise InvalidArgument(f"the agent must yield Events, not {kind}")  # noqa: TRY301
                if event.partial:
                    streamed.append(event)
                    yield _of_run(event, invocation_id)
                    continue
                event = _of_run(state.onto(event), invocation_id)
                stored = await self._append(session, held, event)
                state.clear_changes()
                streamed.clear()
                yield stored
        except (asyncio.CancelledError, GeneratorExit):
            if self._stores_interrupted and streamed:
                await self._append(session, held, _interrupted(streamed, invocation_id))
            raise
        except Exception as error:
            await self._store_error(session, held, invocation_id, error)
            raise
        finally:
            close = getattr(agent_events, "aclose", None)
            if close is not None:
                await close()

    async def _append(self, session: Session, held: _HeldTurn | None, event: Event) -> Event:
        turn = held.turn if held else None
        stored = await self._service.append_event(session, event, turn=turn)
        if self._history_limit is not None:
            # The message stays, also when the agent is to see no history.
            del session.events[: -max(self._history_limit, 1)]
        return stored

    async def _store_error(
        self, session: Session, held: _HeldTurn | None, invocation_id: str, error: Exception
    ) -> None:
        content = {"error": {"type": type(error).__name__, "message": str(error)}}
        event = Event("agent", content, metadata={"error": True}, invocation_id=invocation_id)
        try:
            await self._append(session, held, event)
        except Exception as second:  # the agent's own error is what the caller must see
            error.add_note(f"storing this error failed too: {type(second).__name__}: {second}")

    async def aclose(self) -> None:
        """Close the service if it is the Runner's own."""
        if self._is_owner:
            await self._service.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class _HeldTurn:
    """Waits for a session's turn, renews it in the background, gives it back."""

    def __init__(self, service: SessionService, key: SessionKey, lease_s: float) -> None:
        self._service = service
        self._key = key
        self._lease = timedelta(seconds=lease_s)
        self._renewing: asyncio.Task[None] | None = None
        self.turn: Turn

    async def __aenter__(self) -> Self:
        delay_s = _FIRST_POLL_S
        while True:
            try:
                self.turn = await self._service.acquire_turn(self._key, lease=self._lease)
                break
            except TurnTaken as taken:
                left_s = _seconds_until(taken.expires_at)
                await asyncio.sleep(max(min(delay_s * random.uniform(0.5, 1.5), left_s), 0.001))
                delay_s = min(delay_s * 2, _LONGEST_POLL_S)
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._renewing is not None
        self._renewing.cancel()
        await asyncio.wait([self._renewing])
        with suppress(BackendError):  # its lease frees it
            await self._service.release_turn(self.turn)

    async def _renew(self) -> None:
        """Renew until lost or cancelled. What was lost shows at the next append."""
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            try:
                self.turn = await self._service.renew_turn(self.turn, lease=self._lease)
            except BackendError:
                continue
            except Exception:  # lost, or the session is gone
                return


def _seconds_until(instant: datetime) -> float:
    return (instant - utc_now()).total_seconds()


def _of_run(event: Event, invocation_id: str) -> Event:
    if event.invocation_id:
        return event
    return msgspec.structs.replace(event, invocation_id=invocation_id)


def _interrupted(streamed: list[Event], invocation_id: str) -> Event:
    """One event of what was streamed: its text joined, or its fragments as a list."""
    fragments = [event.content for event in streamed]
    is_text = all(isinstance(fragment, str) for fragment in fragments)
    content: Any = "".join(fragments) if is_text else fragments
    return Event(
        streamed[-1].author,
        content,
        metadata={"interrupted": True},
        invocation_id=invocation_id,
    )
