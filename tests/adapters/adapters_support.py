"""Shared by the tests of adapters: frameworks, services, recordings, examples."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import sessionstore
import sessionstore.sync
from sessionstore.calls import Call

if TYPE_CHECKING:  # the commands of long use run without the folder tests/ on their path
    from support.servers import Server

EXAMPLES = Path(__file__).parent / "examples"

RECORDINGS = Path(__file__).parents[3] / "shared" / "data" / "airline.jsonl"

# In every tier, so that the leak check sees a key that lost its deadline.
WITH_TTL: dict[str, Any] = {"session_ttl": 600, "user_state_ttl": 600, "app_state_ttl": 600}

Backend = tuple[str, Any]
"""What the fixture `backend` gives: "async" or "sync", and a server or None for memory."""


def needs(module: str, extra: str) -> Any:
    """A module, or a skip of the whole test module if it is not installed.

    One that is installed and does not import is an error. Warnings of frameworks are not ours.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
    return pytest.skip(f"needs the extra {extra}", allow_module_level=True)


@asynccontextmanager
async def making(adapter: Any, place: Server | None) -> AsyncIterator[Callable[..., Any]]:
    """Makes adapters with services of their own; in memory they share the first one's.

    `make(arguments, **options)`: arguments of the adapter, and options of its service.
    """
    shared: list[sessionstore.SessionService] = []
    async with AsyncExitStack() as stack:

        def make(arguments: dict[str, Any] | None = None, **options: Any) -> Any:
            options = {**WITH_TTL, **options}
            service: sessionstore.SessionService
            if place is not None:
                service = sessionstore.RedisSessionService(place.url, **options)
            elif shared:
                service = shared[0]
            else:
                service = sessionstore.InMemorySessionService(**options)
            shared.append(service)
            stack.push_async_callback(service.aclose)
            return adapter(service, **(arguments or {}))

        yield make


@asynccontextmanager
async def opened(backend: Backend, **options: Any) -> AsyncIterator[Any]:
    """A service on a backend, of the kind that the backend is for."""
    mode, server = backend
    options = {**WITH_TTL, **options}
    service: Any
    if mode == "sync":
        in_threads = sessionstore.sync
        service = (
            in_threads.RedisSessionService(server.url, **options)
            if server
            else in_threads.InMemorySessionService(**options)
        )
        with service:
            yield service
    else:
        service = (
            sessionstore.RedisSessionService(server.url, **options)
            if server
            else sessionstore.InMemorySessionService(**options)
        )
        async with service:
            yield service


class _Losing:
    """An executor whose next write fails with an unknown outcome."""

    def __init__(self, service: Any, applies: bool, error: BaseException) -> None:
        self._inner, self._applies, self._error = service._executor, applies, error
        self._is_async = isinstance(service, sessionstore.SessionService)
        self._is_lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _loses(self, call: Call[Any]) -> bool:
        self._is_lost, before = self._is_lost or call.writes, self._is_lost
        return self._is_lost and not before

    def execute(self, call: Call[Any]) -> Any:
        if not self._loses(call):
            return self._inner.execute(call)
        if self._is_async:
            return self._lose(call)
        if self._applies:
            self._inner.execute(call)
        raise self._error

    async def _lose(self, call: Call[Any]) -> None:
        if self._applies:
            await self._inner.execute(call)
        raise self._error


@contextmanager
def losing_replies(
    service: Any, *, applies: bool = True, error: BaseException | None = None
) -> Iterator[None]:
    """The next write of a service fails with an unknown outcome; `applies`: it is stored."""
    inner = service._executor
    error = error or sessionstore.BackendTimeout("no reply", maybe_applied=True)
    service._executor = _Losing(service, applies, error)
    try:
        yield
    finally:
        service._executor = inner


def recordings() -> list[dict[str, Any]]:
    """Recorded conversations, in OpenAI's chat format; skips the test when they are not there."""
    if not RECORDINGS.exists():
        pytest.skip("there are no recordings")
    found: list[dict[str, Any]] = [
        msgspec.json.decode(line) for line in RECORDINGS.read_bytes().splitlines()
    ]
    return found


OLD: dict[str, Any] = {
    "bytes": b"\xff\x00",
    "at": datetime(2024, 5, 15, 12, tzinfo=UTC),
    "tuple": (1, [2]),
    "$": {"$": "bytes", "value": "no"},
    "plain": [1, None],
}
"""A state value that is not JSON, which release 0.1.0 gave back as it was."""


async def write_golden(
    service: sessionstore.SessionService, name: str, ids: dict[str, Any]
) -> None:
    """Write a session as release 0.1.0 stored it, from a file in tests/adapters/golden."""
    path = Path(__file__).parent / "golden" / f"{name}.json"
    golden = msgspec.json.decode(path.read_bytes())
    state = golden["state"]
    for event in golden["events"]:
        for key in event.get("state_delta", {}):
            state.pop(key, None)
    await service.create_session(**ids, state=state)
    key = sessionstore.SessionKey(**ids)
    events = [msgspec.convert(event, sessionstore.Event) for event in golden["events"]]
    await service.append_events(key, events)


def outputs(program: str, *arguments: str) -> set[bytes]:
    """What a program in tests/adapters prints, in processes of different hash seeds."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(program)), *arguments]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return {
        subprocess.run(
            command,
            env={**os.environ, **paths, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            timeout=120,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "2", "random")
    }


def run_example(name: str, *arguments: str) -> str:
    """What an example prints, in a process of its own in which warnings are errors."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout
