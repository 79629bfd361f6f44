"""The repr of an adapter is short, and names the service without credentials."""

from __future__ import annotations

from importlib import import_module

import pytest

from sessionstore import InMemorySessionService, RedisSessionService


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("adk", "AdkSessionService"),
        ("trpc_agent", "TrpcSessionService"),
        ("langgraph", "StoredCheckpointSaver"),
    ],
)
def test_the_repr_of_an_adapter(module: str, name: str) -> None:
    try:
        adapter = getattr(import_module(f"sessionstore.adapters.{module}"), name)
    except ImportError as error:
        pytest.skip(str(error))
    assert repr(adapter(InMemorySessionService())) == f"{name}(InMemorySessionService())"
    service = RedisSessionService("redis://user:secret@host:1/2")
    assert repr(adapter(service)) == f"{name}(RedisSessionService(redis://host:1/2))"
