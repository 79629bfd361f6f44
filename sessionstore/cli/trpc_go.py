"""Reads the sessions of trpc-agent-go from Redis, for `import --from trpc-go`.

It has two layouts, and one database may hold both. "zset", of releases before 1.7.0, has a hash of
all sessions of a user, and a sorted set of events for each. "hashidx" has a JSON text for each
session, a hash of its events, and a sorted set of their ids. A session that is in both is taken
from "zset", as trpc-agent-go does.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import click

from ..keys import escape_glob
from ..model import Event
from ..sync import SessionService
from ..times import from_us
from .archive import Archived, ArchivedSummary, archive_events, archive_state
from .keyspace import ask, scan_keys

_PER_READ = 1000
_OWN = "trpc:"  # in front of state keys that hold what has no place of its own
_TIERS = ("app:", "user:", "temp:")

_time = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)").fullmatch

# Fields of their event that have a field in our Event. All others go into its metadata.
_MAPPED = {"author", "id", "timestamp", "invocationId", "branch", "choices"}


def read_trpc_go(service: SessionService, key_prefix: str) -> Iterator[Archived]:
    """The state of applications and users, and all sessions. Events without a session stay."""
    source = _Source(service, f"{key_prefix}:" if key_prefix else "")
    for app_name, state in source.app_states():
        plain, encoded = archive_state({f"app:{key}": value for key, value in state.items()})
        yield Archived(app_name=app_name, app_state=plain, encoded_state=encoded)
    for (app_name, user_id), state in source.user_states().items():
        plain, encoded = archive_state({f"user:{key}": value for key, value in state.items()})
        yield Archived(app_name=app_name, user_id=user_id, user_state=plain, encoded_state=encoded)
    yield from source.sessions()


class _Source:
    def __init__(self, service: SessionService, prefix: str) -> None:
        self._service = service
        self._prefix = prefix

    def app_states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for key in self._keys("appstate:{"):
            yield key[len("appstate:{") : -1], self._hash(key)

    def user_states(self) -> dict[tuple[str, str], dict[str, Any]]:
        found = {}
        for key in self._keys("userstate:{"):
            found[_app_and_rest(key)] = self._hash(key)
        for key in self._keys("hashidx:userstate:"):
            app_name, _, rest = key.removeprefix("hashidx:userstate:").rpartition(":{")
            found[app_name, rest[:-1]] = self._hash(key)
        return found

    def sessions(self) -> Iterator[Archived]:
        seen = set()
        for key in self._keys("sess:{"):
            app_name, user_id = _app_and_rest(key)
            summaries = self._fields(f"sesssum:{{{app_name}}}:{user_id}")
            for name, data in self._fields(key).items():
                seen.add((app_name, user_id, name))
                place = f"{{{app_name}}}:{user_id}:{name}"
                events = self._ask("ZRANGE", f"event:{place}", "0", "-1")
                tracks = {
                    track: self._ask("ZRANGE", track_key, "0", "-1")
                    for track, track_key in self._tracks(f"track:{place}:")
                }
                yield _session(
                    (app_name, user_id, name),
                    json.loads(data),
                    _valid_events(name, events),
                    json.loads(summaries.get(name, "{}")),
                    tracks,
                )
        for key in self._keys("hashidx:meta:"):
            meta = json.loads(self._ask("GET", key) or "null")
            if meta is None:
                continue
            ids = meta["appName"], meta["userID"], meta["id"]
            if ids not in seen:
                yield self._indexed_session(ids, meta)

    def _indexed_session(self, ids: tuple[str, str, str], meta: dict[str, Any]) -> Archived:
        place = f"{ids[0]}:{{{ids[1]}}}:{ids[2]}"
        names = self._ask("ZRANGE", f"hashidx:evtidx:time:{place}", "0", "-1")
        events = self._values(f"hashidx:evtdata:{place}", names)
        tracks = {}
        for track, key in self._tracks(f"hashidx:trkidx:time:{place}:"):
            numbers = sorted(self._ask("ZRANGE", key, "0", "-1"), key=int)
            tracks[track] = self._values(f"hashidx:trkdata:{place}:{track}", numbers)
        summaries = json.loads(self._ask("GET", f"hashidx:sesssum:{place}") or "{}")
        return _session(ids, meta, _valid_events(ids[2], events), summaries, tracks)

    def _tracks(self, head: str) -> Iterator[tuple[str, str]]:
        """The names of a session's tracks, and their keys."""
        keys = self._track_keys
        first = bisect_left(keys, head)
        for number in range(first, len(keys)):
            if not keys[number].startswith(head):
                return
            yield keys[number].removeprefix(head), keys[number]

    @cached_property
    def _track_keys(self) -> list[str]:
        """The keys of all tracks, in order. One scan for all sessions."""
        return sorted([*self._keys("track:{"), *self._keys("hashidx:trkidx:time:")])

    def _keys(self, head: str) -> list[str]:
        """The keys that begin with a text, without the prefix of all keys."""
        start = self._prefix + head
        names = {key.decode() for key in scan_keys(self._service, f"{escape_glob(start)}*")}
        return sorted(name.removeprefix(self._prefix) for name in names)

    def _ask(self, name: str, key: str, *rest: str | bytes) -> Any:
        spelled = (self._prefix + key).encode()
        return ask(self._service, (name, spelled, *rest))[0]

    def _fields(self, key: str) -> dict[str, bytes]:
        found = self._ask("HGETALL", key)
        pairs = (
            found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        )
        return {field.decode(): value for field, value in pairs}

    def _hash(self, key: str) -> dict[str, Any]:
        return {field: _value(value) for field, value in self._fields(key).items()}

    def _values(self, key: str, names: list[bytes]) -> list[bytes]:
        """Values of a hash, without missing ones. In slices, as there may be many."""
        found: list[bytes] = []
        for first in range(0, len(names), _PER_READ):
            values = self._ask("HMGET", key, *names[first : first + _PER_READ])
            found += [value for value in values if value is not None]
        return found


