# Generated from sessionstore/runner.py by tests/support/generate_sync.py. Do not edit.
"""Runs an agent on stored sessions: creates, loads and updates them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import uuid4

from ..errors import InvalidArgument, SessionNotFound
from ..keys import encode_id
from ..model import Event, Session, SessionKey
from ..options import Duration, check_bool, check_int, check_milliseconds
from ..run_context import (
    RunContext,
    RunState,
    error_event,
    interrupted_event,
    with_invocation_id,
)
from ..windows import Window
from .compactor import Compactor
from .concurrency import (
    INTERRUPTIONS,
    AgentEvents,
    Compactions,
    FragmentWriter,
    HeldTurn,
    check_service,
    start_agent,
)
from .service import InMemorySessionService, SessionService

_GRACE_S = 5.0  # how long `close` waits for compactions


class Agent(Protocol):
    """An agent: any object with this method. A function of the same shape is an agent, too."""

    def run(self, context: RunContext, /) -> AgentEvents:
        """Events, in order; `partial=True` for fragments of a stream. Usually a generator."""


class Run(Iterator[Event]):
    """One run of an agent: iterate over it for its events.

    Attributes:
        key: the session; known before the run begins, even if the Runner made the id.
        invocation_id: the id of the run; events without an invocation id get it.
    """

    def __init__(
        self, key: SessionKey, invocation_id: str, events: Generator[Event, None, None]
    ) -> None:
        self.key = key
        self.invocation_id = invocation_id
        self._events = events

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key!r}, invocation_id={self.invocation_id!r})"

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Stop the run. What it has yielded so far is stored."""
        self._events.close()


