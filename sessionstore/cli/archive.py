"""Sessions as JSON lines: what `export` writes and `import` reads.

    {"app_name": "shop", "app_state": {...}}
    {"app_name": "shop", "user_id": "ann", "user_state": {...}}
    {"app_name": "shop", "user_id": "ann", "session_id": "1", "created_at": ..., "state": {...},
     "messages": [{"role": "user", "position": 1700000000000000, "event": {...}}, ...]}

A value that JSON would change (bytes, a datetime, an int key) stands as Base64 of its MessagePack:
`{"encoded": "..."}` in the place of an event, and under `encoded_state` for state. A line whose
messages have no events is a recorded conversation: `sessionstore fleet --trace` reads the same.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from ..codec import Codec, decode_event, decode_value
from ..errors import InvalidArgument
from ..model import Event, Summary
from ..transform import TierOwner

_json = Codec("json", event_size_limit=2**31, value_size_limit=2**31)
_msgpack = Codec("msgpack", event_size_limit=2**31, value_size_limit=2**31)
_NOBODY = TierOwner("")  # these codecs do not use the owner of a value
_encode_line = msgspec.json.Encoder(order="sorted").encode

_BEGIN = datetime(2000, 1, 1, tzinfo=UTC)  # of recorded messages, which have no time


class ArchivedMessage(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An event of a session; or a recorded message, whose other fields are not named here."""

    role: str = ""
    name: str | None = None
    position: int | None = None
    event: msgspec.Raw = msgspec.Raw()
    encoded: str = ""


class ArchivedSummary(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A summary of the oldest events."""

    upto: int
    created_at: datetime
    num_events: int
    content: Any = None
    encoded: str = ""


class Archived(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line."""

    app_name: str
    user_id: str = ""
    session_id: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    event_limit: int | msgspec.UnsetType | None = msgspec.UNSET  # None = it keeps all events
    forked_from: str | None = None
    state: dict[str, Any] = {}
    user_state: dict[str, Any] = {}
    app_state: dict[str, Any] = {}
    encoded_state: dict[str, str] = {}
    summary: ArchivedSummary | None = None
    messages: list[msgspec.Raw] = []

    def stored_summary(self) -> Summary | None:
        """The summary of a session; None = it has none."""
        found = self.summary
        if found is None:
            return None
        content = decode_value(b64decode(found.encoded)) if found.encoded else found.content
        return Summary(content, found.upto, found.created_at, found.num_events)

    def all_state(self) -> dict[str, Any]:
        """The state of the line, whichever tier it is."""
        decoded = {key: decode_value(b64decode(value)) for key, value in self.encoded_state.items()}
        return {**self.state, **self.user_state, **self.app_state, **decoded}

    def events(self) -> tuple[list[Event], list[int] | None]:
        """The events of a session, and their positions; None = it was recorded without."""
        events, positions = [], []
        for number, data in enumerate(self.messages):
            message = msgspec.json.decode(data, type=ArchivedMessage)
            if message.encoded:
                events.append(decode_event(b64decode(message.encoded)))
            elif len(bytes(message.event)):
                events.append(decode_event(bytes(message.event)))
            else:
                events.append(self._recorded(message, data, number))
            if message.position is not None:
                positions.append(message.position)
        return events, positions if len(positions) == len(events) else None

    def _recorded(self, message: ArchivedMessage, data: msgspec.Raw, number: int) -> Event:
        seed = "\0".join((self.app_name, self.user_id, self.session_id, str(number)))
        return Event(
            message.name or message.role or "assistant",
            msgspec.json.decode(data),
            id=hashlib.blake2b(seed.encode(), digest_size=16).hexdigest(),
            timestamp=_BEGIN + timedelta(seconds=number),
        )


def read_line(line: bytes) -> Archived:
    """A line. Raises msgspec.DecodeError or ValueError if it is not valid."""
    archived = msgspec.json.decode(line, type=Archived)
    if archived.messages and not (archived.user_id and archived.session_id):
        raise ValueError("messages need a `user_id` and a `session_id`")
    return archived


def write_line(archived: Archived) -> bytes:
    """A line without its end. Equal content gives equal bytes."""
    return _encode_line(archived)


def archive_events(events: Iterable[Event], positions: Iterable[int]) -> list[msgspec.Raw]:
    """Events as messages of a line."""
    return [
        msgspec.Raw(_encode_line(_message(event, position)))
        for event, position in zip(events, positions, strict=True)
    ]


def _message(event: Event, position: int) -> ArchivedMessage:
    role = "user" if event.author == "user" else "assistant"
    message = ArchivedMessage(role=role, position=position)
    try:
        data, _ = _json.encode_event(event, "event", _NOBODY)
        message.event = msgspec.Raw(data)
    except InvalidArgument:
        data, _ = _msgpack.encode_event(event, "event", _NOBODY)
        message.encoded = b64encode(data).decode()
    return message


def archive_summary(summary: Summary | None) -> ArchivedSummary | None:
    """A summary as JSON."""
    if summary is None:
        return None
    plain, encoded = archive_state({"": summary.content})
    return ArchivedSummary(
        upto=summary.upto,
        created_at=summary.created_at,
        num_events=summary.num_events,
        content=plain.get(""),
        encoded=encoded.get("", ""),
    )


def archive_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """State as JSON, and what JSON would change, encoded."""
    plain, encoded = {}, {}
    for key, value in state.items():
        with suppress(InvalidArgument):  # JSON would change the value
            if not isinstance(value, bytes):
                plain[key] = _json.encode_value(value, key, _NOBODY, key)[1]
                continue
        encoded[key] = b64encode(_msgpack.encode_value(value, key, _NOBODY, key)[0]).decode()
    return plain, encoded
