"""Flows about servers."""

from __future__ import annotations

import time
from datetime import timedelta

from ..calls import Flow
from ..model import Ping
from ..ops import Ops


def ping(ops: Ops) -> Flow[Ping]:
    """Ask a server for its role, and measure the time."""
    started = time.monotonic()
    role = yield ops.ping()
    return Ping(timedelta(seconds=time.monotonic() - started), role)
