"""The commands `rekey` and `new-key`: encrypt what is stored with the first key; make a key."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from copy import copy
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import click
import msgspec
from msgspec.structs import asdict, replace

from ..adapters.checkpoints import LAYOUT, LAYOUT_VALUE, change_entries, is_of_entries
from ..calls import Call, Command, Flow, OtherDataKey, describe
from ..codec import corrupt
from ..data_keys import KeyedExecutor
from ..drive import drive
from ..encryption import check_key_name
from ..errors import CorruptData, InvalidArgument
from ..flows.data_keys import keyed
from ..model import SessionKey
from ..ops import Ops, ids_of
from ..replies import hash_items, members_with_scores
from ..sync import SessionService
from ..transform import Kind, Owner, TierOwner
from .keyspace import ask_each, places, scan
from .opened import counted, print_json, store_options
from .progress import watched

_EVENTS_PER_CALL = 500
_SESSIONS_PER_READ = 1000
_BYTES_PER_CALL = 1 << 20

Row = TypeVar("Row", bound=tuple[Any, bytes, bytes])


class Counts(msgspec.Struct):
    """What a run of `rekey` did."""

    users: int = 0
    sessions: int = 0
    changed: int = 0
    current: int = 0
    unreadable: int = 0

    def note_unreadable(self, error: CorruptData) -> None:
        """Print and count what cannot be read."""
        click.echo(f"{error}.", err=True)
        self.unreadable += 1

    def report(self) -> str:
        """One line for people."""
        return (
            f"{counted(self.sessions, 'session')} of {counted(self.users, 'user')}: "
            f"{counted(self.changed, 'value')} encrypted with the first key, "
            f"{self.current:,} had it already, {self.unreadable:,} cannot be read"
        )


@click.command(
    "rekey",
    short_help="Encrypt what is stored with the first key.",
    help="""Encrypt events, state and summaries with the first key of --key-ring, while they are in
use. With --key-store, sessions get the data key of their user, and data keys are encrypted with the
first key.

Values that change meanwhile are skipped: services write them with the first key. Versions and
deadlines do not change. The command may be interrupted and started again: it changes only values
with another key. When a run reports that it encrypted 0 values, nothing needs the older keys,
except fragments until stream_ttl has passed, and events of an import that was interrupted within
the last hour.

Exit status: 0 = done; 1 = some values cannot be read. Their keys are printed.""",
)
@click.argument("app_name", metavar="[APP", required=False)
@click.argument("user_id", metavar="[USER]]", required=False)
@click.option("--after", nargs=2, metavar="APP USER", help="Continue after this user.")
@store_options
@click.pass_context
def rekey(
    context: click.Context,
    service: SessionService,
    app_name: str | None,
    user_id: str | None,
    after: tuple[str, str] | None,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    if context.params["key_ring"] is None:
        raise click.UsageError("Name the keys: pass --key-ring.")
    counts = Counts()
    last: tuple[str, str] | None = after
    try:
        for owner in _owners_of_data_keys(service, app_name, user_id):
            _run(service, counts, _rewrap, *owner)
        found = _users(service, app_name)
        for app in sorted(found):
            if user_id is None and (after is None or app > after[0]):
                _run(service, counts, _rekey_tier, TierOwner(app))
            for user in watched(sorted(found[app]), "users", lines=True):
                if user_id in (None, user) and (after is None or (app, user) > after):
                    _rekey_user(service, app, user, counts)
                    counts.users += 1
                    last = (app, user)
        for key in _unlisted(service, app_name, user_id):
            _run(service, counts, _rekey_session, key)
            counts.sessions += 1
    except BaseException:
        if last is not None:
            click.echo(f"Continue with: --after {last[0]!r} {last[1]!r}", err=True)
        raise
    if as_json:
        print_json(asdict(counts))
    else:
        click.echo(counts.report() + ".")
    context.exit(1 if counts.unreadable else 0)


@click.command(
    "new-key",
    short_help="Print a new key for a key ring.",
    help="""Print a line with a new random key, for a key ring.

\b
  sessionstore new-key >> keys

