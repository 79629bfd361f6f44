"""Shared by the tests of the inspector: a server, and a service that writes to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sessionstore.embedded import EmbeddedServer
from sessionstore.sync import RedisSessionService

TTL_S = 3600
TTLS: Any = dict.fromkeys(("session_ttl", "app_state_ttl", "user_state_ttl"), TTL_S)


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedServer]:
    """A server for the tests of a module."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def service(store: EmbeddedServer) -> Iterator[RedisSessionService]:
    """A service on it, which is empty."""
    with RedisSessionService(store.url, **TTLS) as found:
        yield found
        for app_name in ("shop", "big"):
            for user_id in found.list_users(app_name):
                found.delete_user(app_name=app_name, user_id=user_id)
