"""A proxy in front of a real server. At a given byte it cuts, holds, slows or corrupts.

It can also lead new connections to another server, as an address does after a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import hiredis

from .nodes import HOST

T = TypeVar("T")
Direction = Literal["request", "reply"]
Address = str | int
"""The path of a unix socket, or a port of the loopback interface."""

_DEADLINE_S = 20.0  # for steps that take milliseconds


async def _connect(server: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(server, str):
        return await asyncio.open_unix_connection(server)
    return await asyncio.open_connection(HOST, server)


class Lane:
    """What happens to the bytes of one direction. Changed only in the proxy's thread.

    Attributes:
        passed: bytes let through so far.
        budget: bytes to let through before the connection is cut; None = no cut.
        gate: closed while bytes are held.
        held_after: bytes to let through before the gate closes; None = it stays as it is.
        delay_s: pause after every byte; 0 = pass everything at once.
    """

    def __init__(self) -> None:
        self.passed = 0
        self.budget: int | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.held_after: int | None = None
        self.delay_s = 0.0


class Proxy:
    """Listens on a unix socket of its own, in a thread of its own.

    Args:
        server: where the real server listens.
        count_calls: count requests and replies.
        port: listen on this port instead of a unix socket.

    Attributes:
        accepted: connections made so far.
        cuts: connections cut so far.
        in_flight_most: most requests seen at once that had no reply yet; needs `count_calls`.
    """

    def __init__(
        self, server: Address, *, count_calls: bool = False, port: int | None = None
    ) -> None:
        self._behind = server
        self._port = port
        self._count_calls = count_calls
        self._directory = tempfile.mkdtemp(prefix="proxy-")
        self._path = str(Path(self._directory) / "s")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._lanes: dict[Direction, Lane] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._greeting = b""
        self.accepted = 0
        self.cuts = 0
        self.in_flight = 0
        self.in_flight_most = 0

    @property
    def url(self) -> str:
        """Where to connect to."""
        return f"unix://{self._path}" if self._port is None else f"redis://{HOST}:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_DEADLINE_S)
        self._loop.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- faults --------------------------------------------------------------------------------

    def cut(self, direction: Direction, after: int) -> None:
        """Let `after` more bytes through, then close the connection that carried them. Once."""

        def arm() -> None:
            self._lanes[direction].budget = after

        self._call(arm)

    def disarm(self) -> None:
        """Cancel a cut that has not happened."""

        def forget() -> None:
            for lane in self._lanes.values():
                lane.budget = None

        self._call(forget)

    def cut_all(self) -> None:
        """Close every connection now."""

        def close() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._call(close)

    def hold(self, direction: Direction, after: int = 0) -> None:
        """Let `after` more bytes through, then keep bytes back until `release`."""

        def close() -> None:
            lane = self._lanes[direction]
            lane.held_after = after or None
            if not after:
                lane.gate.clear()

        self._call(close)

    def release(self, direction: Direction) -> None:
        """Let the held bytes pass."""
        self._call(lambda: self._lanes[direction].gate.set())

    def trickle(self, direction: Direction, delay_s: float) -> None:
        """Pause after every byte; 0 = stop that."""

        def slow_down() -> None:
            self._lanes[direction].delay_s = delay_s

        self._call(slow_down)

    def lead_to(self, server: Address) -> None:
        """Connect new connections to this server. Open ones stay where they are."""
        self._behind = server

    def inject(self, data: bytes) -> None:
        """Send bytes to every client, as if the server had sent them."""

        def write() -> None:
            for writer in self._clients:
                writer.write(data)

        self._call(write)

    def greet(self, data: bytes) -> None:
        """Send bytes to every client that connects."""
        self._greeting = data

    def refuse(self) -> None:
        """Accept no more connections, and close those that are open."""

        def stop() -> None:
            assert self._server is not None
            self._server.close()
            Path(self._path).unlink(missing_ok=True)

        self._call(stop)
        self.cut_all()

    def accept(self) -> None:
        """Accept connections again."""
        self._run(self._listen())

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return len(self._clients)

    def passed(self, direction: Direction) -> int:
        """Bytes let through so far."""

        async def read() -> int:
            return self._lanes[direction].passed

        return self._run(read())

    # -- inside --------------------------------------------------------------------------------

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        self._run(call())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_DEADLINE_S)

    async def _open(self) -> None:
        self._lanes = {"request": Lane(), "reply": Lane()}
        await self._listen()

    async def _listen(self) -> None:
        if self._port is None:
            self._server = await asyncio.start_unix_server(self._accept, self._path)
        else:
            self._server = await asyncio.start_server(self._accept, HOST, self._port)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self._clients.add(writer)
        self.accepted += 1
        writer.write(self._greeting)
        before, behind = self.in_flight, None
        pumps: list[asyncio.Task[None]] = []
        try:
            server_reader, behind = await _connect(self._behind)
            self._writers.add(behind)
            pumps = [
                asyncio.create_task(self._pump("request", reader, behind)),
                asyncio.create_task(self._pump("reply", server_reader, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass  # no server, or the end of the test: the client sees a closed connection
        finally:
            for pump in pumps:
                pump.cancel()
            self._tasks.discard(task)
            self.in_flight = before
            for each in (writer, behind):
                if each is not None:
                    self._writers.discard(each)
                    each.close()
            self._clients.discard(writer)

    async def _pump(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        lane = self._lanes[direction]
        parser = hiredis.Reader(notEnoughData=self) if self._count_calls else None
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                await lane.gate.wait()
                if lane.held_after is not None:
                    writer.write(data[: lane.held_after])
                    lane.passed += len(data[: lane.held_after])
                    data, lane.held_after = data[lane.held_after :], lane.held_after - len(data)
                    if lane.held_after <= 0:
                        lane.held_after = None
                        lane.gate.clear()
                        await lane.gate.wait()
                if parser is not None:
                    self._count(direction, parser, data)
                while lane.delay_s and data:
                    writer.write(data[:1])
                    lane.passed += 1
                    data = data[1:]
                    await asyncio.sleep(lane.delay_s)
                if lane.budget is None:
                    writer.write(data)
                    lane.passed += len(data)
                    await writer.drain()
                    continue
                part = data[: lane.budget]
                lane.budget -= len(part)
                lane.passed += len(part)
                writer.write(part)
                if lane.budget == 0:
                    lane.budget = None
                    self.cuts += 1
                    return

    def _count(self, direction: Direction, parser: hiredis.Reader, data: bytes) -> None:
        step = 1 if direction == "request" else -1
        parser.feed(data)
        while parser.gets() is not self:
            self.in_flight += step
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
