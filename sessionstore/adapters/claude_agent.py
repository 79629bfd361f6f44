"""Claude Agent SDK: a `SessionStore` that keeps transcripts in sessionstore."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from .. import flows
from ..calls import Flow
from ..errors import InvalidArgument, SessionNotFound, StaleVersion
from ..model import Event, Session, SessionKey
from ..ops import EVENTS_PER_CALL_LIMIT, Ops, ids_of
from ..windows import Window, choose
from . import framework
from .json_events import dict_of, json_event, text_of
from .services import AnyService, Services
from .session_flows import append, append_with_state, create_if_missing, list_all

with framework("claude-agent-sdk", extra="claude-agent", tested=">=0.2,<1"):
    from claude_agent_sdk import SessionStore, fold_session_summary

if TYPE_CHECKING:
    from claude_agent_sdk import (
        SessionKey as TranscriptKey,
    )
    from claude_agent_sdk import (
        SessionListSubkeysKey,
        SessionStoreEntry,
        SessionStoreListEntry,
        SessionSummaryEntry,
    )

_SUMMARY = "summary"  # the state key of a main transcript
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ATTEMPTS = 100  # appends whose session others wrote to since it was read


class ClaudeSessionStore(SessionStore):
    """Transcripts of the Claude Agent SDK on Redis or in memory, to resume them on any machine.

        store = ClaudeSessionStore(service, app_name="shop")
        options = ClaudeAgentOptions(session_store=store, resume=session_id)

    A transcript is a session, and its entries are events. The user is the `project_key`. The
    transcripts of subagents are sessions of a user of their own, `project_key/session_id`, with the
    subpath as session id; "%" and "/" within a part are escaped. TTL and event limit are those of
    the service, for each transcript. If entries were trimmed, `load` begins with a turn.

    Args:
        service: a service for asyncio, or one of `sessionstore.sync`, which runs in threads.
        app_name: 1 to 256 bytes of UTF-8.

    Raises:
        InvalidArgument: a service is not valid. Methods: part of a key is not a text of 1 to 256
            bytes, or an entry is not an object. LimitExceeded: an entry is too large.
        CorruptData: methods: what is stored is not a transcript.
        BackendError: methods: the store refused the call, or did not answer.
    """

    def __init__(self, service: AnyService, *, app_name: str) -> None:
        self._app_name = app_name
        self._services = Services("ClaudeSessionStore", service)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._services!r}, app_name={self._app_name!r})"

    async def append(self, key: TranscriptKey, entries: list[SessionStoreEntry]) -> None:
        """Append entries; up to 500 in one atomic step, with the summary of a main transcript.

        It is safe to repeat: an entry with a `uuid` is stored once, and so are the entries without
        one that are appended together with it. Batches without any `uuid` are always appended.

        Two round trips; one for a subagent. The first entry of a transcript takes one more.
        """
        where = self._key(key)
        events = _events(entries)
        if not events:
            return
        if key.get("subpath") is None:
            await self._services.arun(_append, where, key, entries, events)
        else:
            await self._services.arun(append, where, events)

    async def load(self, key: TranscriptKey) -> list[SessionStoreEntry] | None:
        """The entries of a transcript, oldest first; None if it is not stored. One round trip."""
        return await self._services.arun(_load, self._key(key))

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """Ids and times of the main transcripts. Two round trips for every 1,000."""
        return [
            {"session_id": found["session_id"], "mtime": found["mtime"]}
            for found in await self.list_session_summaries(project_key)
        ]

    async def list_session_summaries(self, project_key: str) -> list[SessionSummaryEntry]:
        """The SDK's summaries of the main transcripts. Two round trips for every 1,000."""
        user_id = _user_id(project_key)
        return await self._services.arun(list_all, self._app_name, user_id, convert=_summary)

    async def delete(self, key: TranscriptKey) -> None:
        """Delete a transcript; a main transcript with those of its subagents, which go first.

        One round trip, for a main transcript a few more. A repeat completes it after a failure.
        """
        where = self._key(key)
        if key.get("subpath") is None:
            subagents = _user_id(key["project_key"], key["session_id"])
            await self._services.arun(flows.delete_user, self._app_name, subagents)
        await self._services.arun(flows.delete_session, *ids_of(where))

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """The subpaths of a session's subagents. Two round trips for every 1,000."""
        user_id = _user_id(key["project_key"], key["session_id"])
        sessions = await self._services.arun(list_all, self._app_name, user_id)
        return [session.id for session in sessions]

    def _key(self, key: Any) -> SessionKey:
        subpath = key.get("subpath")
        if subpath is None:
            return SessionKey(self._app_name, _user_id(key["project_key"]), key["session_id"])
        user_id = _user_id(key["project_key"], key["session_id"])
        return SessionKey(self._app_name, user_id, subpath)


