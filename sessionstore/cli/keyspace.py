"""Walks over all keys of a store: which applications, users and sessions there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
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


class Node:
    """One primary: its INFO and settings, and how to ask it.

    Args:
        service: the service that the command opened.
        slot: a slot of the primary; it routes calls in a cluster.
    """

    def __init__(self, service: SessionService, slot: int) -> None:
        self._service = service
        self._slot = slot
        lines = self.ask("INFO", "everything").decode().splitlines()
        self.info: Mapping[str, str] = dict(line.split(":", 1) for line in lines if ":" in line)

    def ask(self, *command: Any) -> Any:
        """The reply to a command. Raises BackendRejected if the user may not run it."""
        words: Command = command
        call: Call[Any] = Call(
            str(command[0]), list, commands=(words,), writes=False, slot=self._slot
        )
        return self._service._executor.execute(call)[0]

    def setting(self, name: str) -> str | None:
        """A setting of the server; None if the server does not know it.

        Raises:
            BackendRejected: the user may not run CONFIG GET.
        """
        found = self.ask("CONFIG", "GET", name)
        pairs = list(found.items()) if isinstance(found, dict) else [tuple(found)]
        return pairs[0][1].decode() if pairs and pairs[0] else None

    def decimal(self, name: str) -> float:
        """A number of INFO; 0 if it is missing."""
        with suppress(ValueError):
            return float(self.info.get(name, "0"))
        return 0.0

    def number(self, name: str) -> int:
        """The same, rounded down."""
        return int(self.decimal(name))
