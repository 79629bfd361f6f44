"""Runs an agent on stored sessions: creates, loads and updates them by itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Iterator,
    Mapping,
    MutableMapping,
)
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from inspect import isawaitable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from uuid import uuid4

import msgspec

from .errors import BackendError, InvalidArgument, SessionNotFound, TurnTaken
from .keys import encode_id
from .model import Event, Session, SessionKey, Turn
from .options import Duration, check_int, check_milliseconds
from .service import InMemorySessionService, SessionService

T = TypeVar("T")

_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 0.25

_REMOVED: Any = object()  # in place of the value of a state key that was removed


class RunState(MutableMapping[str, Any]):
    """The session's state as the agent sees and changes it.

    Changes ride on the next event that the agent yields, in the same atomic write; those made
    after the last one are stored with an event of their own, without content. Setting and
    deleting keys is a change; changing a value in place is none until the value is set again.
    Keys carry their tier as in `Session.state`; those of `temp:` live as long as the run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._changes: dict[str, Any] = {}
        self._riding: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        value = self._changes[key] if key in self._changes else self._session.state[key]
        if value is _REMOVED:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise InvalidArgument(f"a state key must be a str, not {type(key).__name__}")
        self._changes[key] = value

    def __delitem__(self, key: str) -> None:
        self[key]  # a KeyError for what is not there
        self._changes[key] = _REMOVED

    def __iter__(self) -> Iterator[str]:
        keys = self._session.state | self._changes
        return iter([key for key, value in keys.items() if value is not _REMOVED])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def is_changed(self) -> bool:
        """Whether there are changes to store."""
        return any(not key.startswith("temp:") for key in self._changes)

    def onto(self, event: Event) -> Event:
        """The event with the changes made so far; what it says itself counts more."""
        delta, removed = event.state_delta, event.state_removed
        self._riding = dict(self._changes)
        if not self._riding or not isinstance(delta, dict) or not isinstance(removed, list):
            return event  # the store says what is wrong with it
        own = {*delta, *removed}
        changes = {key: value for key, value in self._riding.items() if key not in own}
        return msgspec.structs.replace(
            event,
            state_delta={k: v for k, v in changes.items() if v is not _REMOVED} | delta,
            state_removed=removed + [k for k, v in changes.items() if v is _REMOVED],
        )

    def clear_changes(self) -> None:
        """The changes that `onto` gave to an event have been stored."""
        for key, value in self._riding.items():
            if self._changes.get(key) is value:
                del self._changes[key]


class RunContext(msgspec.Struct, frozen=True):
    """What an agent is given for one run.

    Attributes:
        session: the session with merged state and the newest events, the user's message last.
        message: what the user said, as given to `Runner.run`.
        invocation_id: the id of this run; every event of it carries it, or one of its own.
        state: the state to read and change.
    """

    session: Session
    message: Any
    invocation_id: str
    state: RunState


class Agent(Protocol):
    """An agent: an object with this method, or a function that is it.

    Mostly an async generator; a coroutine function that returns an async iterator will do too.
    """

    def run(self, context: RunContext) -> AsyncIterator[Event]:
        """Events, in order; `partial=True` for fragments of a stream."""


class Run(AsyncIterator[Event]):
    """One run of an agent: iterate over it for its events.

    Attributes:
        key: the session; known at once, also when the id was left to the Runner.
        invocation_id: the id that every event of the run carries that has none of its own.
    """

    def __init__(
        self, key: SessionKey, invocation_id: str, events: AsyncGenerator[Event, None]
    ) -> None:
        self.key = key
        self.invocation_id = invocation_id
        self._events = events

    def __anext__(self) -> Awaitable[Event]:
        return self._events.__anext__()

    async def aclose(self) -> None:
        """Stop the run; what it has yielded so far is stored."""
        await self._events.aclose()


