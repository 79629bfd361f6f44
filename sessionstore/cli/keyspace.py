"""What commands ask a store beyond what a service offers: its keys, its servers, its indexes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Literal, TypeVar

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
_PER_READ = 1000

Ordered = TypeVar("Ordered", str, tuple[str, str])


def scan(
    service: SessionService,
    app_name: str | None = None,
    user_id: str | None = None,
    *,
    kind: Literal["all", "heads", "owners"] = "all",
) -> Iterator[StoredKey]:
    """All keys of the store, of an application or of a user, found by a scan of all primaries.

    A key may be found twice. A key that is created meanwhile may be missed.

    Args:
        service: the service that the command line opened.
        app_name: the application; None = all.
        user_id: the user; None = all.
        kind: "heads" leaves out events, "owners" also sessions.
    """
    keys = service._ops.options.keys
    for data in scan_keys(service, keys.glob(app_name, user_id, kind=kind)):
        key = keys.parse(data)
        if key is not None and app_name in (None, key.app_name) and user_id in (None, key.user_id):
            yield key


def scan_keys(service: SessionService, glob: str) -> Iterator[bytes]:
    """The names of all keys that match a pattern, on all primaries. A name may be found twice."""
    for slot in primaries(service):
        cursor = None
        while cursor != 0:
            command = ("SCAN", cursor or 0, "MATCH", glob, "COUNT", _KEYS_PER_SCAN)
            [(position, found)] = ask(service, command, slot=slot)
            cursor = int(position)
            yield from found


def owners(
    service: SessionService, app_name: str | None = None, user_id: str | None = None
) -> Iterator[tuple[str, str]]:
    """Applications and users in order. An application without user comes before its users."""
    if app_name is not None and user_id is not None:
        return iter([(app_name, ""), (app_name, user_id)])
    return in_order(
        lambda: ((key.app_name, key.user_id) for key in scan(service, app_name, kind="owners"))
    )


def index_entries(
    service: SessionService, app_name: str, user_id: str
) -> Iterator[tuple[str, float]]:
    """The sessions of a user in the index, and when they were written, in no order.

    A session that exists during the whole scan is found, even if it is written to meanwhile. It may
    be found twice.
    """
    index = service._ops.options.keys.user(app_name, user_id).session_index
    cursor = None
    while cursor != 0:
        [(position, found)] = ask(service, ("ZSCAN", index, cursor or 0, "COUNT", _PER_READ))
        cursor = int(position)
        for member, score in zip(found[::2], found[1::2], strict=True):
            yield member.decode(), float(score)


def session_names(
    service: SessionService, app_name: str, user_id: str, since_us: int
) -> Iterator[str]:
    """The ids of a user's sessions in order, those that were written since a time."""
    return in_order(
        lambda: (
            name
            for name, written_us in index_entries(service, app_name, user_id)
            if written_us >= since_us
        )
    )


def in_order(read: Callable[[], Iterable[Ordered]], at_once: int = 50_000) -> Iterator[Ordered]:
    """The distinct items that `read` gives, in order.

    They are read again for every `at_once` items, so that memory is bounded.
    """
    last: Ordered | None = None
    is_end = False
    while not is_end:
        is_end = True
        found: set[Ordered] = set()
        highest: Ordered | None = None
        for item in read():
            if last is not None and item <= last:
                continue
            if highest is not None and item > highest:
                is_end = False
                continue
            found.add(item)
            if len(found) >= 2 * at_once:
                lowest = heapq.nsmallest(at_once, found)
                found, highest, is_end = set(lowest), lowest[-1], False
        some = sorted(found)
        if len(some) > at_once:
            del some[at_once:]
            is_end = False
        yield from some
        if some:
            last = some[-1]


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


def ask_each(service: SessionService, commands: Iterable[Command]) -> Iterator[Any]:
    """The reply to each of any number of commands whose first argument is a key.

    One server gets many at once. In a cluster each is sent to the node that has its key.
    """
    size = 1 if getattr(service._executor, "is_cluster", False) else _PER_READ
    rest = iter(commands)
    while some := list(islice(rest, size)):
        yield from ask(service, *some)


def memory_of(service: SessionService, *keys: bytes) -> int | None:
    """The memory of keys, in bytes; None if the user may not run MEMORY USAGE."""
    size = 0
    try:
        for key in keys:
            [found] = ask(service, ("MEMORY", "USAGE", key), slot=key)
            size += found or 0
    except BackendRejected:
        return None
    return size


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

    @property
    def example_keys(self) -> list[bytes]:
        """A key of each kind, as the services of this store spell them."""
        keys = self._service._ops.options.keys.session("app", "user", "id")
        return [*keys, keys.stream]

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
