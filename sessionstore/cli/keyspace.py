"""What commands ask a store beyond what a service offers: its keys, its servers, its indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from ..calls import Call, CallNeeded, Command, Flow, decode_replies
from ..drive import drive
from ..errors import BackendRejected
from ..keys import StoredKey
from ..ops import Ops
from ..replies import Place
from ..sync import SessionService
from .store import parse_info

T = TypeVar("T")

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
            command = ("SCAN", cursor or 0, "MATCH", glob, "COUNT", _KEYS_PER_SCAN)
            [(position, found)] = ask(service, command, slot=slot)
            cursor = int(position)
            yield from found


def ask(
    service: SessionService,
    *commands: Command,
    slot: int | bytes | None = None,
    writes: bool = False,
) -> list[Any]:
    """The raw replies to commands.

    Args:
        service: the service that the command line opened.
        commands: plain commands.
        slot: a slot or a key, for commands whose first argument is not a key.
        writes: they change data.

    Raises:
        BackendRejected: the user may not run one of them.
    """
    call: Call[list[Any]] = Call(
        str(commands[0][0]), list, commands=commands, writes=writes, slot=slot
    )
    return service._executor.execute(call)


def with_data_keys(service: SessionService, decode: Callable[[], T]) -> T:
    """What a function returns that decodes values. Data keys that it needs are read."""
    while True:
        try:
            return decode()
        except CallNeeded as needed:
            decode_replies(needed.call, service._executor.execute(needed.call))


def memory_of(service: SessionService, *keys: bytes) -> int | None:
    """The memory of keys of one slot, in bytes; None if the user may not run MEMORY USAGE."""
    try:
        sizes = ask(service, *(("MEMORY", "USAGE", key) for key in keys), slot=keys[0])
    except BackendRejected:
        return None
    return sum(size or 0 for size in sizes)


def places(
    service: SessionService, app_name: str, user_id: str, per_read: int = 1000
) -> Iterator[Place]:
    """The places of a user's sessions in the index, last updated first."""

    def read(after: Place | None) -> Flow[list[Place]]:
        page: list[Place] = yield service._ops.list_places(app_name, user_id, per_read, after)
        return page

    after = None
    while True:
        page = drive(read(after), service._executor)
        yield from page
        if len(page) < per_read:
            return
        after = page[-1]


def primaries(service: SessionService) -> list[int]:
    """A slot of every primary."""
    if not getattr(service._executor, "is_cluster", False):
        return [0]
    return drive(_list_primaries(), service._executor)


def _list_primaries() -> Flow[list[int]]:
    slots: list[int] = yield Ops.list_primaries()
    return slots


class Node:
    """One primary: its INFO and settings, and how to ask it.

    Args:
        service: the service that the command opened.
        slot: a slot of the primary; it routes calls in a cluster.
    """

    def __init__(self, service: SessionService, slot: int) -> None:
        self._service = service
        self._slot = slot
        self.info = parse_info(self.ask("INFO", "everything"))

    def ask(self, *command: Any) -> Any:
        """The reply to a command. Raises BackendRejected if the user may not run it."""
        return ask(self._service, command, slot=self._slot)[0]

    def setting(self, name: str) -> str | None:
        """A setting of the server; None if the server does not know it.

        Raises:
            BackendRejected: the user may not run CONFIG GET.
        """
        found = self.ask("CONFIG", "GET", name)
        pairs = list(found.items()) if isinstance(found, dict) else [tuple(found)]
        return pairs[0][1].decode() if pairs and pairs[0] else None

    def number(self, name: str) -> int:
        """A number of INFO; 0 if it is missing."""
        with suppress(ValueError):
            return int(float(self.info.get(name, "0")))
        return 0