class Runner:
    """Runs one agent for many users, each conversation in its stored session.

    May be used by any number of tasks at once.

    Args:
        app_name: the application that all sessions belong to, 1 to 256 bytes of UTF-8.
        agent: an object with `async def run(context)` that yields Events, or such a function.
        session_service: where sessions are kept; never closed by the Runner. None = in memory,
            closed with the Runner.
        history_limit: newest events that the agent sees; None = all, 0 = only the message.
        serialize_turns: let only one run at a time work on a session, in any process; others
            wait. A run that loses its turn, because it could not renew it, fails with TurnLost.
        turn_lease: time after which the turn of a run that died is free, renewed while it lives;
            from 1 ms.
        store_interrupted: store what was streamed since the last complete event when a run is
            cancelled or closed, as an event with `metadata={"interrupted": True}`.

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
        encode_id("app_name", app_name)
        run = getattr(agent, "run", agent)
        if not callable(run):
            raise InvalidArgument("agent must have a method run(context), or be such a function")
        if session_service is not None and not isinstance(session_service, SessionService):
            kind = type(session_service).__name__
            raise InvalidArgument(f"session_service must be a SessionService, not {kind}")
        if history_limit is not None:
            check_int("history_limit", history_limit, low=0)
        for name, value in (
            ("serialize_turns", serialize_turns),
            ("store_interrupted", store_interrupted),
        ):
            if not isinstance(value, bool):
                raise InvalidArgument(f"{name} must be True or False")
        self._lease = timedelta(milliseconds=check_milliseconds("turn_lease", turn_lease))
        self._run_agent = run
        self._app_name = app_name
        self._is_owner = session_service is None
        self._service = InMemorySessionService() if session_service is None else session_service
        self._history_limit = history_limit
        self._serializes = serialize_turns
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
            message: what the user says: any content, or an Event. After an error the same Event
                may be given again: it is stored once. The run takes over its invocation id, or
                else its id.
            state: initial state if the session is created.

        Returns:
            The run. Its events raise InvalidArgument, SessionStoreErrors of the store, TurnLost,
            and whatever the agent raises, which is also stored, as an event with
            `metadata={"error": True}`; so is the refusal of an event that cannot be stored.

        Raises:
            InvalidArgument: message is a partial Event.
        """
        if not isinstance(message, Event):
            invocation_id = uuid4().hex
        elif message.partial:
            raise InvalidArgument("message must not be partial: partial Events are not stored")
        else:
            invocation_id = message.invocation_id or message.id
        if session_id is None or session_id == "":
            session_id = str(uuid4())
        key = SessionKey(self._app_name, user_id, session_id)
        return Run(key, invocation_id, self._events(key, invocation_id, message, state))

    async def _events(
        self, key: SessionKey, invocation_id: str, message: Any, state: Mapping[str, Any] | None
    ) -> AsyncGenerator[Event, None]:
        said = message if isinstance(message, Event) else Event("user", message)
        async with AsyncExitStack() as stack:
            session, held = await self._open(stack, key, state)
            await self._append(session, held, _of_run(said, invocation_id))
            context = RunContext(session, message, invocation_id, RunState(session))
            streamed: list[Event] = []
            storing: Event | None = None  # while the store's answer is awaited
            agent_events: AsyncIterator[Event] | None = None
            try:
                agent_events = await _start(self._run_agent, context)
                while event := await _next(agent_events, context.state):
                    if event.partial:
                        streamed.append(event)
                        yield _of_run(event, invocation_id)
                        continue
                    storing = _of_run(context.state.onto(event), invocation_id)
                    stored = await self._append(session, held, storing)
                    storing = None
                    context.state.clear_changes()
                    streamed.clear()
                    yield stored
            except (asyncio.CancelledError, GeneratorExit) as error:
                if self._stores_interrupted and (storing or streamed):
                    # What may be stored already is not stored twice: it is the same event.
                    last = storing or _interrupted(streamed, invocation_id)
                    await self._append_last(session, held, last, error)
                raise
            except Exception as error:
                # After an error of the store there is nothing to store it with.
                if storing is None or isinstance(error, InvalidArgument):
                    await self._append_last(session, held, _failed(error, invocation_id), error)
                raise
            finally:
                close = getattr(agent_events, "aclose", None)
                if close is not None:
                    await close()

    async def _open(
        self, stack: AsyncExitStack, key: SessionKey, state: Mapping[str, Any] | None
    ) -> tuple[Session, _HeldTurn | None]:
        """The session, and where runs are serialized its turn, which the stack gives back."""
        names: dict[str, Any] = {
            "app_name": key.app_name,
            "user_id": key.user_id,
            "session_id": key.session_id,
        }
        if not self._serializes:
            session = await self._service.get_or_create_session(
                **names, state=state, event_num=self._history_limit
            )
            return session, None
        session = await self._service.get_or_create_session(**names, state=state, event_num=0)
        held = await stack.enter_async_context(_HeldTurn(self._service, key, self._lease))
        found = await self._service.get_session(**names, event_num=self._history_limit)
        if found is None:
            raise SessionNotFound(f"session {key.session_id!r} was deleted before its turn")
        temp = {name: session.state[name] for name in session.state if name[:5] == "temp:"}
        found.state.update(temp)
        return found, held

    async def _append(self, session: Session, held: _HeldTurn | None, event: Event) -> Event:
        turn = held.turn if held else None
        stored = await self._service.append_event(session, event, turn=turn)
        if self._history_limit is not None:
            # The message stays, also when the agent is to see no history.
            del session.events[: -max(self._history_limit, 1)]
        return stored

    async def _append_last(
        self, session: Session, held: _HeldTurn | None, event: Event, error: BaseException
    ) -> None:
        """Append the event of a run that ends with an error, which is what the caller must see."""
        try:
            await self._append(session, held, event)
        except Exception as second:
            kind = type(second).__name__
            error.add_note(f"the last event of the run could not be stored: {kind}: {second}")

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

    def __init__(self, service: SessionService, key: SessionKey, lease: timedelta) -> None:
        self._service = service
        self._key = key
        self._lease = lease
        self._renewing: asyncio.Task[None] | None = None
        self.turn: Turn

    async def __aenter__(self) -> Self:
        delay_s = _FIRST_POLL_S
        while True:
            try:
                self.turn = await self._acquire()
                break
            except TurnTaken:
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
                delay_s = min(delay_s * 2, _LONGEST_POLL_S)
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        await _to_its_end(asyncio.create_task(self._give_back()))

    async def _acquire(self) -> Turn:
        """The turn, if it is free. One that comes after a cancellation is given back."""
        asking = asyncio.create_task(self._service.acquire_turn(self._key, lease=self._lease))
        try:
            return await _to_its_end(asking)
        except asyncio.CancelledError:
            if not asking.cancelled() and asking.exception() is None:
                await self._release(asking.result())
            raise

    async def _give_back(self) -> None:
        assert self._renewing is not None
        self._renewing.cancel()
        await asyncio.wait([self._renewing])
        await self._release(self.turn)

    async def _release(self, turn: Turn) -> None:
        with suppress(BackendError):  # its lease frees it
            await self._service.release_turn(turn)

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


