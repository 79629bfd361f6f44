"""Data keys while users are deleted and created again: every order of two calls, step by step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from support.services import RING
from support.sessions import APP, IDS, KEY, OWNER, USER

from sessionstore import (
    CorruptData,
    DeletedUser,
    Event,
    EventPage,
    Session,
    SessionExists,
    SessionNotFound,
    data_keys,
    flows,
)
from sessionstore.calls import Call, Flow, SyncExecutor
from sessionstore.drive import drive
from sessionstore.model import SessionKey
from sessionstore.observe import wrap_executor
from sessionstore.ops import Ops
from sessionstore.sync import InMemorySessionService, SessionService
from sessionstore.twin import MemoryExecutor

STATE = {"a": "secret", "user:b": "secret"}


def process(memory: MemoryExecutor) -> SessionService:
    """A service with data keys of its own, as in another process."""
    service = InMemorySessionService(encryption=RING, key_store="memory://")
    service._executor = memory
    return service


class Steps:
    """A flow that runs one Call at a time."""

    def __init__(self, flow: Flow[Any], memory: MemoryExecutor) -> None:
        self._calls = self._pausing(flow)
        self._memory = memory
        self.result: Any = None
        self.is_done = False

    def _pausing(self, flow: Flow[Any]) -> Any:
        step = next(flow)
        while True:
            yield
            try:
                result = drive(_one(step), self._memory)
            except Exception as error:
                step = flow.throw(error)
            else:
                try:
                    step = flow.send(result)
                except StopIteration as end:
                    return end.value

    def run(self, count: int | None = None) -> bool:
        """Run some Calls, None = all that are left; False if there were fewer."""
        while count is None or count:
            try:
                next(self._calls)
            except StopIteration as end:
                self.result, self.is_done = end.value, True
                return count is None
            count = None if count is None else count - 1
        return True


def _one(step: Any) -> Flow[Any]:
    return (yield step)


Write = Callable[[Ops], Flow[Any]]

INTRODUCING: dict[str, Write] = {
    "create_session": lambda ops: flows.create_session(ops, APP, USER, "sid", STATE),
    "get_or_create_session": lambda ops: flows.get_or_create_session(
        ops, APP, USER, "sid", STATE, None, None
    ),
    "restore_session": lambda ops: flows.restore_session(
        ops, KEY, [Event("u", "secret")], None, {"a": "secret"}, None, None, 100, None
    ),
    "update_user_state": lambda ops: flows.update_user_state(ops, APP, USER, {"b": "secret"}, ()),
    "update_user_state if_absent": lambda ops: flows.update_user_state(
        ops, APP, USER, {"b": "secret"}, (), True
    ),
}


def check_readable(memory: MemoryExecutor) -> list[Session]:
    """All that is stored can be read by a process that knows no data key yet."""
    fresh = process(memory)
    fresh.get_user_state(**OWNER)
    found = fresh.list_sessions(**OWNER, event_num=100)
    for session in found:
        fresh.append_event(session, Event("u", "next"))
    return list(found)


@pytest.mark.parametrize("is_known", [False, True], ids=["first use", "key is kept"])
@pytest.mark.parametrize("name", INTRODUCING)
def test_what_is_created_while_a_user_is_deleted_stays_readable(name: str, is_known: bool) -> None:
    num_tried = 0
    for before, within in itertools.product(range(8), range(8)):
        memory = MemoryExecutor()
        writer, deleter = process(memory), process(memory)
        deleter.create_session(**OWNER, session_id="old", state=STATE)
        if is_known:
            writer.get_user_state(**OWNER)
        write = Steps(INTRODUCING[name](writer._ops), memory)
        delete = Steps(flows.delete_user(deleter._ops, **OWNER), memory)
        if not (write.run(before) and delete.run(within)):
            continue
        num_tried += 1
        write.run()
        delete.run()
        assert write.is_done
        deleted: DeletedUser = delete.result
        sessions = check_readable(memory)
        assert [session.id for session in sessions] in (["sid"], [])
        if sessions and "sid" in deleted.created:
            assert deleted.has_data_key
    assert num_tried > 10


@pytest.mark.parametrize("name", INTRODUCING)
def test_what_a_third_process_writes_meanwhile_stays_readable(name: str) -> None:
    """It has cached the data key, too, and writes through the session that is then removed."""
    num_written = 0
    for before, num_calls, is_whole in itertools.product(range(8), range(4), (False, True)):
        memory = MemoryExecutor()
        writer, deleter, third = process(memory), process(memory), process(memory)
        deleter.create_session(**OWNER, session_id="old", state=STATE)
        writer.get_user_state(**OWNER)
        third.get_user_state(**OWNER)
        write = Steps(INTRODUCING[name](writer._ops), memory)
        delete = Steps(flows.delete_user(deleter._ops, **OWNER), memory)
        if not (delete.run(before) and write.run(num_calls)):
            continue
        if is_whole:
            delete.run()
        with suppress(SessionNotFound):
            third.append_event(KEY, Event("u", "x", state_delta={"user:b": "b", "user:c": "c"}))
            num_written += 1
        write.run()
        delete.run()
        check_readable(memory)
    assert (num_written > 5) == ("session" in name)


@pytest.mark.parametrize("name", INTRODUCING)
def test_a_delete_that_is_interrupted_at_any_step_may_be_repeated(name: str) -> None:
    for num_steps in range(8):
        memory = MemoryExecutor()
        writer, deleter = process(memory), process(memory)
        writer.create_session(**OWNER, session_id="old", state=STATE)
        Steps(flows.delete_user(deleter._ops, **OWNER), memory).run(num_steps)  # it is killed
        drive(INTRODUCING[name](writer._ops), memory)
        check_readable(memory)
        deleted = deleter.delete_user(**OWNER)
        assert (deleted.created, deleted.has_data_key) == ([], False)
        assert memory.keyspace.keys() == []
        assert memory.key_store.keys() == []


WRITES: dict[str, Callable[[SessionService, Session, EventPage], Any]] = {
    "append_event": lambda s, *_: s.append_event(
        KEY, Event("user", "secret new", state_delta=STATE)
    ),
    "append_events": lambda s, *_: s.append_events(
        KEY, iter([Event("user", "a"), Event("user", "b")])
    ),
    "update_session_state": lambda s, *_: s.update_session_state(KEY, STATE),
    "increment_session_state": lambda s, *_: s.increment_session_state(KEY, {"n": 1}),
    "compact_session": lambda s, _, page: s.compact_session(
        KEY, upto=page.positions[0], summary="secret"
    ),
    "replace_event": lambda s, _, page: s.replace_event(
        KEY, page.positions[1], page.events[1], Event("user", "secret new")
    ),
    "delete_event": lambda s, _, page: s.delete_event(KEY, page.positions[1], page.events[1]),
    "rewind_session": lambda s, _, page: s.rewind_session(
        KEY, to=page.positions[0], state={"a": "secret"}
    ),
    "fork_session": lambda s, *_: s.fork_session(KEY, session_id="fork", state={"a": "secret"}),
    "fragment": lambda s, *_: s.append_event(KEY, Event("user", "secret new", partial=True)),
    "replace_newest": lambda s, session, _: drive(
        flows.replace_newest(
            s._ops, KEY, session.version, 0, 1, iter([Event("user", "secret new")])
        ),
        s._executor,
    ),
    "update_user_state": lambda s, *_: s.update_user_state(**OWNER, state={"b": "secret"}),
    "create_session": lambda s, *_: s.create_session(**OWNER, session_id="fork", state=STATE),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_process_with_the_key_of_a_deleted_user_writes_with_the_new_one(name: str) -> None:
    memory = MemoryExecutor()
    old, new = process(memory), process(memory)
    old.create_session(**IDS, state=STATE)
    new.delete_user(**OWNER)
    session = new.create_session(**IDS, state=STATE)
    new.append_events(session, [Event("user", number) for number in range(3)])
    page = new.get_events(session)
    keys = old._ops.data_keys
    assert keys is not None
    known = keys.cached((APP, USER))
    assert known is not None
    assert known.name.encode() not in memory.key_store.hgetall(b"datakey:{app:user}").values()
    WRITES[name](old, session, page)
    assert not [value for value in stored(memory) if known.name.encode() in value]
    assert check_readable(memory)


def stored(memory: MemoryExecutor) -> list[Any]:
    """All that is stored."""
    space = memory.keyspace
    found: list[Any] = []
    for key in list(space.keys()):
        if space.kind(key) == b"hash":
            found += space.hgetall(key).values()
        else:
            found += (member for _, member in space.zrange_by_rank(key, 0, -1, rev=False))
    return found


class Recorder:
    """Keeps the arguments of all Calls."""

    def __init__(self, inner: SyncExecutor) -> None:
        self._inner = inner
        self.sent: list[bytes] = []

    def execute(self, call: Call[Any]) -> list[Any]:
        self.sent += call.args
        return self._inner.execute(call)

    def close(self) -> None:
        self._inner.close()


def test_nothing_is_sent_or_stored_in_the_clear_but_integers_and_names() -> None:
    memory = MemoryExecutor()
    service = process(memory)
    recorder = Recorder(memory)
    wrap_executor(service, lambda _: recorder)
    for number, (name, write) in enumerate(WRITES.items()):
        key = SessionKey(APP, USER, "sid")
        service.delete_session(**IDS)
        service.delete_session(app_name=APP, user_id=USER, session_id="fork")
        session = service.create_session(**IDS, state={**STATE, "app:c": "secret", "n": 5})
        assert b"5" in stored(memory)
        service.append_events(key, [Event("user", f"secret {name} {number}") for _ in range(3)])
        write(service, service.get_session(**IDS) or session, service.get_events(key))
        assert not [value for value in stored(memory) if b"secret" in value]
    assert len(recorder.sent) > 100
    assert not [value for value in recorder.sent if b"secret" in value]


def test_a_session_from_before_the_key_store_gets_a_data_key_with_its_next_value() -> None:
    memory = MemoryExecutor()
    ring_only = InMemorySessionService(encryption=RING)
    ring_only._executor = memory
    session = ring_only.create_session(**IDS, state=STATE)
    ring_only.append_event(session, Event("u", "first"))
    service = process(memory)
    service.append_event(session, Event("u", "second"))
    [session] = check_readable(memory)
    assert [event.content for event in session.events] == ["first", "second", "next"]
    with pytest.raises(CorruptData, match="encryption and key_store are needed"):
        ring_only.append_event(KEY, Event("u", "third"))
    with pytest.raises(CorruptData, match=r"a data key of its user, .*: the option key_store"):
        ring_only.get_events(KEY)
    ring_only.clear_events(KEY)


def test_readers_can_be_introduced_before_writers() -> None:
    memory = MemoryExecutor()
    readers = type(RING)({"new": bytes(range(64))}, read_only=True)
    early = InMemorySessionService(encryption=readers, key_store="memory://")
    early._executor = memory
    session = early.create_session(**IDS, state=STATE)
    early.append_event(session, Event("u", "secret"))
    early.update_user_state(**OWNER, state={"c": "secret"})
    assert len([value for value in stored(memory) if b"secret" in value]) == 4
    assert memory.key_store.keys() == []
    late = process(memory)
    late.append_event(KEY, Event("u", "hidden"))
    early.append_event(KEY, Event("u", "hidden too"))  # the session has a data key now
    assert not [value for value in stored(memory) if b"hidden" in value]
    assert [event.content for event in early.get_events(KEY).events] == [
        "secret",
        "hidden",
        "hidden too",
    ]


def test_a_write_to_a_session_that_does_not_exist_makes_no_data_key() -> None:
    memory = MemoryExecutor()
    service = process(memory)
    with pytest.raises(SessionNotFound):
        service.append_event(KEY, Event("u", "x"))
    with pytest.raises(SessionNotFound):
        drive(flows.rewind_session(service._ops, KEY, 1, None, None, None), memory)
    assert memory.key_store.keys() == []


def test_a_key_that_is_gone_is_named() -> None:
    memory = MemoryExecutor()
    session = process(memory).create_session(**IDS, state=STATE)
    memory.key_store.unlink(*memory.key_store.keys())
    service = process(memory)
    with pytest.raises(CorruptData, match=r"session:.*its data key '~.*' was deleted"):
        service.get_session(**IDS)
    with pytest.raises(CorruptData, match="is not in the key store"):
        service.append_event(session, Event("u", "x"))
    service.delete_user(**OWNER)
    service.create_session(**IDS, state=STATE)
    assert check_readable(memory)


def test_kept_keys_are_read_again_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryExecutor()
    service = process(memory)
    service.create_session(**IDS, state=STATE)
    memory.key_store.unlink(*memory.key_store.keys())
    assert service.get_session(**IDS) is not None
    now = time.monotonic() + data_keys.CACHED_S
    monkeypatch.setattr("time.monotonic", lambda: now)
    with pytest.raises(CorruptData, match="was deleted"):
        service.get_session(**IDS)


def test_few_keys_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_keys, "_CACHED_LIMIT", 3)
    memory = MemoryExecutor()
    service = process(memory)
    for number in range(10):
        service.create_session(app_name="app", user_id=f"u{number}", state=STATE)
    assert service._ops.data_keys is not None
    assert len(service._ops.data_keys._cached) == 3
    for number in range(10):
        assert service.get_user_state("app", f"u{number}") == {"b": "secret"}


def test_an_operation_keeps_its_name() -> None:
    service = process(MemoryExecutor())
    flow: Any = flows.append_event(service._ops, KEY, Event("user", "x"), None)
    assert flow.__name__ == "append_event"


@pytest.mark.parametrize("name", INTRODUCING)
def test_a_process_that_is_killed_at_any_step_leaves_nothing_unreadable(name: str) -> None:
    for num_steps in range(6):
        memory = MemoryExecutor()
        Steps(INTRODUCING[name](process(memory)._ops), memory).run(num_steps)
        check_readable(memory)
        with suppress(SessionExists):
            drive(INTRODUCING[name](process(memory)._ops), memory)
        check_readable(memory)


def test_removing_state_makes_no_data_key() -> None:
    memory = MemoryExecutor()
    process(memory).delete_user_state(APP, USER, "b")
    assert memory.key_store.keys() == []


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_key_store_that_lost_a_key_costs_no_values_of_others(if_absent: bool) -> None:
    """Its backup may bring the key back."""
    memory = MemoryExecutor()
    service = process(memory)
    service.update_user_state(APP, USER, {"a": "secret", "b": "secret"})
    backup = dict(memory.key_store.hgetall(b"datakey:{app:user}"))
    memory.key_store.unlink(b"datakey:{app:user}")
    service.update_user_state(APP, USER, {"b": "new", "c": "new"}, if_absent=if_absent)
    found = memory.keyspace.hgetall(b"userdata:{app:user}")
    assert sorted(found) == [b"a", b"b", b"c"]
    old = backup[b"name"]
    assert [name for name, value in sorted(found.items()) if old in value] == (
        [b"a", b"b"] if if_absent else [b"a"]
    )


def test_a_session_that_is_created_after_a_key_was_lost_costs_no_values_of_others() -> None:
    memory = MemoryExecutor()
    service = process(memory)
    service.update_user_state(APP, USER, {"a": "secret", "b": "secret"})
    backup = dict(memory.key_store.hgetall(b"datakey:{app:user}"))
    memory.key_store.unlink(b"datakey:{app:user}")
    with pytest.raises(CorruptData, match="was deleted"):  # the values of the user cannot be read
        service.create_session(**IDS, state=STATE)
    found = memory.keyspace.hgetall(b"userdata:{app:user}")
    assert [name for name, value in found.items() if backup[b"name"] in value] == [b"a"]