NAME is stored with every value. The default is today's date (UTC).""",
)
@click.argument("name", metavar="[NAME]", required=False)
def new_key(name: str | None) -> None:
    """Run the command; the help text is above."""
    try:
        name = name and check_key_name(name)
    except InvalidArgument as error:
        raise click.UsageError(f"{error}.") from error
    name = name or datetime.now(UTC).strftime("%Y-%m-%d")
    click.echo(f"{name}:{base64.b64encode(os.urandom(64)).decode()}")


def _users(service: SessionService, app_name: str | None) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for key in scan(service, app_name):
        found.setdefault(key.app_name, set()).update(filter(None, [key.user_id]))
    return found


def _owners_of_data_keys(
    service: SessionService, app_name: str | None, user_id: str | None
) -> Iterator[tuple[str, str]]:
    """Users with a data key, also those of whom nothing else is stored now: they may return."""
    executor = service._executor
    if isinstance(executor, KeyedExecutor):
        key_store = copy(service)
        key_store._executor = executor.keys
        for key in scan(key_store, app_name, user_id):
            if key.role == "datakey":
                yield key.app_name, key.user_id


def _unlisted(
    service: SessionService, app_name: str | None, user_id: str | None
) -> Iterator[SessionKey]:
    """Sessions that are not in the index of their user: it was lost."""
    keys = service._ops.options.keys
    heads = scan(service, app_name, user_id, kind="heads")
    found = (key for key in heads if key.role == "session")
    while some := list(islice(found, _SESSIONS_PER_READ)):
        commands = (
            ("ZSCORE", keys.user(key.app_name, key.user_id).session_index, key.session_id)
            for key in some
        )
        for key, score in zip(some, ask_each(service, commands), strict=True):
            if score is None:
                yield SessionKey(*key[1:4])


def _rekey_user(service: SessionService, app_name: str, user_id: str, counts: Counts) -> None:
    _run(service, counts, _rekey_user_tier, app_name, user_id)
    for place in places(service, app_name, user_id):
        _run(service, counts, _rekey_session, SessionKey(app_name, user_id, place.session_id))
        counts.sessions += 1


def _run(
    service: SessionService, counts: Counts, flow: Callable[..., Flow[None]], *args: Any
) -> None:
    """Run a flow on an owner. If the owner's data key is lost or not readable, the run goes on."""
    try:
        drive(flow(service._ops, *args, counts), service._executor)
    except CorruptData as error:
        counts.note_unreadable(error)


# -- flows ----------------------------------------------------------------------------------------


def _rewrap(ops: Ops, app_name: str, user_id: str, counts: Counts) -> Flow[None]:
    """Encrypt the data key of a user with the first key of the ring."""
    keys, owner = ops.data_keys, (app_name, user_id)
    assert keys is not None
    name, wrapped = yield keys.read_wrapped(owner)
    if name is None or wrapped is None:
        return
    new = keys.rewrapped(owner, name, wrapped)
    if new != wrapped:
        where = ops.options.keys.data_key(*owner)
        call = ops.reseal_values(where, b"", [(b"wrapped", wrapped, new)])
        counts.changed += yield replace(call, for_key_store=True)


def _rekey_user_tier(ops: Ops, app_name: str, user_id: str, counts: Counts) -> Flow[None]:
    """Reseal the state of a user.

    The data key is made first. If `delete_user` removes it meanwhile, it has already removed the
    values, so none of them is replaced.
    """
    if ops.data_keys is not None:
        yield ops.data_keys.use((app_name, user_id))
    yield from _rekey_keyed_tier(ops, app_name, user_id, counts)


@keyed
def _rekey_keyed_tier(ops: Ops, app_name: str, user_id: str, counts: Counts) -> Flow[None]:
    return _rekey_tier(ops, TierOwner(app_name, user_id), counts)


def _rekey_tier(ops: Ops, owner: TierOwner, counts: Counts) -> Flow[None]:
    """Reseal the state of an application or of a user."""
    keys = ops.options.keys
    if owner.user_id:
        where, prefix = keys.user(*owner).user, "user:"
    else:
        where, prefix = keys.app(owner.app_name), "app:"
    pairs = yield from read_hash(where)
    resealed = _Resealed(ops, owner, counts)
    for field, value in pairs.items():
        resealed.add_field(where, field, value, prefix + field.decode("utf-8", "replace"))
    yield from resealed.store(where, b"")