async def _to_its_end(task: asyncio.Task[T]) -> T:
    """The task's result. A cancellation waits until the task is done, and does not reach it."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _start(run: Any, context: RunContext) -> AsyncIterator[Any]:
    events = run(context)
    if isawaitable(events):
        events = await events
    if not isinstance(events, AsyncIterable):
        kind = type(events).__name__
        raise InvalidArgument(f"the agent must yield Events: run(context) gave {kind}")
    return aiter(events)


async def _next(agent_events: AsyncIterator[Any], state: RunState) -> Event | None:
    """The agent's next event; behind its last one, one for what it has changed since, then None."""
    try:
        event = await anext(agent_events)
    except StopAsyncIteration:
        return Event("agent") if state.is_changed else None
    if not isinstance(event, Event):
        raise InvalidArgument(f"the agent must yield Events, not {type(event).__name__}")
    return event


def _of_run(event: Event, invocation_id: str) -> Event:
    if event.invocation_id:
        return event
    return msgspec.structs.replace(event, invocation_id=invocation_id)


def _failed(error: Exception, invocation_id: str) -> Event:
    # A message may hold what no text can, such as the surrogates of a path that is not UTF-8.
    message = str(error).encode(errors="backslashreplace").decode()
    content = {"error": {"type": type(error).__name__, "message": message}}
    return Event("agent", content, metadata={"error": True}, invocation_id=invocation_id)


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
        branch=streamed[-1].branch,
    )
