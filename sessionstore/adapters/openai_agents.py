"""OpenAI Agents SDK: a `Session` that is kept in sessionstore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InvalidArgument
from ..model import Event, SessionKey
from . import framework
from .flows import AnyService, Services, append, clear_events, pop_event, read_events

with framework("openai-agents", extra="openai-agents", tested=">=0.8,<0.25"):
    from agents.memory import SessionSettings

if TYPE_CHECKING:
    from agents import TResponseInputItem


class StoredSession:
    """A conversation of the OpenAI Agents SDK: `Runner.run(agent, "Hi", session=...)`.

    Satisfies the SDK's `Session` protocol. Every item is one event; the session is created by the
    first item. TTL and event limit are the service's. May be made anew for every run.

    Args:
        session_id: the conversation, 1 to 256 bytes of UTF-8.
        service: a service for asyncio, or one of `sessionstore.sync`, which runs in threads.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: likewise.
        session_settings: the SDK's settings; `limit` is the number of newest items to read.

    Raises:
        InvalidArgument: `service` is none.
    """

    def __init__(
        self,
        session_id: str,
        service: AnyService,
        *,
        app_name: str,
        user_id: str,
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.session_id = session_id
        self.session_settings: SessionSettings | None = session_settings or SessionSettings()
        self._key = SessionKey(app_name, user_id, session_id)
        self._services = Services("StoredSession", service)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._key!r})"

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The newest items, oldest first.

        Args:
            limit: most items to return; None = `session_settings.limit`, or all if that is None.

        Raises:
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        One round trip, O(items read).
        """
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        if limit is not None and limit <= 0:
            return []
        events = await self._services.arun(read_events, self._key, limit)
        return [event.content for event in events]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items; up to 500 in one atomic step.

        Args:
            items: dicts that the service's codec carries.

        Raises:
            InvalidArgument: an item cannot be stored; names the path within it. LimitExceeded if
                too large.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so.

        One round trip, O(log N) an item; the first item of a session takes three.
        """
        events = [_event(item, number) for number, item in enumerate(items)]
        await self._services.arun(append, self._key, events)

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item and return it; None if there is none.

        Raises:
            BackendError: the store did not carry it out, or (maybe_applied) did not say so.

        One round trip, O(log N).
        """
        event = await self._services.arun(pop_event, self._key)
        return event.content if event else None

    async def clear_session(self) -> None:
        """Remove all items. State that was stored with the session stays.

        Raises:
            BackendError: the store did not carry it out, or did not say so.

        One round trip, O(1).
        """
        await self._services.arun(clear_events, self._key)


def _event(item: TResponseInputItem, number: int) -> Event:
    """An item as an event. Its author is the item's role, or else its type."""
    if not isinstance(item, dict):
        raise InvalidArgument(f"items[{number}] must be a dict, not {type(item).__name__}")
    author = item.get("role") or item.get("type")
    return Event(author if isinstance(author, str) else "item", item)
