"""Spans and metrics of operations, the same on every backend."""

from __future__ import annotations

from typing import Any

import pytest
from support.services import ServiceFactory
from support.sessions import IDS, KEY, create
from support.telemetry import Telemetry

from sessionstore import Event, SessionKey, SessionNotFound, StaleVersion


async def test_operations_are_spans_and_are_counted(
    make_service: ServiceFactory, app_in_own_slot: bool, backend: tuple[str, object]
) -> None:
    service = make_service()
    telemetry = Telemetry()
    session = await create(service)
    telemetry.instrument(service)
    event = Event("user", "a secret", state_delta={"app:secret": "key"})
    await service.append_event(session, event)
    await service.append_event(KEY, event)
    with pytest.raises(StaleVersion):
        await service.append_event(KEY, Event("user", "more"), if_version=1)
    await service.get_session(**IDS)
    with pytest.raises(SessionNotFound):
        await service.get_events(SessionKey(KEY.app_name, KEY.user_id, "other"))

    spans = telemetry.take_spans()
    names = ["append_event", "append_event", "append_event", "get_session", "get_events"]
    assert [span.name for span in spans] == names
    shown = [dict(span.attributes or {}) for span in spans]
    system = "redis" if backend[1] else "sessionstore.memory"
    for name, attributes in zip(names, shown, strict=True):
        assert attributes["db.system.name"] == system
        assert attributes["db.operation.name"] == name
        assert attributes["sessionstore.app.name"] == KEY.app_name
        assert "user.id" not in attributes
    conversations = [attributes["gen_ai.conversation.id"] for attributes in shown]
    assert conversations == [*[KEY.session_id] * 4, "other"]
    scripts = [attributes.get("db.stored_procedure.name") for attributes in shown]
    assert scripts == [*["append_event"] * 3, "touch_session", "touch_session"]
    calls = [attributes.get("sessionstore.calls", 1) for attributes in shown]
    # In a slot of its own the app state is checked, written and refreshed with Calls of its own.
    assert calls == ([4, 2, 1, 2, 1] if app_in_own_slot else [1, 1, 1, 1, 1])
    errors = [attributes.get("error.type") for attributes in shown]
    assert errors == [None, None, "StaleVersion", None, "SessionNotFound"]
    assert [span.status.is_ok for span in spans] == [True, True, False, True, False]
    assert all(not span.events and span.status.description is None for span in spans)

    count = telemetry.total
    assert count("sessionstore.operations") == 5
    assert count("sessionstore.operations", error_type="StaleVersion") == 1
    assert count("db.client.operation.duration", db_operation_name="append_event") == 3
    assert count("sessionstore.operations.active") == 0
    assert count("sessionstore.repeats") == 1
    assert count("sessionstore.calls") == (10 if app_in_own_slot else 5)
    assert count("sessionstore.calls", db_stored_procedure_name="append_event") == 3
    if backend[1]:
        assert count("sessionstore.network.io", network_io_direction="transmit") > 1000
        assert count("sessionstore.network.io", network_io_direction="receive") > 100
        opened = count("sessionstore.connections.opened")
        assert 1 <= count("db.client.connection.count") <= opened
        assert count("sessionstore.connections.lost") == 0


async def test_watchers_are_counted_and_their_reads_make_no_spans(
    make_service: ServiceFactory,
) -> None:
    service = make_service()
    telemetry = Telemetry()
    session = await create(service)
    await service.append_event(session, Event("user", "hello"))
    telemetry.instrument(service)
    real: Any = getattr(service, "service", service)
    watched = real.watch_events(KEY, idle_timeout=0.05)
    if service is real:
        items = [item async for item in watched]
    else:
        next(watched)
        assert telemetry.total("sessionstore.watchers") == 1
        items = [None, *watched]
    assert len(items) == 2
    assert telemetry.total("sessionstore.watchers") == 0
    assert telemetry.take_spans() == []