@keyed
def _rekey_session(ops: Ops, key: SessionKey, counts: Counts) -> Flow[None]:
    """Reseal a session: state, summary and events."""
    keys = ops.options.keys.session(*ids_of(key))
    pairs = yield from read_hash(keys.session)
    if b"version" not in pairs:
        return
    data_key = pairs.get(b"data_key", b"")
    if data_key and ops.unbound.data_keys is None:
        raise click.UsageError(f"{describe(key)} has a data key: pass --key-store.")
    if ops.data_key and data_key != ops.data_key:
        where = keys.session.decode()
        raise OtherDataKey("", key=where, data_key=data_key.decode("utf-8", "replace"))
    resealed = _Resealed(ops, key, counts, is_thread=pairs.get(LAYOUT) == LAYOUT_VALUE)
    for field, value in pairs.items():
        if field[:1] == b".":
            resealed.add_field(keys.session, field, value, field[1:].decode("utf-8", "replace"))
        elif field == b"summary":
            resealed.add_field(keys.session, field, value, "", "summary")
    after = 0
    while True:
        bounds = (b"(%d" % after, "+inf", "BYSCORE", "LIMIT", 0, _EVENTS_PER_CALL, "WITHSCORES")
        found = yield _read(("ZRANGE", keys.events, *bounds))
        entries = members_with_scores(found)
        for member, position in entries:
            resealed.add_event(keys.events, position, member)
        yield from resealed.store(keys.session, keys.events)
        if len(entries) < _EVENTS_PER_CALL:
            return
        after = entries[-1][1]


class _Resealed:
    """Values of one owner, encrypted again, until they are stored.

    Args:
        ops: its codec encrypts.
        owner: whose values these are.
        counts: is updated.
        is_thread: it is a thread of LangGraph, some of whose fields consist of entries.
    """

    def __init__(self, ops: Ops, owner: Owner, counts: Counts, *, is_thread: bool = False) -> None:
        self._ops = ops
        self._owner = owner
        self._counts = counts
        self._is_thread = is_thread
        self._fields: list[tuple[bytes, bytes, bytes]] = []
        self._members: list[tuple[int, bytes, bytes]] = []

    def add_field(
        self, where: bytes, field: bytes, value: bytes, name: str, kind: Kind = "state"
    ) -> None:
        """Add a field of a hash, if its value must be encrypted again."""
        change = partial(self._reseal, where, name, kind)
        # A script adds entries to these fields, so each entry is encrypted on its own.
        has_entries = self._is_thread and is_of_entries(field)
        new = change_entries(value, change) if has_entries else change(value)
        if self._is_other(value, new):
            self._fields.append((field, value, new))

    def add_event(self, where: bytes, position: int, member: bytes) -> None:
        """Add an event, if it must be encrypted again."""
        new = self._reseal(where, "", "event", member)
        if self._is_other(member, new):
            self._members.append((position, member, new))

    def store(self, hash_key: bytes, events: bytes) -> Flow[None]:
        """Store what was added, in bounded steps."""
        fields, self._fields = self._fields, []
        members, self._members = self._members, []
        for some in parts(fields):
            self._counts.changed += yield self._ops.reseal_values(hash_key, b"", some)
        for part in parts(members):
            self._counts.changed += yield self._ops.reseal_values(hash_key, events, [], part)

    def _reseal(self, where: bytes, name: str, kind: Kind, data: bytes) -> bytes:
        try:
            return self._ops.options.codec.resealed(data, self._owner, kind, name)
        except ValueError as error:
            shown = corrupt(where, error, name.encode() if name else None)
            self._counts.note_unreadable(shown)
            return data

    def _is_other(self, old: bytes, new: bytes) -> bool:
        self._counts.current += new == old
        return new != old


def parts(rows: list[Row]) -> Iterator[list[Row]]:
    """The rows in parts that fit into one call."""
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row[1]) + len(row[2])
        if size > _BYTES_PER_CALL or len(part) == _EVENTS_PER_CALL:
            yield part
            part, size = [], 0
    if part:
        yield part


def read_hash(where: bytes) -> Flow[dict[bytes, bytes]]:
    found = yield _read(("HGETALL", where))
    return dict(hash_items(found))


def _read(command: Command) -> Call[Any]:
    return Call(
        "rekey",
        lambda replies: replies[0],
        commands=(command,),
        writes=False,
        from_primary=True,
        is_bulk=True,
    )
