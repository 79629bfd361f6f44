"""The stored data that the operations of the registry are called on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sessionstore import DeletedUser, Event, EventPage, Ping, Session, SessionKey, Summary, Turn
from sessionstore.keys import Keys
from sessionstore.times import to_us

from .events import LONG_AGO, make_event

if TYPE_CHECKING:
    from .operations import Operation
    from .servers import Server

KEY = SessionKey("a", "u", "s")
STATE = {"k": 1, "user:k": 2, "user:kept": 3, "app:k": 4, "app:kept": 5}
E1 = make_event("e1", state_delta={"k": 0})
E2 = make_event("e2", state_delta={"k": 1})
E0_POSITION = to_us(LONG_AGO)
E2_POSITION = E0_POSITION + 2


@dataclass(frozen=True)
class Scene:
    """A session with everything that an operation may need.

    Attributes:
        session: the caller's Session of a session with the events e0, e1 and e2 and with state in
            every tier. Only the caller's has `temp:k`. The user has another session, with an event.
        turn: the session's turn, if the operation needs one.
    """

    session: Session
    turn: Turn | None = None

    @property
    def key(self) -> SessionKey:
        return self.session.key

    @property
    def app(self) -> str:
        return self.session.app_name

    @property
    def owner(self) -> dict[str, str]:
        return {"app_name": self.session.app_name, "user_id": self.session.user_id}

    @property
    def ids(self) -> dict[str, str]:
        return {**self.owner, "session_id": self.session.id}

    @property
    def new_ids(self) -> dict[str, str]:
        """The ids of a session that does not exist."""
        return {**self.owner, "session_id": "new"}


async def set_scene(
    service: Any,
    operation: Operation | None = None,
    key: SessionKey = KEY,
    expire: Callable[[SessionKey], object] | None = None,
) -> Scene:
    """Store a scene, in an empty store or under an app of its own.

    Args:
        service: any service.
        operation: what will be called on it.
        key: the session.
        expire: deletes the keys of a session, for operations that need an expired one.
    """
    owner = {"app_name": key.app_name, "user_id": key.user_id}
    other = await service.create_session(**owner, session_id="other")
    await service.append_event(other, make_event("other"))
    session = await service.create_session(
        **owner, session_id=key.session_id, state={**STATE, "temp:k": 6}
    )
    # An append of e1 that is not recognized as a repeat sets k to 0.
    events = [make_event("e0"), E1, E2]
    await service.append_events(session, events)
    if operation and operation.needs_expired:
        assert expire is not None, f"{operation.name} needs an expired session"
        gone = await service.create_session(**owner, session_id="gone")
        expire(gone.key)
    needs_turn = operation is not None and operation.needs_turn
    return Scene(session, await service.acquire_turn(session) if needs_turn else None)


async def prepare(service: Any, server: Server, operation: Operation | None = None) -> Scene:
    """The scene of an operation, on a server that holds nothing else."""
    server.empty()

    def expire(key: SessionKey) -> None:
        server.raw.delete(Keys().session(key.app_name, key.user_id, key.session_id).session)

    return await set_scene(service, operation, expire=expire)


# -- comparing -----------------------------------------------------------------------------------


def shown(result: Any) -> Any:
    """A result without what differs between runs: times, versions, tokens, steps done before."""
    if isinstance(result, Session):
        return result.id, result.state, shown(result.events)
    if isinstance(result, Event):
        return result.id, result.content, result.state_delta
    if isinstance(result, EventPage):
        return shown(result.events)
    if isinstance(result, Summary):
        return result.content, result.upto, result.num_events
    if isinstance(result, Turn):
        return result.key
    if isinstance(result, DeletedUser):
        return result.created
    if isinstance(result, Ping):
        return result.role
    if isinstance(result, list):
        return [shown(each) for each in result]
    return result


async def stored(service: Any, key: SessionKey) -> Any:
    """All stored data of a user and of the application, comparable."""
    owner = {"app_name": key.app_name, "user_id": key.user_id}
    sessions = {}
    for session in await service.list_sessions(**owner, event_num=100):
        session_id, state, events = shown(session)
        sessions[session_id] = (state, events)
    user_state = await service.get_user_state(key.app_name, key.user_id)
    return sessions, user_state, await service.get_app_state(key.app_name)
