"""OpenAI Agents SDK: a `Session` that is kept in sessionstore."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .. import flows
from ..calls import Flow
from ..errors import InvalidArgument, SessionNotFound, StaleVersion
from ..model import Event, SessionKey
from ..ops import Ops
from . import framework
from .histories import HistoryAdapter, Turns, read_turns
from .json_events import dict_of, json_event, text_of
from .services import AnyService
from .session_flows import append, clear_events, pop_event

with framework("openai-agents", extra="openai-agents", tested=">=0.8,<0.25"):
    from agents.memory import SessionSettings

with suppress(ImportError):  # earlier versions compact in two steps
    from agents.memory.session import _CompactionSnapshot

if TYPE_CHECKING:
    from agents import TResponseInputItem

_SEEN_LIMIT = 1000  # events of which a compaction checks that nobody else wrote between them


class StoredSession(HistoryAdapter):
    """A conversation of the OpenAI Agents SDK: `Runner.run(agent, "Hi", session=...)`.

    Satisfies the SDK's `Session` protocol. Every item is one event.

    Args:
        session_settings: the SDK's settings, or a dict of them; `limit` is the number of newest
            items to read. The other arguments, and what all methods raise, are those of
            `HistoryAdapter`.

    Raises:
        InvalidArgument: `session_settings` is not valid.
    """

    def __init__(
        self,
        session_id: str,
        service: AnyService,
        *,
        app_name: str,
        user_id: str,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        super().__init__(session_id, service, app_name=app_name, user_id=user_id)
        self.session_settings: SessionSettings | None = _settings(session_settings)
        # The newest event at the last read of all items, and those that were added since.
        self._seen: list[str] | None = None

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The newest items, oldest first, from the start of a turn on.

        If older items were trimmed or are left out, the first item starts a turn, and no result is
        without its call and no call without its reasoning.

        Args:
            limit: most items to return; None = `session_settings.limit`, or all if that is None.
                The newest turn is returned even if it has more.

        Raises:
            CorruptData: what is stored is not an item.

        One round trip, O(items read). More if the newest turn has more items than `limit`.
        """
        sees_all = limit is None
        if limit is None:
            limit = _settings(self.session_settings).limit
        if limit is not None and limit <= 0:
            return []
        found = await self._services.arun(read_turns, self._key, limit, self._item, _TURNS)
        if sees_all:
            newest = found.session.events[-1:] if found.session else []
            self._seen = [event.id for event in newest]
        return found.shown

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items; up to 500 in one atomic step. A repeat stores nothing twice.

        Raises:
            InvalidArgument: an item cannot be stored; names the path within it. LimitExceeded if
                too large.

        One round trip, O(log N) an item; the first item of a session takes three. One more if it
        is the first call of this object and all items have ids: it looks for a repeat.
        """
        events = _events(items)
        if not events:
            return
        stored = await self._aappend(events, all(map(_has_id, items)))
        if self._seen is not None:
            self._seen = [*self._seen, *(event.id for event in stored)][-_SEEN_LIMIT:]

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item and return it; None if there is none. One round trip."""
        self._seen = None
        event = await self._services.arun(pop_event, self._key)
        return self._item(event) if event else None

    async def clear_session(self) -> None:
        """Remove all items; state that was stored with the session stays. One round trip."""
        self._seen = None
        await self._services.arun(clear_events, self._key)

    # -- what OpenAIResponsesCompactionSession looks for -------------------------------------------

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Callable[[Any], bool] | None = None
    ) -> _CompactionSnapshot | None:
        """The newest items, and a function that replaces those from one on in one atomic step.

        It returns False, and changes nothing, if anybody wrote to the session since.
        """
        if type(self) is not StoredSession or prune_prefix is not None:
            return None  # it would skip what a subclass adds
        found = await self._services.arun(read_turns, self._key, limit, self._item, _TURNS)
        session, shown = found.session, found.shown
        if session is None:
            return None
        num_unread = session.event_count - len(found.items)
        is_complete = not num_unread and len(found.items) <= limit
        places = {id(item): place for place, item in enumerate(found.items, num_unread)}

        async def replace_suffix(start: int, output: list[TResponseInputItem]) -> bool:
            if start >= len(shown):
                return False
            # Items that are not shown, because the start of their turn was trimmed, go, too.
            first_kept = places[id(shown[0])] if is_complete else 0
            end_kept, events = places[id(shown[start])], _events(output)
            self._seen = None
            try:
                await self._services.arun(
                    flows.replace_newest, self._key, session.version, first_kept, end_kept, events
                )
            except (StaleVersion, SessionNotFound):
                return False
            return True

        return _CompactionSnapshot(shown, is_complete, replace_suffix)

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        """Replace all items in one atomic step.

        Raises:
            StaleVersion: others wrote to the session since this object read all items.
        """
        if type(self) is not StoredSession:
            return False  # it would skip what a subclass adds
        events = _events(items)
        seen, self._seen = self._seen, None
        await self._services.arun(_replace_all, self._key, events, seen)
        self._seen = [event.id for event in events[-1:]]
        return True

    def _item(self, event: Event) -> Any:
        return dict_of(event, self._key, "an item of the SDK")


