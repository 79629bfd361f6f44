"""One run of the fleet from its options to its report: store, agents, check, clean-up."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from .. import InMemorySessionService, RedisSessionService, SessionService
from ..embedded import EmbeddedServer
from ..errors import BackendError, BackendRejected, SessionStoreError
from ..transport.server_info import OLDEST_VERSION, ServerFigures, ServerInfo
from .fleet import Fleet
from .report import Report, operation_figures, status_of
from .workload import Conversation, TraceError, load_trace, synthetic_conversations

MEMORY_URL = "memory://"

_NO_FIGURES = ServerFigures("unknown server", (), None, None)


class UnusableError(Exception):
    """A run cannot begin. The message is one clear sentence without credentials."""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What to run.

    Attributes:
        url: a redis://, rediss:// or unix:// URL, memory://, or None for a private server.
        agents: conversations held at the same time, at least 1.
        turns: user messages in a synthetic conversation, at least 1.
        sessions_per_user: synthetic sessions that share a user, at least 1.
        event_limit: the newest events that a session keeps; 0 = all.
        ttl: lifetime of unused sessions and state in seconds, more than 0; None = for ever.
        seed: of the synthetic conversations.
        trace: recorded conversations to replay instead of synthetic ones.
        json: where the report goes as JSON; `-` = to stdout, instead of the tables.
        keep: True = the run's data is left in the store.
    """

    url: str | None = None
    agents: int = 200
    turns: int = 8
    sessions_per_user: int = 4
    event_limit: int = 1000
    ttl: float | None = None
    seed: int = 1
    trace: Path | None = None
    json: Path | None = None
    keep: bool = False

    @property
    def session_event_limit(self) -> int | None:
        """The limit as the library takes it: None = all."""
        return self.event_limit or None


@dataclass(frozen=True, slots=True)
class _Store:
    """An open store; `info` is None when it is this process's memory."""

    service: SessionService
    place: str
    info: ServerInfo | None
    first_figures: ServerFigures

    async def read_figures(self) -> ServerFigures:
        if self.info is None:
            return self.first_figures
        try:
            return await self.info.read()
        except BackendError:
            # The report has more important things to say about a store that went away.
            return _NO_FIGURES


async def run_fleet(options: FleetOptions) -> Report:
    """Runs the fleet once and says how it went.

    SIGINT lets the agents finish the operations they are in, then verifies what was written; a
    second one cancels the run. A bar on stderr shows the progress when stderr is a terminal.

    Args:
        options: what to run.

    Raises:
        UnusableError: the run cannot begin: bad trace, no server, a server that refuses or is
            too old.
        asyncio.CancelledError: a second SIGINT came; data of the run may be left in the store.
    """
    conversations = _conversations(options)
    key_prefix = f"fleet:{secrets.token_hex(4)}:"
    async with _open_store(options, key_prefix) as store:
        with _ProgressBar() as progress:
            fleet = Fleet(
                store.service,
                conversations,
                num_agents=min(options.agents, len(conversations)),
                event_limit=options.session_event_limit,
                progress=progress,
            )
            with _Interruption(fleet.stop) as interruption:
                await fleet.run_agents()
                last_figures = await store.read_figures()
                await fleet.verify()
                if not options.keep:
                    await fleet.clean_up()
    return _report(
        options,
        fleet,
        store,
        last_figures,
        key_prefix=key_prefix,
        is_interrupted=interruption.has_come,
    )


