"""The command `sessionstore web` in a process of its own, and an HTTP client for it."""

from __future__ import annotations

import fcntl
import http.client
import json
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MAIN = "from sessionstore.cli import main; main()"
"""Runs the command line."""


class Inspector:
    """The command `sessionstore web`, running.

    Args:
        url: the server.
        *options: of the command.
        terminal: the end of a pseudo terminal that the command has as its own.
    """

    def __init__(self, url: str, *options: str, terminal: int | None = None) -> None:
        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self._process = subprocess.Popen(
            [sys.executable, "-c", MAIN, "web", "--url", url, "--json", *options],
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            start_new_session=True,
            preexec_fn=None if terminal is None else take_terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.link = self.next_link()
        self.origin = self.link.partition("/enter")[0]

    def next_link(self) -> str:
        """The link that the command prints next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        link: str = json.loads(line)["link"]
        return link

    def stop(self) -> tuple[int, str]:
        """Press Ctrl-C. Returns the exit status, and what the command wrote to stderr."""
        self._process.send_signal(signal.SIGINT)
        _, errors = self._process.communicate(timeout=15)
        return self._process.returncode, errors

    def memory_mb(self) -> int:
        """The memory that the process uses, on Linux."""
        status = Path(f"/proc/{self._process.pid}/status").read_text("utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024

    def kill(self) -> None:
        """End the process, if it still runs."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def inspecting(url: str, *options: str, **arguments: Any) -> Iterator[Inspector]:
    """The command, which ends with the context."""
    inspector = Inspector(url, *options, **arguments)
    try:
        yield inspector
    finally:
        inspector.kill()


@dataclass
class Answer:
    """A response."""

    status: int
    headers: Mapping[str, str]
    text: str


class Client:
    """A client that opened the link of an inspector."""

    def __init__(self, inspector: Inspector) -> None:
        self.address = urlsplit(inspector.origin).netloc
        self.cookie = ""
        path = inspector.link.removeprefix(inspector.origin)
        answer = self.send("GET", path)
        assert answer.status == 303, answer.text
        self.cookie = answer.headers["set-cookie"].partition(";")[0]

    def connection(self) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection(self.address, timeout=20)

    def send(
        self, method: str, path: str, body: str | None = None, **headers: str | None
    ) -> Answer:
        """Send a request with the cookie. A header that is None is left out."""
        connection = self.connection()
        given = {"Cookie": self.cookie, **{k.replace("_", "-"): v for k, v in headers.items()}}
        try:
            connection.request(
                method, path, body, {name: text for name, text in given.items() if text}
            )
            response = connection.getresponse()
            text = response.read().decode()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, text)
        finally:
            connection.close()

    def get(self, path: str, **headers: str | None) -> Answer:
        """The response to a GET."""
        return self.send("GET", path, **headers)

    @contextmanager
    def following(self, path: str, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
        """The messages of a stream of server-sent events, with their `id`."""
        connection = self.connection()
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request("GET", path, headers={"Cookie": self.cookie, **given})
        response = connection.getresponse()
        assert response.getheader("content-type", "").startswith("text/event-stream")

        def messages() -> Iterator[dict[str, Any]]:
            cursor = ""
            for line in response:
                name, _, text = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    cursor = text
                elif name == "data":
                    yield {"id": cursor, **json.loads(text)}

        try:
            yield messages()
        finally:
            connection.close()
