"""Reads sessions from a store and writes them into another one, whole and unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec
from msgspec.structs import replace

from ..errors import CorruptData, InvalidArgument, LimitExceeded, SessionNotFound
from ..model import SessionKey
from ..ops import Ops
from ..sync import SessionService
from ..times import to_us
from .archive import Archived, archive_events, archive_state, archive_summary, write_line
from .keyspace import owners, session_names
from .opened import counted, visible
from .threads import is_thread, with_plain_entries, wrap_entries

T = TypeVar("T")

_EVENTS_PER_PAGE = 1000
_READS = 100  # attempts, if others write to the session


class Counts(msgspec.Struct):
    """What an import or a copy did."""

    written: int = 0
    unchanged: int = 0
    replaced: int = 0
    conflicts: int = 0
    unreadable: int = 0

    def add(self, status: str) -> None:
        """Count a session of this status."""
        setattr(self, status, getattr(self, status) + 1)

    def report(self) -> str:
        """One line for people."""
        text = f"{counted(self.written, 'session')} written, {self.unchanged:,} already stored"
        if self.replaced:
            text += f", {self.replaced:,} replaced with a later version"
        if self.conflicts:
            text += f", {self.conflicts:,} differ from the stored ones"
        if self.unreadable:
            text += f", {self.unreadable:,} could not be read"
        return text


def read_store(
    service: SessionService,
    app_name: str | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    since: datetime | None = None,
    *,
    counts: Counts,
) -> Iterator[Archived]:
    """What a store holds, in the order of names: state of an application, then its users.

    What is damaged is named on stderr, counted and left out.
    """
    since_us = 0 if since is None else to_us(since)
    for app, user in owners(service, app_name, user_id):
        if session_id is None:
            with _counting_damage(f"the state of {app} / {user}", counts):
                yield from _read_state(service, app, user)
        if not user:
            continue
        names = [session_id] if session_id is not None else None
        for name in names or session_names(service, app, user, since_us):
            archived = None
            with _counting_damage(f"{app} / {user} / {name}", counts):
                archived = read_session(service, SessionKey(app, user, name))
            if archived is not None:
                yield archived


@contextmanager
def _counting_damage(what: str, counts: Counts) -> Iterator[None]:
    try:
        yield
    except CorruptData as problem:
        counts.unreadable += 1
        click.echo(visible(f"Left out {what}: {problem}"), err=True)


def _read_state(service: SessionService, app_name: str, user_id: str) -> Iterator[Archived]:
    """The state of an application or of a user, if there is any."""
    if user_id:
        state, encoded = archive_state(service.get_user_state(app_name, user_id))
        found = Archived(app_name=app_name, user_id=user_id, user_state=state)
    else:
        state, encoded = archive_state(service.get_app_state(app_name))
        found = Archived(app_name=app_name, app_state=state)
    if state or encoded:
        found.encoded_state = encoded
        yield found


def read_session(service: SessionService, key: SessionKey) -> Archived | None:
    """A snapshot of a session; None if the session does not exist.

    If others write to it during every attempt, events and state may be from different times.
    """
    ids = msgspec.structs.asdict(key)
    session = service.get_session(**ids, event_num=0)
    number = 0
    while True:
        number += 1
        if session is None:
            return None
        messages: list[msgspec.Raw] = []
        after = None
        try:
            while True:
                page = service.get_events(session, after=after, limit=_EVENTS_PER_PAGE)
                messages += archive_events(page.events, page.positions)
                if len(page.events) < _EVENTS_PER_PAGE:
                    break
                after = page.last
        except SessionNotFound:
            return None
        later = service.get_session(**ids, event_num=0)
        is_last = number >= _READS and len(messages) == session.event_count
        if (later is None or later.version != session.version) and not is_last:
            session = later  # others have written meanwhile
            continue
        own = {
            name: value
            for name, value in session.state.items()
            if not name.startswith(("user:", "app:"))
        }
        state, encoded = archive_state(with_plain_entries(service, key, own))
        return Archived(
            app_name=key.app_name,
            user_id=key.user_id,
            session_id=key.session_id,
            created_at=session.created_at,
            updated_at=session.updated_at,
            event_limit=session.event_limit,
            forked_from=session.forked_from,
            state=state,
            encoded_state=encoded,
            summary=archive_summary(session.summary),
            messages=messages,
        )


def described(archived: Archived, status: str) -> dict[str, Any]:
    """What happened to a session of the source, with a checksum of its line."""
    return {
        "app": archived.app_name,
        "user": archived.user_id,
        "session": archived.session_id,
        "status": status,
        "events": len(archived.messages),
        "sha256": hashlib.sha256(write_line(archived)).hexdigest(),
    }


def write(
    service: SessionService,
    archived: Archived,
    counts: Counts,
    *,
    replaces: bool,
    verifies: bool,
) -> str:
    """Store a line. Returns what happened to it: one of the fields of Counts.

    Args:
        service: the store.
        archived: the line.
        counts: is updated.
        replaces: a stored session that was updated before that of the line is replaced; otherwise
            it stays.
        verifies: read back what was written, and count a difference as a conflict.
    """
    if not archived.session_id:
        _with_fallback(service, lambda service: _write_tier(service, archived, replaces))
        return "written"
    key = SessionKey(archived.app_name, archived.user_id, archived.session_id)
    status = _with_fallback(
        service, lambda service: _write_session(service, key, archived, replaces)
    )
    if verifies and status == "written":
        found = read_session(service, key)
        if found is None or not _is_same(found, archived):
            click.echo(f"{key} was not stored as it is in the source.", err=True)
            status = "conflicts"
    counts.add(status)
    return status


def _with_fallback(service: SessionService, write: Callable[[SessionService], T]) -> T:
    """Write, with MessagePack if the codec of the service cannot store the values unchanged."""
    try:
        return write(service)
    except LimitExceeded:
        raise
    except InvalidArgument:
        other = copy(service)
        options = service._ops.options
        options = replace(options, codec=options.codec.with_format("msgpack"))
        other._ops = Ops(options, app_in_own_slot=service._ops.app_in_own_slot)
        return write(other)


def _write_session(
    service: SessionService, key: SessionKey, archived: Archived, replaces: bool
) -> str:
    stored, state = read_session(service, key), archived.all_state()
    if stored is not None and _is_same(stored, archived):
        if is_thread(state):  # an earlier run may have been interrupted
            service._run(wrap_entries(service._ops, key))
        return "unchanged"
    if stored is not None and not (replaces and _is_later(archived, stored)):
        return "conflicts"
    ids = msgspec.structs.asdict(key)
    if stored is not None:
        service.delete_session(**ids)
    events, positions = archived.events()
    service.restore_session(
        **ids,
        events=events,
        positions=positions,
        state=state,
        created_at=archived.created_at,
        updated_at=archived.updated_at,
        event_limit=archived.event_limit,
        forked_from=archived.forked_from,
        summary=archived.stored_summary(),
    )
    if is_thread(state):
        service._run(wrap_entries(service._ops, key))
    return "written" if stored is None else "replaced"


def _is_later(wanted: Archived, stored: Archived) -> bool:
    """Whether a session was written after the stored one, or when is not known."""
    if wanted.updated_at is None or stored.updated_at is None:
        return True
    return wanted.updated_at > stored.updated_at


def _is_same(stored: Archived, wanted: Archived) -> bool:
    """Whether two sessions are equal in all that the wanted one names."""
    stored_events, stored_positions = stored.events()
    events, positions = wanted.events()
    return (
        stored_events == events
        and (positions is None or stored_positions == positions)
        and stored.all_state() == wanted.all_state()
        and wanted.created_at in (None, stored.created_at)
        and wanted.updated_at in (None, stored.updated_at)
        and wanted.event_limit in (msgspec.UNSET, stored.event_limit)
        and wanted.forked_from in (None, stored.forked_from)
        and wanted.stored_summary() == stored.stored_summary()
    )


def _write_tier(service: SessionService, archived: Archived, replaces: bool) -> None:
    """Store state of a user or an application. Without `replaces`, keys that exist stay."""
    state, if_absent = archived.all_state(), not replaces
    if archived.user_id:
        user_id = archived.user_id
        service.update_user_state(archived.app_name, user_id, state, if_absent=if_absent)
    else:
        service.update_app_state(archived.app_name, state, if_absent=if_absent)
