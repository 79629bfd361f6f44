"""Model Context Protocol: a client loses its connection in the middle of a call, and resumes it.

python mcp_example.py [redis://localhost:6379]

It needs version 1 of the SDK: pip install 'mcp<2'.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.server.fastmcp import Context, FastMCP
from starlette.applications import Starlette
from starlette.routing import Mount

from sessionstore import InMemorySessionService, RedisSessionService
from sessionstore.adapters.mcp import StoredSessionManager

server = FastMCP("kitchen", log_level="CRITICAL")


@server.tool()
async def bake(context: Context[Any, Any, Any]) -> str:
    """Bake a cake, and report the steps."""
    await context.info("mixing")
    await context.close_sse_stream()  # the client's connection ends, the tool goes on
    await context.info("baking")
    await context.info("cooling")
    return "a cake"


@asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[str]:
    """The address of an application while it is served."""
    http = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    task = asyncio.create_task(http._serve())  # `serve` would handle Ctrl-C
    while not http.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield "http://{}:{}/mcp/".format(*http.servers[0].sockets[0].getsockname())
    finally:
        http.should_exit = True
        await task


async def show(params: Any) -> None:
    """Print what the server reports."""
    print(params.data)


async def main(url: str | None) -> None:
    """One call of a tool."""
    service = RedisSessionService(url, session_ttl=3600) if url else InMemorySessionService()
    async with service:
        manager = StoredSessionManager(
            server, service, app_name="kitchen", user_id="mcp", retry_interval=50
        )
        app = Starlette(
            routes=[Mount("/mcp", manager.handle_request)], lifespan=lambda _: manager.run()
        )
        async with (
            served(app) as address,
            streamable_http_client(address) as (reads, writes, _),
            ClientSession(reads, writes, logging_callback=show) as client,
        ):
            await client.initialize()
            result: Any = await client.call_tool("bake", {})
            print(f"The result: {result.content[0].text}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
