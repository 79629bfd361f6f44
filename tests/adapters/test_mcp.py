"""Model Context Protocol: stored messages and their ids, and clients that lose a connection."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from adapters_support import Backend, needs, opened, run_example
from support.servers import Server
from support.services import ServiceFactory
from support.waiting import poll_until

import sessionstore
from sessionstore import CorruptData, Event, InvalidArgument, LimitExceeded, SessionKey

types: Any = needs("mcp.types", "mcp")
httpx: Any = needs("httpx", "mcp")
streamable_http: Any = needs("mcp.client.streamable_http", "mcp")
client_session: Any = needs("mcp.client.session", "mcp")
lowlevel: Any = needs("mcp.server.lowlevel", "mcp")
fastmcp: Any = needs("mcp.server.fastmcp", "mcp")
starlette: Any = needs("starlette.applications", "mcp")
routing: Any = needs("starlette.routing", "mcp")
uvicorn: Any = needs("uvicorn", "mcp")
adapter: Any = needs("sessionstore.adapters.mcp", "mcp")  # last: it is there without the SDK

WHERE = {"app_name": "tools", "user_id": "mcp"}


def stored(service: Any, session_id: str = "s") -> Any:
    return adapter.StoredEventStore(session_id, getattr(service, "service", service), **WHERE)


def message(number: int, **fields: Any) -> Any:
    """A notification, as the SDK sends it."""
    params = {"level": "info", "data": number, **fields}
    notification = {"jsonrpc": "2.0", "method": "notifications/message", "params": params}
    return types.JSONRPCMessage.model_validate(notification)


async def replayed(store: Any, event_id: str) -> tuple[str | None, list[Any], list[str]]:
    """The stream, and the messages and ids that are sent after an event."""
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    stream_id = await store.replay_events_after(event_id, send)
    return stream_id, [event.message for event in sent], [event.event_id for event in sent]


@pytest.fixture
async def event_store(backend: Backend) -> AsyncIterator[Any]:
    async with opened(backend) as service:
        yield stored(service)


# -- the interface ---------------------------------------------------------------------------------


async def test_only_later_messages_of_the_same_stream_are_replayed(event_store: Any) -> None:
    ids = {}
    for number in range(6):
        for stream_id in ("1", "_GET_stream"):
            ids[stream_id, number] = await event_store.store_event(stream_id, message(number))
    assert len(set(ids.values())) == 12
    for stream_id in ("1", "_GET_stream"):
        for number in range(6):
            later = range(number + 1, 6)
            assert await replayed(event_store, ids[stream_id, number]) == (
                stream_id,
                [message(each) for each in later],
                [ids[stream_id, each] for each in later],
            )


async def test_an_event_without_a_message_marks_a_place(event_store: Any) -> None:
    first = await event_store.store_event("1", None)
    assert await replayed(event_store, first) == ("1", [], [])
    second = await event_store.store_event("1", message(1))
    await event_store.store_event("1", None)
    third = await event_store.store_event("1", message(2))
    assert await replayed(event_store, first) == ("1", [message(1), message(2)], [second, third])


@pytest.mark.parametrize("stream_id", ["1\n2", "a:b", "ü/%?", "x" * 1000, "data: 1\r\n"])
async def test_an_event_id_is_one_line_whatever_the_client_calls_its_request(
    stream_id: str,
) -> None:
    async with sessionstore.InMemorySessionService() as service:
        event_store = stored(service)
        event_id = await event_store.store_event(stream_id, None)
        assert event_id.isascii()
        assert event_id.isprintable()
        await event_store.store_event(stream_id, message(1))
        assert (await replayed(event_store, event_id))[:2] == (stream_id, [message(1)])


async def test_many_messages_are_replayed_in_order(event_store: Any) -> None:
    first = await event_store.store_event("1", None)
    for number in range(130):
        await event_store.store_event("1" if number % 2 else "2", message(number))
    _, messages, _ = await replayed(event_store, first)
    assert messages == [message(number) for number in range(1, 130, 2)]


async def test_messages_that_arrive_during_a_replay_are_sent_too(event_store: Any) -> None:
    first = await event_store.store_event("1", None)
    await event_store.store_event("1", message(0))
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event.message)
        if len(sent) < 4:
            await event_store.store_event("1", message(len(sent)))

    assert await event_store.replay_events_after(first, send) == "1"
    assert sent == [message(number) for number in range(4)]


async def test_a_message_is_replayed_as_it_was_sent(event_store: Any) -> None:
    content = {"text": "ü\u2028\0", "numbers": [1.5, 2**70, None], "empty": {}}
    result = {"jsonrpc": "2.0", "id": "a", "result": {"content": [content], "isError": False}}
    sent = types.JSONRPCMessage.model_validate(result)
    first = await event_store.store_event("a", None)
    await event_store.store_event("a", sent)
    _, [found], _ = await replayed(event_store, first)
    form = {"by_alias": True, "exclude_none": True}
    assert found.model_dump_json(**form) == sent.model_dump_json(**form)
    assert found == sent


# -- what is not there -----------------------------------------------------------------------------


@pytest.mark.parametrize("event_id", ["", ":", "1", "1:", "1:no", "ü:\n", "x" * 10_000])
async def test_an_unknown_id_replays_nothing(event_id: str) -> None:
    async with sessionstore.InMemorySessionService() as service:
        event_store = stored(service)
        assert await replayed(event_store, event_id) == (None, [], [])  # nothing is stored at all
        known = await event_store.store_event("1", message(1))
        await event_store.store_event("1", message(2))
        assert await replayed(event_store, event_id) == (None, [], [])
        renamed = known.replace("1:", "2:", 1)  # the id of another stream
        assert await replayed(event_store, renamed) == (None, [], [])


async def test_an_id_of_another_mcp_session_replays_nothing() -> None:
    async with sessionstore.InMemorySessionService() as service:
        ann, bob = stored(service, "ann"), stored(service, "bob")
        ids = []
        for number in range(2):
            for each in (ann, bob):
                ids.append(await each.store_event("1", message(number)))
        assert await replayed(bob, ids[0]) == (None, [], [])
        assert (await replayed(bob, ids[1]))[:2] == ("1", [message(1)])


async def test_the_limit_of_events_bounds_what_can_be_replayed(backend: Backend) -> None:
    async with opened(backend, session_event_limit=5) as service:
        event_store = stored(service)
        ids = [await event_store.store_event("1", message(number)) for number in range(9)]
        assert await replayed(event_store, ids[3]) == (None, [], [])
        assert await replayed(event_store, ids[4]) == (
            "1",
            [message(number) for number in range(5, 9)],
            ids[5:],
        )


async def test_after_its_ttl_an_mcp_session_is_gone(
    make_service: ServiceFactory, advance_time: Callable[[float], None]
) -> None:
    event_store = stored(make_service(session_ttl=60))
    first = await event_store.store_event("1", None)
    await event_store.store_event("1", message(1))
    advance_time(50)
    assert (await replayed(event_store, first))[:2] == ("1", [message(1)])
    advance_time(70)
    assert await replayed(event_store, first) == (None, [], [])
    later = await event_store.store_event("1", None)  # the client is still connected
    assert await replayed(event_store, later) == ("1", [], [])


async def test_a_stored_event_that_is_no_message_is_reported() -> None:
    async with sessionstore.InMemorySessionService() as service:
        event_store = stored(service)
        first = await event_store.store_event("1", None)
        await service.append_event(SessionKey("tools", "mcp", "s"), Event("x", 7, branch="1"))
        with pytest.raises(CorruptData, match="is not a message of MCP"):
            await replayed(event_store, first)


async def test_arguments_are_checked() -> None:
    not_a_service: Any = object()
    with pytest.raises(InvalidArgument, match="service must be a service"):
        stored(not_a_service)
    with pytest.raises(InvalidArgument, match="service must be a service"):
        adapter.StoredSessionManager(lowlevel.Server("x"), not_a_service, **WHERE)
    async with sessionstore.InMemorySessionService(event_size_limit=300) as service:
        with pytest.raises(InvalidArgument, match="session_id"):
            await stored(service, "").store_event("1", None)
        with pytest.raises(LimitExceeded):
            await stored(service).store_event("1", message(0, logger="x" * 300))
        with pytest.raises(InvalidArgument, match="event_store is not an option"):
            adapter.StoredSessionManager(
                lowlevel.Server("x"), service, event_store=stored(service), **WHERE
            )


# -- a real server and real clients ----------------------------------------------------------------


class Network:
    """A port between clients and a server. Connections can be cut; new ones then wait."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_up = asyncio.Event()
        self._is_up.set()
        self._pipes: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._is_up.wait()
        behind = await asyncio.open_connection("127.0.0.1", self._port)
        for source, target in ((reader, behind[1]), (behind[0], writer)):
            task = asyncio.create_task(self._pipe(source, target))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _pipe(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.transport.abort()

    async def cut(self) -> None:
        """End all connections."""
        self._is_up.clear()
        for task in list(self._pipes):
            task.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def repair(self) -> None:
        self._is_up.set()


class Kitchen:
    """An MCP server with a tool that reports steps, which the test puts in the dish's queue."""

    def __init__(self) -> None:
        self.server = lowlevel.Server("kitchen")
        self.steps: dict[str, asyncio.Queue[str]] = defaultdict(asyncio.Queue)
        self.server.list_tools()(self._list_tools)
        self.server.call_tool(validate_input=False)(self._call)

    async def _list_tools(self) -> list[Any]:
        return [types.Tool(name="cook", inputSchema={"type": "object"})]

    async def _call(self, _: str, arguments: dict[str, Any]) -> list[Any]:
        context = self.server.request_context
        dish = arguments["dish"]
        while (step := await self.steps[dish].get()) != "end":
            await context.session.send_log_message(
                "info", f"{dish}: {step}", related_request_id=context.request_id
            )
        return [types.TextContent(type="text", text=dish)]

    async def do(self, dish: str, *steps: str) -> None:
        """Let the tool go through some steps."""
        for step in steps:
            self.steps[dish].put_nowait(step)
        await poll_until(self.steps[dish].empty, "the tool")


class Client:
    """A connected client, and what it was told."""

    def __init__(self, session: Any, session_id: str) -> None:
        self.session = session
        self.session_id = session_id
        self.told: list[str] = []

    def cook(self, dish: str) -> asyncio.Task[Any]:
        return asyncio.create_task(
            self.session.call_tool("cook", {"dish": dish}, timedelta(seconds=20))
        )


@asynccontextmanager
async def served(app: Any, service: Any, **options: Any) -> AsyncIterator[tuple[Network, str]]:
    """The address of a server that stores messages, and the network in front of it."""
    manager = adapter.StoredSessionManager(app, service, retry_interval=1, **options, **WHERE)
    asgi = starlette.Starlette(
        routes=[routing.Mount("/mcp", manager.handle_request)], lifespan=lambda _: manager.run()
    )
    http = uvicorn.Server(uvicorn.Config(asgi, port=0, log_level="critical"))
    task = asyncio.create_task(http._serve())  # `serve` would handle signals
    await poll_until(lambda: http.started, "the server")
    network = Network(http.servers[0].sockets[0].getsockname()[1])
    front = await asyncio.start_server(network.accept, "127.0.0.1", 0)
    try:
        async with front:
            yield network, f"http://127.0.0.1:{front.sockets[0].getsockname()[1]}/mcp/"
    finally:
        await network.cut()
        http.should_exit = True
        await task


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        http = await enter(httpx.AsyncClient(timeout=30))
        opened = streamable_http.streamable_http_client(address, http_client=http)
        reads, writes, session_id = await enter(opened)

        async def tell(params: Any) -> None:
            client.told.append(params.data)

        session = await enter(client_session.ClientSession(reads, writes, logging_callback=tell))
        await session.initialize()
        client = Client(session, session_id())
        yield client


@pytest.fixture
async def service(place: Server | None) -> AsyncIterator[Any]:
    async with opened(("async", place)) as service:
        yield service


async def test_a_client_that_loses_its_connection_misses_no_message(service: Any) -> None:
    kitchen = Kitchen()
    async with served(kitchen.server, service) as (network, address), connected(address) as client:
        call = client.cook("soup")
        await kitchen.do("soup", "chop")
        await poll_until(lambda: client.told == ["soup: chop"], "the first step")
        await network.cut()
        await kitchen.do("soup", "boil", "taste", "serve", "end")
        network.repair()
        assert (await call).content[0].text == "soup"
        assert client.told == [f"soup: {step}" for step in ("chop", "boil", "taste", "serve")]


async def test_clients_resume_only_their_own_streams(service: Any) -> None:
    """The ids of their requests are the same."""
    kitchen = Kitchen()
    async with (
        served(kitchen.server, service) as (network, address),
        connected(address) as ann,
        connected(address) as bob,
    ):
        assert ann.session_id != bob.session_id
        calls = [ann.cook("soup"), bob.cook("cake")]
        for dish in ("soup", "cake"):
            await kitchen.do(dish, "begin")
        await poll_until(lambda: bool(ann.told and bob.told), "both tools")
        await network.cut()
        for dish in ("soup", "cake"):
            await kitchen.do(dish, "go on", "end")
        network.repair()
        assert [(await call).content[0].text for call in calls] == ["soup", "cake"]
        assert ann.told == ["soup: begin", "soup: go on"]
        assert bob.told == ["cake: begin", "cake: go on"]


async def test_one_event_store_is_refused_for_two_mcp_sessions() -> None:
    async with sessionstore.InMemorySessionService() as service:
        event_store = stored(service)
        answer = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {}}
        initialized = types.JSONRPCMessage.model_validate(
            {"jsonrpc": "2.0", "id": 0, "result": answer}
        )
        await event_store.store_event("0", initialized)
        with pytest.raises(InvalidArgument, match="use StoredSessionManager"):
            await event_store.store_event("0", initialized)


async def test_the_manager_takes_the_servers_of_the_sdk() -> None:
    server = fastmcp.FastMCP("kitchen", log_level="CRITICAL")
    async with sessionstore.InMemorySessionService() as service:
        manager = adapter.StoredSessionManager(server, service, **WHERE)
        assert manager.app is server._mcp_server
        assert manager.event_store is not manager.event_store


async def test_the_example_runs(place: Server | None) -> None:
    shown = await asyncio.to_thread(run_example, "mcp_example.py", *([place.url] if place else []))
    assert shown.splitlines() == ["mixing", "baking", "cooling", "The result: a cake"]