def _settings(settings: SessionSettings | dict[str, Any] | None) -> SessionSettings:
    if settings is None or not isinstance(settings, dict):
        return settings or SessionSettings()
    unknown = settings.keys() - {field.name for field in fields(SessionSettings)}
    if unknown:
        raise InvalidArgument(f"session_settings has unknown keys: {', '.join(sorted(unknown))}")
    try:
        return SessionSettings(**settings)
    except (TypeError, ValueError):
        raise InvalidArgument(f"session_settings {settings!r} are not valid") from None


def _events(items: list[TResponseInputItem]) -> list[Event]:
    return [_event(item, f"items[{number}]") for number, item in enumerate(items)]


def _event(item: Any, path: str) -> Event:
    """An item as an event. Its author is the item's role, or else its type."""
    if not isinstance(item, dict):
        raise InvalidArgument(f"{path} must be a dict, not {type(item).__name__}")
    return json_event(text_of(item, "role", "type") or "item", item, path)


def _replace_all(
    ops: Ops, key: SessionKey, events: list[Event], seen: list[str] | None
) -> Flow[None]:
    """Replace all events, if those that were seen are still the newest ones; None = any."""
    session = yield from flows.get_session(ops, key, None, None)
    if session is None:
        yield from append(ops, key, events)
        return
    found = [event.id for event in session.events]
    num_known = min(len(found), len(seen or ()))
    if seen is not None and found[-num_known:] != seen[-num_known:]:
        raise StaleVersion(
            f"session {key.session_id!r} was written to since its items were read; nothing was "
            "replaced",
            expected=0,
            actual=session.version,
        )
    yield from flows.replace_newest(ops, key, session.version, 0, 0, events)


# -- where a model may begin to read ---------------------------------------------------------------


def _starts_turn(item: Any) -> bool:
    """Whether a person or the application speaks, or earlier turns are compacted."""
    role, kind = item.get("role"), item.get("type")
    return role in ("user", "system", "developer") or kind in ("compaction", "compaction_summary")


def _calls(item: Any) -> tuple[list[str], list[str]]:
    """The ids of the call that an item is, and of the call whose result it is."""
    kind, call_id = str(item.get("type")), item.get("call_id")
    if kind == "mcp_approval_response":
        return [], [f"approval {item.get('approval_request_id')}"]
    if kind == "mcp_approval_request":
        return [f"approval {item.get('id')}"], []
    if call_id is None:
        return [], []
    if kind.endswith("_output"):
        return [], [str(call_id)]
    return ([str(call_id)], []) if kind.endswith("_call") or kind == "program" else ([], [])


def _rest(items: list[Any]) -> list[Any]:
    """The answers of a turn that are whole, if its start is missing.

    A call needs the reasoning before it. So the first answer that is whole begins with reasoning or
    follows a result.
    """
    follows_result = False
    for number, item in enumerate(items):
        is_result = bool(_calls(item)[1])
        if item.get("type") == "reasoning" or (follows_result and not is_result):
            return items[number:]
        follows_result = is_result
    return [item for item in items if not any(_calls(item))]


def _is_inside(item: Any) -> bool:
    """Whether a model made an item, or it is a result, so that something came before it."""
    made = item.get("type") == "reasoning" or (item.get("role") == "assistant" and _has_id(item))
    return made or any(_calls(item))


_TURNS: Turns[Any] = Turns(_starts_turn, _calls, _is_inside, _rest)


def _has_id(item: Any) -> bool:
    """Whether an item has an id of its own, or that of its call."""
    item_id = item.get("id") or item.get("call_id")
    return isinstance(item_id, str) and item_id != "__fake_id__"