def _user_id(project_key: str, *session_id: str) -> str:
    """The user of main transcripts; with a session id that of its subagents."""
    parts = (project_key, *session_id)
    for part in parts:
        if not isinstance(part, str):
            raise InvalidArgument(f"part of a key must be a str, not {type(part).__name__}")
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)


# -- flows -----------------------------------------------------------------------------------------


def _append(
    ops: Ops,
    where: SessionKey,
    key: TranscriptKey,
    entries: list[SessionStoreEntry],
    events: list[Event],
) -> Flow[None]:
    """Append to a main transcript and its summary in one step."""
    for first in range(0, len(events), EVENTS_PER_CALL_LIMIT):
        last = first + EVENTS_PER_CALL_LIMIT
        for attempts_left in range(_ATTEMPTS, -1, -1):
            session = yield from flows.get_session(ops, where, 0, None)
            if session is None:
                yield from create_if_missing(ops, where)
                continue
            before = _summary(session)
            summary = fold_session_summary(before, key, entries[first:last])
            content = json_event("summary", summary["data"], "summary").content
            state = {_SUMMARY: msgspec.json.decode(content)}
            try:
                written = yield from append_with_state(ops, session, events[first:last], state)
                if written.num_duplicates and before != summary:
                    # The summary came with the last entry, which may have been stored before.
                    yield from flows.update_session_state(ops, session, state, (), session.version)
                break
            except (SessionNotFound, StaleVersion):
                if not attempts_left:
                    raise


def _load(ops: Ops, where: SessionKey) -> Flow[list[SessionStoreEntry] | None]:
    session = yield from flows.get_session(ops, where, None, None)
    if session is None or not session.events:
        return None
    entries: dict[str, Any] = {}
    for event in session.events:
        entry = dict_of(event, where, "an entry of a transcript")
        entries.setdefault(text_of(entry, "uuid") or event.id, entry)
    found = list(entries.values())
    if not _is_cut(found):
        return found
    return choose(_WINDOW, found, is_whole_log=True, is_trimmed=True)


def _summary(session: Session) -> SessionSummaryEntry | None:
    """The stored summary of a main transcript; None if nothing was appended."""
    data = session.state.get(_SUMMARY)
    if data is None:
        return None
    if isinstance(data, str):
        data = json.loads(data)
    mtime = int(session.updated_at.timestamp() * 1000)
    return {"session_id": session.id, "mtime": mtime, "data": data}


# -- entries -------------------------------------------------------------------------------------


def _events(entries: Sequence[SessionStoreEntry]) -> list[Event]:
    """Entries as events.

    The id is the entry's `uuid`. Without one it is made from the batch, if a `uuid` in there tells
    this batch from others, and is random otherwise.
    """
    events: list[Event] = []
    has_uuid = any(isinstance(entry, dict) and text_of(entry, "uuid") for entry in entries)
    stamps = (_timestamp(entry) for entry in entries)
    at = next((stamp for stamp in stamps if stamp), _EPOCH if has_uuid else datetime.now(UTC))
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            kind = type(entry).__name__
            raise InvalidArgument(f"entries[{number}] must be a dict, not {kind}")
        at = _timestamp(entry) or at
        author = text_of(entry, "type") or "entry"
        events.append(json_event(author, entry, f"entries[{number}]", timestamp=at))
    contents = msgspec.json.encode([event.content for event in events])
    batch = hashlib.blake2b(contents, digest_size=16).hexdigest() if has_uuid else uuid4().hex
    return [
        msgspec.structs.replace(event, id=text_of(entry, "uuid") or f"{batch}-{number}")
        for number, (event, entry) in enumerate(zip(events, entries, strict=True))
    ]


def _timestamp(entry: Any) -> datetime | None:
    try:
        stamp = datetime.fromisoformat(entry["timestamp"])
    except (LookupError, TypeError, ValueError):
        return None
    return stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)


# -- turns ---------------------------------------------------------------------------------------


def _is_cut(entries: list[Any]) -> bool:
    """Whether entries before the first one were trimmed: it answers an entry that is not there."""
    parent = next((entry["parentUuid"] for entry in entries if "parentUuid" in entry), None)
    return parent is not None and all(entry.get("uuid") != parent for entry in entries)


def _blocks(entry: Any, kind: str) -> Iterable[dict[str, Any]]:
    """The blocks of a message that are of one type."""
    message = entry.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and block.get("type") == kind:
            yield block


def _calls(entry: Any) -> tuple[list[str], list[str]]:
    """The ids of the tool calls that an entry makes, and of those whose results it holds."""
    opened = [str(block.get("id")) for block in _blocks(entry, "tool_use")]
    return opened, [str(block.get("tool_use_id")) for block in _blocks(entry, "tool_result")]


def _starts_turn(entry: Any) -> bool:
    """Whether an entry is a message of the user, and not the result of a tool."""
    return entry.get("type") == "user" and entry.get("isMeta") is not True and not _calls(entry)[1]


_WINDOW = Window(starts_turn=_starts_turn, calls=_calls)