def _valid_events(session_id: str, stored: Iterable[bytes]) -> list[dict[str, Any]]:
    """Events of JSON, without those that are not valid, which trpc-agent-go skips too."""
    events = []
    for data in stored:
        try:
            events.append(json.loads(data))
        except ValueError:
            click.echo(f"Skipped an event of session {session_id!r} that is not JSON.", err=True)
    return events


def _session(
    ids: tuple[str, str, str],
    meta: dict[str, Any],
    stored: list[dict[str, Any]],
    summaries: dict[str, Any],
    tracks: dict[str, list[bytes]],
) -> Archived:
    # By the time in the JSON: the score has lost digits. Events of the same time keep their order.
    stored.sort(key=lambda event: _nanoseconds(event["timestamp"]))
    events = [_event(event) for event in stored]
    positions: list[int] = []
    for event in events:
        at = round(event.timestamp.timestamp() * 1_000_000)
        positions.append(max(at, positions[-1] + 1 if positions else 1))
    state: dict[str, Any] = {}
    for key, value in (meta.get("state") or {}).items():
        name = _OWN + key if key.startswith(_TIERS) else key
        state[name] = None if value is None else _value(b64decode(value))
    if tracks:
        state[_OWN + "tracks"] = {
            name: [json.loads(entry) for entry in tracks[name]] for name in sorted(tracks)
        }
    if summaries:
        state[_OWN + "summaries"] = summaries
    if meta.get("generation"):
        state[_OWN + "generation"] = meta["generation"]
    plain, encoded = archive_state(state)
    created = _moment(meta["createdAt"])
    updated = max([_moment(meta["updatedAt"]), created, *(event.timestamp for event in events)])
    return Archived(
        app_name=ids[0],
        user_id=ids[1],
        session_id=ids[2],
        created_at=created,
        updated_at=updated,
        state=plain,
        encoded_state=encoded,
        summary=_summary(summaries.get("") or {}, events, positions),
        messages=archive_events(events, positions),
    )


def _summary(
    found: dict[str, Any], events: list[Event], positions: list[int]
) -> ArchivedSummary | None:
    """The summary of the whole session; None if it covers no stored event."""
    boundary = found.get("boundary") or {}
    last_id = boundary.get("last_event_id")
    until = _moment(boundary.get("cutoff_at") or found.get("updated_at") or "")
    covered = [
        number
        for number, event in enumerate(events)
        if event.id == last_id or event.timestamp <= until
    ]
    if not found.get("summary") or not covered:
        return None
    return ArchivedSummary(
        content=found["summary"],
        upto=positions[covered[-1]],
        created_at=_moment(found["updated_at"]),
        num_events=covered[-1] + 1,
    )


def _event(found: dict[str, Any]) -> Event:
    choices = found.get("choices") or []
    for choice in choices:
        for side in ("message", "delta"):
            _decode_arguments((choice.get(side) or {}).get("tool_calls") or [])
    rest = {key: value for key, value in found.items() if key not in _MAPPED}
    return Event(
        found.get("author") or "unknown",
        {"choices": choices},
        id=found["id"],
        timestamp=_moment(found["timestamp"]),
        invocation_id=found.get("invocationId", ""),
        branch=found.get("branch", ""),
        metadata={"trpc": {**rest, "timestamp": found["timestamp"]}},
    )


def _decode_arguments(calls: Iterable[dict[str, Any]]) -> None:
    """Arguments are Base64 in old events, which have the name of the function first."""
    for call in calls:
        function = call.get("function") or {}
        if list(function)[:2] == ["name", "arguments"]:
            function["arguments"] = b64decode(function["arguments"]).decode()


def _value(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _nanoseconds(text: str) -> int:
    """A time with up to nine digits after the second; 0 for none, and for the year 1."""
    found = _time(text)
    if found is None or text.startswith("0001"):
        return 0
    moment = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00"))
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    return seconds * 10**9 + int((found[2] or "").ljust(9, "0"))


def _moment(text: str) -> datetime:
    return from_us(_nanoseconds(text) // 1000)


def _app_and_rest(key: str) -> tuple[str, str]:
    app_name, _, rest = key.partition("{")[2].partition("}:")
    return app_name, rest
