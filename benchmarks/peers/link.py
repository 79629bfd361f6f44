"""Starts a peer's process and sends it commands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ..harness import Harness, Timing, VariantFailedError
from .registry import Peer

_ROOT = Path(__file__).resolve().parent.parent.parent


class CannotRunError(VariantFailedError):
    """A peer cannot run, or a command failed. The message says why."""


class Link:
    """A running peer.

    Args:
        peer: the peer.
        url: the server for it.

    Raises:
        CannotRunError: it cannot run.
    """

    def __init__(self, peer: Peer, url: str) -> None:
        self.peer = peer
        if not peer.python.exists():
            raise CannotRunError(
                f"not installed: run `python -m benchmarks.peers.install {peer.venv}`"
            )
        self._process = subprocess.Popen(
            [peer.python, "-m", f"{__package__}.worker", peer.adapter, peer.package],
            cwd=_ROOT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.versions: dict[str, str] = self._ask("open", url=url)["versions"]
        except CannotRunError:
            self.close()
            raise

    def make(
        self, name: str, sessions: int, stored: int, limit_seconds: float | None = None
    ) -> None:
        """Make sessions with events; later calls name them by `name`.

        Raises:
            CannotRunError: storing the events takes longer than `limit_seconds`.
        """
        self._ask("make", name=name, sessions=sessions, stored=stored, limit=limit_seconds)

    def append(self, name: str, each: int) -> Timing:
        """One task per session appends `each` events."""
        return Timing(**self._ask("append", name=name, each=each))

    def read(self, name: str, last: int, count: int) -> Timing:
        """Read the newest events of the first session, `count` times."""
        return Timing(**self._ask("read", name=name, last=last, count=count))

    def events(self, count: int) -> Timing:
        """Only make events."""
        return Timing(**self._ask("events", count=count))

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise CannotRunError(f"its process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CannotRunError(answer["error"].split("\n", 1)[0])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def open_all(harness: Harness, peers: list[Peer], url: str) -> tuple[list[Link], list[str]]:
    """The peers that can run, and a reason for each peer that cannot."""
    links, reasons = [], []
    for peer in peers:
        try:
            link = Link(peer, url)
        except CannotRunError as reason:
            reasons.append(f"{peer.name} cannot run: {reason}")
            continue
        harness.at_end(link.close)
        links.append(link)
    return links, reasons
