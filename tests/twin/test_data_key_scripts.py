"""Random calls of the scripts about data keys on the twin and on a server, compared after each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from support.servers import Server

from sessionstore.calls import Call
from sessionstore.keys import Keys
from sessionstore.model import Event, SessionKey
from sessionstore.ops import Ops
from sessionstore.options import check_options
from sessionstore.scripts import SCRIPTS
from sessionstore.tiers import Change, Delta
from sessionstore.transport import connect_sync
from sessionstore.twin import MemoryExecutor

_STEPS = 600
_KEYS = (SessionKey("a", "u", "s"), SessionKey("a", "u", "t"))
_NAMES = ("", "~one", "~two")
_OWNER = ("a", "u")


def make_ops(data_key: str) -> Ops:
    """Builders of Calls for values with a data key, which need not be encrypted for this."""
    options: dict[str, Any] = dict.fromkeys(
        ("session_ttl", "app_state_ttl", "user_state_ttl"), 3600
    )
    limits: dict[str, Any] = dict.fromkeys(
        ("event_size_limit", "value_size_limit", "summary_size_limit"), 1 << 20
    )
    ops = Ops(
        check_options(
            **options,
            **limits,
            session_event_limit=5,
            stream_ttl=60,
            refresh_ttl_on_read=True,
            key_prefix="",
            codec="json",
            partition_by="user",
        )
    )
    ops.data_key = data_key.encode()
    return ops


OPS = {name: make_ops(name) for name in _NAMES}
PLAIN = OPS[""]


def sealed(name: str, text: str) -> bytes:
    """A value that begins as if it had a data key."""
    key = name.encode()
    return b"\x03%c%b%b" % (len(key), key, text.encode()) if name else b'"%b"' % text.encode()


class Calls:
    """Makes random Calls.

    Args:
        chosen: makes the choices.
        keyspace: what the twin stores.
    """

    def __init__(self, chosen: random.Random, memory: MemoryExecutor) -> None:
        self._random = chosen
        self._memory = memory
        self.made: list[str] = []

    def next(self) -> Call[Any]:
        """A Call."""
        kinds: list[Callable[[SessionKey, str, Ops, str], Call[Any]]] = [
            self.create,
            self.create,
            self.get_or_create,
            self.append,
            self.append,
            self.append_several,
            self.update,
            self.user_state,
            self.fields,
            self.fragments,
            self.fork,
            self.rewind,
            self.set_key,
            self.set_key,
            self.undo,
            self.delete,
            self.reseal,
            self.reseal,
            self.key_store,
        ]
        choose = self._random.choice
        kind = choose(kinds)
        self.made.append(kind.__name__)
        name = choose(_NAMES)
        return kind(choose(_KEYS), name, OPS[name], str(self._random.randrange(5)))

    def _change(self, name: str, text: str) -> Change:
        session = Delta([b".k" + text.encode(), sealed(name, text)])
        user = Delta([b"k" + text.encode(), sealed(name, text)])
        return Change(session, user, Delta(), {}, [])

    def create(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        return ops.create_session(key, f"id{text}", self._change(name, text))

    def get_or_create(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        return ops.get_or_create_session(key, "other", self._change(name, text), 0, None)

    def append(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        change = self._change(name, text)
        event = Event("u", text)
        return ops.append_event(key, sealed(name, text), event.timestamp, change, None, None)

    def append_several(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        event, change = Event("u", text), self._change(name, text)
        rows = [(sealed(name, text + more), event.timestamp, change) for more in "xy"]
        return ops.append_events(key, rows, None, None)

    def update(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        return ops.update_session_state(key, self._change(name, text), None)

    def user_state(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        change = Change(Delta(), self._change(name, text).user, Delta(), {}, [])
        return ops.update_user_state(key.app_name, key.user_id, change)

    def fields(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        compared = [(b".k" + text.encode(), sealed(name, text))] if text == "1" else []
        return ops.change_fields(key, compared, [], Delta([b".f", sealed(name, text)]))

    def fragments(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        return ops.append_fragments(key, [sealed(name, text)], None, None, b"")

    def fork(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        state = Delta([b".s", sealed(name, text)]) if text == "1" else None
        copy = SessionKey("a", "u", f"fork{text}")
        return ops.fork_session(key, copy, f"fork{text}", None, state, None, None, b"")

    def rewind(self, key: SessionKey, name: str, ops: Ops, text: str) -> Call[Any]:
        state = Delta([b".s", sealed(name, text)]) if text == "1" else None
        return ops.rewind_session(key, 1, state, None, None, b"")

    def set_key(self, key: SessionKey, name: str, _: Ops, __: str) -> Call[Any]:
        return PLAIN.set_data_key(key, name or "~three", self._random.choice(_NAMES))

    def undo(self, _: SessionKey, name: str, __: Ops, ___: str) -> Call[Any]:
        pairs = [part for text in "01234" for part in (b"k" + text.encode(), sealed(name, text))]
        return PLAIN.undo_data_key(*_OWNER, pairs)

    def delete(self, key: SessionKey, name: str, _: Ops, __: str) -> Call[Any]:
        return PLAIN.delete_session(key, name)

    def reseal(self, key: SessionKey, name: str, _: Ops, text: str) -> Call[Any]:
        keys = Keys().session(key.app_name, key.user_id, key.session_id)
        space = self._memory.keyspace
        stored = space.hgetall(keys.session)
        fields = [
            (field, value if self._random.random() < 0.8 else b"?", sealed(name, text))
            for field, value in stored.items()
            if field[:1] == b"."
        ]
        entries = space.zrange_by_rank(keys.events, 0, -1, rev=False)
        members = [
            (int(at) + (self._random.random() < 0.2), member, sealed(name, f"{text}{number % 3}"))
            for number, (at, member) in enumerate(entries)
        ]
        return PLAIN.reseal_values(keys.session, keys.events, fields, members)

    def key_store(self, _: SessionKey, name: str, __: Ops, text: str) -> Call[Any]:
        script = self._random.choice(("use_data_key", "retire_data_key", "delete_data_key"))
        args = (name.encode(), b"wrapped") if script == "use_data_key" else (text[:1].encode(),)
        where = Keys().data_key(*_OWNER)
        return Call(script, list, SCRIPTS[script], (where,), args)


def shown(replies: list[Any]) -> Any:
    """The reply of the script without times, which differ."""
    reply = replies[0]
    return [0 if isinstance(part, int) and part > 10**12 else part for part in reply]


def contents(snapshot: dict[bytes, Any]) -> dict[bytes, Any]:
    """What is stored, without times."""
    found: dict[bytes, Any] = {}
    for key, content in snapshot.items():
        if isinstance(content, dict):
            times = (b"_us", b"_ms", b"version", b"deadline_ms")
            found[key] = {
                name: 0 if name.endswith(times) else value for name, value in content.items()
            }
        elif not key.startswith(b"stream:"):  # its members have times in them
            found[key] = sorted(content)
    return found


def of_server(server: Server) -> dict[bytes, Any]:
    kinds = {key: content for key, (_, content, _) in server.snapshot().items()}
    return {
        key: content if isinstance(content, dict) else [member for member, _ in content]
        for key, content in kinds.items()
    }


def of_twin(memory: MemoryExecutor) -> dict[bytes, Any]:
    space = memory.keyspace
    return {
        key: space.hgetall(key)
        if space.kind(key) == b"hash"
        else [member for _, member in space.zrange_by_rank(key, 0, -1, rev=False)]
        for key in list(space.keys())
    }


def test_the_twin_does_what_a_server_does(server: Server) -> None:
    memory = MemoryExecutor()
    executor = connect_sync(server.url, None, None, None, 10.0)
    calls = Calls(random.Random(7), memory)
    refused = 0
    try:
        for _ in range(_STEPS):
            call = calls.next()
            expected, found = shown(memory.execute(call)), shown(executor.execute(call))
            assert found == expected, (calls.made[-1], call.args)
            assert contents(of_server(server)) == contents(of_twin(memory)), calls.made[-1]
            refused += expected[:1] == [b"OTHER_KEY"]
    finally:
        executor.close()
        server.empty()
    assert refused > 30
    assert len(set(calls.made)) == 15
