"""Runs the inspector until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import click
import uvicorn

from ... import RedisSessionService
from ...instances import url_without_credentials
from ...sync import SessionService
from ..opened import service_options
from .access import Access
from .app import make_app
from .following import Following
from .pages import Pages
from .survey import Survey

_STOP_S = 5  # how long open requests may take after Ctrl-C


def serve(
    service: SessionService,
    url: str,
    options: Mapping[str, Any],
    listener: socket.socket,
    announce: Callable[[str], None],
    *,
    allow_delete: bool = False,
) -> None:
    """Serve the pages until Ctrl-C.

    Args:
        service: reads the data. It is closed at the end.
        url: the server of the service.
        options: the other options of the service, for another one that follows sessions.
        listener: a socket of the loopback interface.
        announce: called with the link, and with each new one.
        allow_delete: the pages can delete.
    """
    access = Access(listener.getsockname()[1])

    async def run() -> None:
        async with RedisSessionService(url, **service_options(**options)) as live:
            survey = Survey(service)
            pages = Pages(service, survey, access, url_without_credentials(url), allow_delete)
            app = make_app(pages, Following(live, pages), access)
            config = uvicorn.Config(
                app,
                log_config=None,
                log_level=logging.ERROR,
                access_log=False,
                lifespan="off",
                http="h11",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_STOP_S,
            )
            _offer_new_links(access, announce)
            await _Server(config, [live.aclose, survey.stop, service.close]).serve([listener])

    # Do not warn if a browser disconnects while a large page is sent.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    announce(access.new_link())
    with suppress(KeyboardInterrupt):
        asyncio.run(run())


class _Server(uvicorn.Server):
    """Stops watchers and scans before it waits for open requests."""

    def __init__(self, config: uvicorn.Config, closers: list[Callable[[], Any]]) -> None:
        super().__init__(config)
        self._closers = closers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for close in self._closers:
            pending = close()
            if asyncio.iscoroutine(pending):
                await pending
        await super().shutdown(sockets)


def _offer_new_links(access: Access, announce: Callable[[str], None]) -> None:
    """Announce a new link each time that Enter is pressed in the terminal."""
    if not sys.stdin.isatty() or not _is_in_foreground():
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        if _is_in_foreground() and sys.stdin.readline():
            announce(access.new_link())
        else:  # Ctrl-D, or in the background, where reading stops the process
            loop.remove_reader(sys.stdin)

    with suppress(NotImplementedError, PermissionError):  # not every event loop can do this
        loop.add_reader(sys.stdin, read)
        click.echo("The link works once. Enter: a new link. Ctrl-C: stop.", err=True)


def _is_in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # not the terminal of this process
        return False
