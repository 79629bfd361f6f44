"""The web application of GUIDE.md: a client that loses its connections reads every answer whole."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from adapters_support import needs
from support.readmes import NAMED_SERVER, ROOT, blocks
from support.servers import Server
from support.waiting import poll_until

httpx: Any = needs("httpx", "frameworks")
needs("starlette", "frameworks")
needs("uvicorn", "frameworks")

MESSAGES = ["one two three four five", "ü " * 30 + "!", "bye"]


@pytest.fixture
def ports(server: Server, tmp_path: Path) -> Iterator[list[int]]:
    """Ports of two processes that serve the application."""
    guide = ROOT / "sessionstore" / "GUIDE.md"
    [block] = [found for found in blocks(guide) if "watch_events" in found.code]
    code = block.code.replace(NAMED_SERVER, server.url).replace("sleep(0.05)", "sleep(0.01)")
    (tmp_path / "live_app.py").write_text(code, "utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    found = []
    with ExitStack() as stack:
        for _ in range(2):
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            listening.set_inheritable(True)
            options = ["--fd", str(listening.fileno()), "--log-level", "error"]
            command = [sys.executable, "-m", "uvicorn", "live_app:app", *options]
            process = subprocess.Popen(command, env=environment, pass_fds=[listening.fileno()])
            stack.callback(process.wait)
            stack.callback(process.kill)
            found.append(listening.getsockname()[1])
        yield found


class Page:
    """What a browser shows: complete messages, and the text that is being written.

    Attributes:
        last: the id of the last entry; what a browser sends as Last-Event-ID.
        num_connections: how often it connected.
    """

    def __init__(self) -> None:
        self.last: str | None = None
        self.messages: list[str] = []
        self.written = ""
        self.num_connections = 0

    async def connect(self, client: Any, url: str, num_chunks: float) -> None:
        """Show what comes, until so many chunks came or the last answer is complete."""
        self.num_connections += 1
        headers = {} if self.last is None else {"Last-Event-ID": self.last}
        async with client.stream("GET", url, headers=headers) as response:
            assert response.status_code == 200
            unread = ""
            async for text in response.aiter_text():
                *entries, unread = (unread + text).split("\n\n")
                for entry in entries:
                    self._show(*entry.split("\n"))
                num_chunks -= 1
                if num_chunks <= 0 or len(self.messages) == 2 * len(MESSAGES):
                    return

    def has(self, num_messages: int) -> bool:
        return len(self.messages) >= num_messages

    def _show(self, id_line: str, data_line: str) -> None:
        self.last = id_line.removeprefix("id: ")
        _, is_partial, content = json.loads(data_line.removeprefix("data: "))
        if is_partial:
            self.written += content
            return
        if self.written:  # all of it was shown, and nothing twice
            assert f"{content} ".startswith(self.written)
        self.written = ""
        self.messages.append(content)


async def test_pages_that_lose_their_connection_show_every_answer(ports: list[int]) -> None:
    chance = random.Random(5)
    path = "/ann/today"

    async def show(client: Any, page: Page) -> None:
        while len(page.messages) < 2 * len(MESSAGES):
            url = f"http://127.0.0.1:{chance.choice(ports)}{path}"
            await page.connect(client, url, chance.choice([1, 1, 2, 5]))

    async def ask(client: Any, page: Page) -> None:
        for number, message in enumerate(MESSAGES, 1):
            url = f"http://127.0.0.1:{chance.choice(ports)}{path}"
            answer = await client.post(url, content=message)
            assert answer.status_code == 202
            await poll_until(partial(page.has, 2 * number), "the answer")

    pages = [Page(), Page()]
    async with httpx.AsyncClient(timeout=20) as client, asyncio.timeout(60):
        await asyncio.gather(ask(client, pages[0]), *(show(client, page) for page in pages))
    expected = [text for message in MESSAGES for text in (message, f"You said: {message}")]
    for page in pages:
        assert page.messages == expected
        assert page.num_connections > 3


async def test_a_page_that_is_opened_in_the_middle_shows_the_whole_answer(
    ports: list[int],
) -> None:
    url = [f"http://127.0.0.1:{port}/ann/today" for port in ports]
    async with httpx.AsyncClient(timeout=20) as client, asyncio.timeout(60):
        await client.post(url[0], content="word " * 100)
        first = Page()
        while first.written.count("word") < 20:
            await first.connect(client, url[0], 5)
        second = Page()  # it has no cursor, as after a reload
        await second.connect(client, url[1], 1)
        while second.written.count("word") < 20:
            await second.connect(client, url[1], 1)
        assert second.written.startswith("You said: word word")