def redact_url(url: str) -> str:
    """The URL without user, password and query, any of which may hold a secret."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"


def _conversations(options: FleetOptions) -> list[Conversation]:
    if options.trace is None:
        return synthetic_conversations(
            options.agents,
            num_turns=options.turns,
            sessions_per_user=options.sessions_per_user,
            seed=options.seed,
        )
    try:
        return load_trace(options.trace)
    except TraceError as error:
        raise UnusableError(str(error)) from error


@asynccontextmanager
async def _open_store(options: FleetOptions, key_prefix: str) -> AsyncIterator[_Store]:
    async with AsyncExitStack() as stack:
        try:
            store = await _enter_store(options, key_prefix, stack)
        except SessionStoreError as error:
            place = "a private server" if options.url is None else redact_url(options.url)
            raise UnusableError(f"cannot use {place}: {error}") from error
        yield store


async def _enter_store(options: FleetOptions, key_prefix: str, stack: AsyncExitStack) -> _Store:
    if options.url == MEMORY_URL:
        memory_service = InMemorySessionService(
            session_event_limit=options.session_event_limit,
            session_ttl=options.ttl,
            app_state_ttl=options.ttl,
            user_state_ttl=options.ttl,
        )
        await stack.enter_async_context(memory_service)
        figures = ServerFigures("this process", (), None, None)
        return _Store(memory_service, MEMORY_URL, None, figures)
    if options.url is None:
        server = await stack.enter_async_context(EmbeddedServer())
        url, place = server.url, "a private server"
    else:
        url, place = options.url, redact_url(options.url)
    service = RedisSessionService(
        url,
        session_event_limit=options.session_event_limit,
        session_ttl=options.ttl,
        app_state_ttl=options.ttl,
        user_state_ttl=options.ttl,
        key_prefix=key_prefix,
    )
    await stack.enter_async_context(service)
    info = ServerInfo(url)
    stack.push_async_callback(info.aclose)
    return _Store(service, place, info, await _first_figures(info))


async def _first_figures(info: ServerInfo) -> ServerFigures:
    try:
        figures = await info.read()
    except BackendRejected:
        # Without the right to run INFO the store works; only its figures are missing.
        return _NO_FIGURES
    if figures.is_too_old:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise BackendRejected(f"{figures.name} is too old, the scripts need Redis {oldest}")
    return figures


def _report(
    options: FleetOptions,
    fleet: Fleet,
    store: _Store,
    last: ServerFigures,
    *,
    key_prefix: str,
    is_interrupted: bool,
) -> Report:
    first = store.first_figures
    has_failed = bool(fleet.discrepancies.total or fleet.failures.num_failed)
    workload = f"synthetic, seed {options.seed}, {options.turns} turns a session"
    if options.trace is not None:
        workload = f"trace {options.trace}"
    return Report(
        server=first.name,
        place=store.place,
        key_prefix=key_prefix if store.info is not None else "",
        is_kept=options.keep,
        workload=workload,
        num_agents=options.agents,
        num_sessions=fleet.num_sessions,
        num_events=fleet.num_events,
        elapsed_seconds=fleet.elapsed_seconds,
        operations=operation_figures(fleet.meter.latencies_ns, fleet.elapsed_seconds),
        server_cpu_us_per_operation=_growth_per(
            first.cpu_us, last.cpu_us, fleet.meter.num_operations
        ),
        server_memory_bytes_per_event=_growth_per(
            first.used_memory_bytes, last.used_memory_bytes, fleet.num_kept_events
        ),
        num_verified=fleet.num_verified,
        verification=asdict(fleet.discrepancies),
        num_failed_operations=fleet.failures.num_failed,
        failure_reasons=fleet.failures.reasons,
        is_interrupted=is_interrupted,
        exit_code=status_of(has_failed=has_failed, is_interrupted=is_interrupted),
    )


def _growth_per(before: int | None, after: int | None, count: int) -> float | None:
    """The growth for each of so many; None when unknown or when the figure shrank."""
    if before is None or after is None or count == 0 or after < before:
        return None
    return (after - before) / count


class _ProgressBar:
    """A bar for each phase on stderr while it is a terminal; gone at the end."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("", total=0, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, description: str, total: int) -> None:
        """A bar for the phase appears below the earlier ones."""
        self._task = self._bars.add_task(description, total=total)

    def advance(self) -> None:
        """The bar of the phase grows by one step."""
        self._bars.advance(self._task)


class _Interruption:
    """While entered, the first SIGINT calls `stop` and the second cancels the current task."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.has_come = False
        self._stop = stop

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        # Not every platform and not every thread can handle signals: there Ctrl-C aborts at once.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            self._loop.add_signal_handler(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            self._loop.remove_signal_handler(signal.SIGINT)

    def _on_signal(self) -> None:
        if self.has_come and self._task is not None:
            self._task.cancel()
            return
        self.has_come = True
        Console(stderr=True).print("Stopping and verifying; Ctrl-C again gives up.")
        self._stop()