class Runner:
    """Runs one agent for many users, each conversation in its stored session.

    May be used by any number of threads at once.

    Args:
        app_name: the application of all sessions, 1 to 256 bytes of UTF-8.
        agent: an object with a method `run(context)` that yields Events, or a function that does.
        session_service: where sessions are stored; the Runner never closes it. None = in memory,
            closed with the Runner.
        history_limit: how many of the newest events the agent sees when it starts, its message
            included. Turns are never cut; the last one is always there. None = all events, 0 or 1 =
            only the message.
        history: the window that the agent sees before the message, in place of `history_limit`.
        serialize_turns: True = one run at a time works on a session, in any process; others wait.
            The runs of one process wait in a queue, and only the first one asks the store.
            A run that cannot renew its turn in time loses it and fails with TurnLost.
        turn_lease: a timedelta or seconds, from 1 ms. The run renews the lease until it ends. After
            a crash the turn is free when the lease ends.
        store_interrupted: when a run is interrupted, store what was streamed since its last
            complete event, as one event with `metadata={"interrupted": True}`.
        compactor: summarizes the session in the background after each run that ends normally, if it
            has grown enough. It uses the same `session_service`. A failure is logged, not raised.

    Raises:
        InvalidArgument: an argument is out of range or of the wrong type.
    """

    def __init__(
        self,
        app_name: str,
        agent: Agent | Callable[[RunContext], AgentEvents],
        session_service: SessionService | None = None,
        *,
        history_limit: int | None = 100,
        history: Window | None = None,
        serialize_turns: bool = False,
        turn_lease: Duration = 30.0,
        store_interrupted: bool = False,
        compactor: Compactor | None = None,
    ) -> None:
        encode_id("app_name", app_name)
        run = getattr(agent, "run", agent)
        if not callable(run):
            raise InvalidArgument(
                "agent must have a method run(context), or be a function of the context"
            )
        if session_service is not None:
            check_service(session_service)
        if history_limit is not None:
            check_int("history_limit", history_limit, low=0)
        if history is not None and not isinstance(history, Window):
            raise InvalidArgument(f"history must be a Window, not {type(history).__name__}")
        if compactor is not None:
            if not isinstance(compactor, Compactor):
                given = type(compactor)
                raise InvalidArgument(
                    f"compactor must be a {Compactor.__module__}.Compactor, not "
                    f"{given.__module__}.{given.__qualname__}"
                )
            if compactor.session_service is not session_service:
                raise InvalidArgument("compactor must have the Runner's session_service")
        self._app_name = app_name
        self._agent_name = getattr(agent, "__qualname__", type(agent).__qualname__)
        self._run_agent: Callable[[RunContext], AgentEvents] = run
        self._owns_service = session_service is None
        self._service = InMemorySessionService() if session_service is None else session_service
        self._history: dict[str, Any] = {"window": history}
        if history is None and history_limit is not None and history_limit > 1:
            self._history = {"window": Window(max_events=history_limit - 1)}
        elif history is None:
            self._history = {"event_num": None if history_limit is None else 0}
        self._serialize_turns = check_bool("serialize_turns", serialize_turns)
        self._lease = timedelta(milliseconds=check_milliseconds("turn_lease", turn_lease))
        self._store_interrupted = check_bool("store_interrupted", store_interrupted)
        self._compactor = compactor
        self._compactions = Compactions()

    def __repr__(self) -> str:
        # The agent's own repr is not shown: it may contain credentials.
        return (
            f"{type(self).__name__}(app_name={self._app_name!r}, agent={self._agent_name}, "
            f"session_service={self._service!r})"
        )

    @property
    def session_service(self) -> SessionService:
        """Where the sessions are stored."""
        return self._service

    def run(
        self,
        user_id: str,
        session_id: str | None,
        message: Any,
        *,
        state: Mapping[str, Any] | None = None,
    ) -> Run:
        """A run in which the agent answers a message; iterate over it for its events.

        The run begins when iteration begins. Every complete event is stored before it is yielded;
        partial events are yielded at once, and are not in the log. If the service has a
        `stream_ttl`, they are kept for that time. They are stored in the background, in batches of
        40 ms, and always before the next complete event.

        Args:
            user_id: the user within the application, 1 to 256 bytes of UTF-8.
            session_id: the session, likewise, created if it does not exist; "" or None makes a new
                UUID.
            message: the user's message: any content, or an Event. After an error the same Event
                may be given again and is stored once. The run takes the Event's invocation id, or
                else its id.
            state: initial state if the session is created.

        Returns:
            The run. Iterating raises InvalidArgument, SessionStoreErrors of the store, TurnLost,
            and every exception of the agent. An exception of the agent, or an event of it that
            cannot be stored, is also recorded as an event with `metadata={"error": True}`.

        Raises:
            InvalidArgument: an id is not valid, or message is a partial Event.
        """
        encode_id("user_id", user_id)
        if session_id is None or session_id == "":
            session_id = str(uuid4())
        encode_id("session_id", session_id)
        if not isinstance(message, Event):
            invocation_id = uuid4().hex
        elif message.partial:
            raise InvalidArgument("message must not be partial: partial Events are not stored")
        else:
            invocation_id = message.invocation_id or message.id
        key = SessionKey(self._app_name, user_id, session_id)
        return Run(key, invocation_id, self._events(key, invocation_id, message, state))

    def _events(
        self, key: SessionKey, invocation_id: str, message: Any, state: Mapping[str, Any] | None
    ) -> Generator[Event, None, None]:
        user_event = message if isinstance(message, Event) else Event("user", message)
        with ExitStack() as stack:
            session, held = self._open_session(stack, key, state)
            self._append(session, held, with_invocation_id(user_event, invocation_id))
            writer = FragmentWriter(self._service, session, held)
            fragments = stack.enter_context(writer)
            context = RunContext(session, message, invocation_id, RunState(session))
            streamed: list[Event] = []
            storing: Event | None = None  # sent to the store, which has not answered yet
            agent_events: Iterator[Event] | None = None
            try:
                agent_events = start_agent(self._run_agent(context))
                while event := _next_event(agent_events, context.state):
                    if event.partial:
                        streamed.append(event)
                        fragment = with_invocation_id(event, invocation_id)
                        fragments.add(fragment)
                        yield fragment
                        continue
                    fragments.flush()
                    storing = with_invocation_id(context.state.add_changes(event), invocation_id)
                    stored = self._append(session, held, storing)
                    storing = None
                    context.state.clear_stored_changes()
                    streamed.clear()
                    yield stored
                fragments.flush()
            except INTERRUPTIONS as error:
                if self._store_interrupted and (storing or streamed):
                    fragments.stop()
                    # If the store has `storing` already, this changes nothing.
                    last = storing or interrupted_event(streamed, invocation_id)
                    self._append_last(session, held, last, error)
                raise
            except Exception as error:
                # If the store failed, it cannot store an error event either.
                if storing is None or isinstance(error, InvalidArgument):
                    self._append_last(session, held, error_event(error, invocation_id), error)
                raise
            finally:
                close = getattr(agent_events, "close", None)
                if close is not None:
                    close()
        if self._compactor is not None:
            self._compactions.start(self._compactor.compact, key)

    def _open_session(
        self, stack: ExitStack, key: SessionKey, state: Mapping[str, Any] | None
    ) -> tuple[Session, HeldTurn | None]:
        """The session and, with `serialize_turns`, its turn, which the stack releases."""
        ids: dict[str, Any] = {
            "app_name": key.app_name,
            "user_id": key.user_id,
            "session_id": key.session_id,
        }
        if not self._serialize_turns:
            session = self._service.get_or_create_session(**ids, state=state, **self._history)
            return session, None
        created = self._service.get_or_create_session(**ids, state=state, event_num=0)
        held = stack.enter_context(HeldTurn(self._service, key, self._lease))
        # Read after waiting: the run before this one has changed the session.
        found = self._service.get_session(**ids, **self._history)
        if found is None:
            raise SessionNotFound(
                f"session {key.session_id!r} was deleted while the run waited for its turn"
            )
        temp = {name: created.state[name] for name in created.state if name.startswith("temp:")}
        found.state.update(temp)
        return found, held

    def _append(self, session: Session, held: HeldTurn | None, event: Event) -> Event:
        turn = held.turn if held else None
        return self._service.append_event(session, event, turn=turn)

    def _append_last(
        self, session: Session, held: HeldTurn | None, event: Event, error: BaseException
    ) -> None:
        """Append the last event of a run that ends with an error, which the caller must see."""
        try:
            self._append(session, held, event)
        except Exception as second:
            kind = type(second).__name__
            error.add_note(f"the last event of the run could not be stored: {kind}: {second}")

    def close(self) -> None:
        """Give compactions 5 seconds to end. Close the service if the Runner made it."""
        self._compactions.close(_GRACE_S)
        if self._owns_service:
            self._service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _next_event(agent_events: Iterator[Event], state: RunState) -> Event | None:
    """The agent's next event; after its last one, an event for remaining changes; then None."""
    try:
        event: object = next(agent_events)
    except StopIteration:
        return Event("agent") if state.is_changed else None
    if not isinstance(event, Event):
        raise InvalidArgument(f"the agent must yield Events, not {type(event).__name__}")
    return event
