"""Threads of LangGraph that are read from a store and written into another one.

Some of their fields consist of entries, because a script adds to them. Each entry is compressed and
encrypted by itself, the field is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..adapters.checkpoints import LAYOUT, LAYOUT_VALUE, change_entries, is_of_entries
from ..calls import Flow
from ..codec import corrupt
from ..flows.data_keys import keyed
from ..model import SessionKey
from ..ops import Ops, ids_of
from ..sync import SessionService
from ..transform import Unreadable
from .keyspace import with_data_keys
from .rekey import parts, read_hash


def is_thread(state: Mapping[str, Any]) -> bool:
    """Whether a session with this state is a thread of LangGraph."""
    return state.get(LAYOUT[1:].decode()) == int(LAYOUT_VALUE)


def with_plain_entries(
    service: SessionService, key: SessionKey, state: Mapping[str, Any]
) -> dict[str, Any]:
    """The state of a session, with entries as they were before they were stored."""
    if not is_thread(state):
        return dict(state)
    codec = service._ops.options.codec

    def plain(name: str, value: Any) -> Any:
        if not isinstance(value, bytes) or not is_of_entries(b"." + name.encode()):
            return value
        unwrap = partial(codec.unwrap, owner=key, kind="state", name=name)
        try:
            return change_entries(b"\0" + value, unwrap)[1:]
        except Unreadable as error:
            where = service._ops.options.keys.session(*ids_of(key)).session
            raise corrupt(where, error, name.encode()) from None

    return with_data_keys(service, lambda: {name: plain(name, state[name]) for name in state})


@keyed
def wrap_entries(ops: Ops, key: SessionKey) -> Flow[None]:
    """Store the entries of a thread that was restored as the saver stores them.

    It changes no version and no deadline, and may be repeated.
    """
    where, codec = ops.options.keys.session(*ids_of(key)).session, ops.options.codec
    pairs = yield from read_hash(where)
    changed = []
    for field, value in pairs.items():
        if is_of_entries(field) and not value.startswith(b"\0"):  # it is wrapped as a whole
            name = field[1:].decode()
            entries = codec.unwrap(value, key, "state", name)
            wrap = partial(codec.wrap, owner=key, kind="state", name=name)
            changed.append((field, value, change_entries(entries, wrap)))
    for some in parts(changed):
        yield ops.reseal_values(where, b"", some)
