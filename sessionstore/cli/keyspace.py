"""Walks over all keys of a store: which applications, users and sessions there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..calls import Call, Command, Flow
from ..drive import drive
from ..keys import StoredKey
from ..ops import Ops
from ..sync import SessionService

_KEYS_PER_SCAN = 1000


def scan(service: SessionService, app_name: str | None = None) -> Iterator[StoredKey]:
    """All keys of the store, or of an application, found by a scan of all primaries.

    A key may be found twice. A key that is created meanwhile may be missed.
    """
    keys = service._ops.options.keys
    for data in scan_keys(service, keys.glob(app_name)):
        key = keys.parse(data)
        if key is not None and app_name in (None, key.app_name):
            yield key


def scan_keys(service: SessionService, glob: str) -> Iterator[bytes]:
    """The names of all keys that match a pattern, on all primaries. One may come twice."""
    for slot in primaries(service):
        cursor = None
        while cursor != 0:
            cursor, found = drive(_scan(glob, slot, cursor or 0), service._executor)
            yield from found


def primaries(service: SessionService) -> list[int]:
    """A slot of every primary."""
    if not getattr(service._executor, "is_cluster", False):
        return [0]
    return drive(_list_primaries(), service._executor)


def _list_primaries() -> Flow[list[int]]:
    slots: list[int] = yield Ops.list_primaries()
    return slots


def _scan(glob: str, slot: int, cursor: int) -> Flow[tuple[int, list[bytes]]]:
    command: Command = ("SCAN", cursor, "MATCH", glob, "COUNT", _KEYS_PER_SCAN)
    reply: tuple[int, list[bytes]] = yield Call(
        "SCAN", _decode_scan, commands=(command,), writes=False, slot=slot
    )
    return reply


def _decode_scan(replies: list[Any]) -> tuple[int, list[bytes]]:
    cursor, keys = replies[0]
    return int(cursor), keys
