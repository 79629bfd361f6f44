"""Claude Agent SDK: a `SessionStore` that keeps transcripts in sessionstore."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from .. import flows
from ..calls import Flow
from ..errors import CorruptData, InvalidArgument, SessionNotFound, StaleVersion
from ..model import Event, JsonEvent, Session, SessionKey
from ..ops import EVENTS_PER_CALL_LIMIT, Ops
from ..windows import Window, choose
from . import framework
from .flows import AnyService, Services, append, append_with_state, create_if_missing, list_all

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
            await self._services.arun(self._append, where, key, entries, events)
        else:
            await self._services.arun(append, where, events)

    async def load(self, key: TranscriptKey) -> list[SessionStoreEntry] | None:
        """The entries of a transcript, oldest first; None if it is not stored. One round trip."""
        return await self._services.arun(self._load, self._key(key))

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """Ids and times of the main transcripts. Two round trips for every 1,000."""
        sessions = await self._services.arun(
            list_all, self._app_name, _escaped(project_key, "project_key")
        )
        return [
            {"session_id": session.id, "mtime": _mtime(session)}
            for session in sessions
            if _SUMMARY in session.state
        ]

    async def list_session_summaries(self, project_key: str) -> list[SessionSummaryEntry]:
        """The SDK's summaries of the main transcripts. Two round trips for every 1,000."""
        sessions = await self._services.arun(
            list_all, self._app_name, _escaped(project_key, "project_key")
        )
        found = (_summary(session) for session in sessions)
        return [summary for summary in found if summary is not None]

    async def delete(self, key: TranscriptKey) -> None:
        """Delete a transcript; a main transcript with those of its subagents, which go first.

        One round trip, for a main transcript a few more. A repeat completes it after a failure.
        """
        where = self._key(key)
        if key.get("subpath") is None:
            await self._services.arun(flows.delete_user, self._app_name, _subagents(key))
        await self._services.arun(
            flows.delete_session, where.app_name, where.user_id, where.session_id
        )

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """The subpaths of a session's subagents. Two round trips for every 1,000."""
        sessions = await self._services.arun(list_all, self._app_name, _subagents(key))
        return [session.id for session in sessions]

    # -- flows -----------------------------------------------------------------------------------

    def _key(self, key: Any) -> SessionKey:
        subpath = key.get("subpath")
        if subpath is None:
            user_id = _escaped(key["project_key"], "project_key")
            return SessionKey(self._app_name, user_id, key["session_id"])
        return SessionKey(self._app_name, _subagents(key), subpath)

    def _append(
        self,
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
                state = {_SUMMARY: _json_values(summary["data"])}
                try:
                    written = yield from append_with_state(ops, session, events[first:last], state)
                    if written.num_duplicates and before != summary:
                        # The summary came with the last entry, which may have been stored before.
                        yield from flows.update_session_state(
                            ops, session, state, (), session.version
                        )
                    break
                except (SessionNotFound, StaleVersion):
                    if not attempts_left:
                        raise

    def _load(self, ops: Ops, where: SessionKey) -> Flow[list[SessionStoreEntry] | None]:
        session = yield from flows.get_session(ops, where, None, None)
        if session is None or not session.events:
            return None
        entries: dict[str, Any] = {}
        for event in session.events:
            entry = _entry(event, where)
            entries.setdefault(_text(entry, "uuid") or event.id, entry)
        found = list(entries.values())
        if not _is_cut(found):
            return found
        return choose(_WINDOW, found, is_whole_log=True, is_trimmed=True)


# -- keys ----------------------------------------------------------------------------------------


def _escaped(part: str, name: str) -> str:
    if not isinstance(part, str):
        raise InvalidArgument(f"{name} must be a str, not {type(part).__name__}")
    return part.replace("%", "%25").replace("/", "%2F")


def _subagents(key: Any) -> str:
    """The user id of a session's subagents."""
    parts = [_escaped(key[name], name) for name in ("project_key", "session_id")]
    return "/".join(parts)


# -- summaries -----------------------------------------------------------------------------------


def _mtime(session: Session) -> int:
    return int(session.updated_at.timestamp() * 1000)


def _summary(session: Session) -> SessionSummaryEntry | None:
    """The stored summary of a main transcript; None if nothing was appended."""
    data = session.state.get(_SUMMARY)
    if data is None:
        return None
    if isinstance(data, str):
        data = json.loads(data)
    return {"session_id": session.id, "mtime": _mtime(session), "data": data}


# -- entries -------------------------------------------------------------------------------------


def _json_values(value: Any) -> Any:
    """A value that is stored as JSON; what strict JSON cannot carry, as JSON text of Python.

    Transcripts may hold halves of surrogate pairs, where a tool's output was cut.
    """
    with suppress(ValueError, TypeError, OverflowError):
        if msgspec.json.decode(msgspec.json.encode(value)) == value:
            return value
    return json.dumps(value)


def _events(entries: Sequence[SessionStoreEntry]) -> list[Event]:
    """Entries as events.

    The id is the entry's `uuid`. Without one it is made from the batch, if a `uuid` in there tells
    this batch from others, and is random otherwise.
    """
    contents = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            kind = type(entry).__name__
            raise InvalidArgument(f"entries[{number}] must be a dict, not {kind}")
        try:
            contents.append(_json_values(entry))
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidArgument(f"entries[{number}] is not JSON ({error})") from None
    is_known = any(_text(entry, "uuid") for entry in entries)
    batch = hashlib.blake2b(msgspec.json.encode(contents), digest_size=16).hexdigest()
    name = batch if is_known else uuid4().hex
    stamps = [_timestamp(entry) for entry in entries]
    at = next((stamp for stamp in stamps if stamp), _EPOCH if is_known else datetime.now(UTC))
    events: list[Event] = []
    for number, (entry, content, stamp) in enumerate(zip(entries, contents, stamps, strict=True)):
        at = stamp or at
        event_id = _text(entry, "uuid") or f"{name}-{number}"
        author = _text(entry, "type") or "entry"
        events.append(JsonEvent(author, content, id=event_id, timestamp=at))
    return events


def _text(entry: Any, name: str) -> str | None:
    """A field of an entry that is a valid text and not empty."""
    value = entry.get(name)
    return value if isinstance(value, str) and value and value.isprintable() else None


def _timestamp(entry: Any) -> datetime | None:
    try:
        stamp = datetime.fromisoformat(entry["timestamp"])
    except (LookupError, TypeError, ValueError):
        return None
    return stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)


def _entry(event: Event, where: SessionKey) -> dict[str, Any]:
    entry = event.content
    if isinstance(entry, str):
        with suppress(ValueError):
            entry = json.loads(entry)
    if not isinstance(entry, dict):
        name = f"event {event.id!r} of session {where.session_id!r}"
        raise CorruptData(f"{name} is not an entry of a transcript", key=name)
    return entry


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


def _starts_turn(entry: Any) -> bool:
    """Whether an entry is a message of the user, and not the result of a tool."""
    if entry.get("type") != "user" or entry.get("isMeta") is True:
        return False
    return not any(True for _ in _blocks(entry, "tool_result"))


def _calls(entry: Any) -> tuple[Iterable[str], Iterable[str]]:
    """The ids of the tool calls that an entry makes, and of those whose results it holds."""
    opened = [block.get("id", "") for block in _blocks(entry, "tool_use")]
    closed = [block.get("tool_use_id", "") for block in _blocks(entry, "tool_result")]
    return opened, closed


_WINDOW = Window(starts_turn=_starts_turn, calls=_calls)
