"""Instrumenting services in memory: options, ends, several services, and the dashboard."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml
from opentelemetry import trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from support.operations import OPERATIONS, Operation
from support.scene import set_scene
from support.services import WITH_TTL
from support.sessions import IDS, KEY
from support.telemetry import Telemetry

import sessionstore.telemetry
from sessionstore import Event, InMemorySessionService, InvalidArgument, flows
from sessionstore.adapters.services import Services
from sessionstore.embedded import EmbeddedServer
from sessionstore.sync import InMemorySessionService as SyncService
from sessionstore.sync import RedisSessionService as RedisService
from sessionstore.telemetry import instrument, metrics, operations, uninstrument

FOLDER = Path(sessionstore.telemetry.__file__).parent


def test_a_service_is_instrumented_once() -> None:
    service = SyncService()
    with pytest.raises(InvalidArgument, match="the service is not instrumented"):
        uninstrument(service)
    instrument(service)
    with pytest.raises(InvalidArgument, match="instrumented already: call uninstrument first"):
        instrument(service)
    uninstrument(service)
    instrument(service)


@pytest.mark.parametrize(
    ("service", "options", "message"),
    [
        (None, {}, "service must be a session service, not NoneType"),
        (SyncService(), {"user_ids": 1}, "user_ids must be True or False, not int"),
    ],
)
def test_a_wrong_argument_is_named(service: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        instrument(service, **options)


def test_nothing_is_reported_after_the_end_but_counts_stay() -> None:
    telemetry = Telemetry()
    service = SyncService()
    telemetry.instrument(service)
    service.create_session(**IDS)
    telemetry.uninstrument(service)
    assert "_run" not in vars(service)
    service.delete_session(**IDS)
    assert [span.name for span in telemetry.take_spans()] == ["create_session"]
    assert telemetry.total("sessionstore.operations") == 1
    telemetry.instrument(service)
    service.create_session(**IDS)
    assert telemetry.total("sessionstore.operations") == 2


def test_services_of_one_provider_are_added_up_also_when_one_is_gone() -> None:
    telemetry = Telemetry()
    first, second = SyncService(), SyncService()
    for service in (first, second):
        telemetry.instrument(service)
        service.create_session(**IDS)
    del first, service
    gc.collect()
    assert telemetry.total("sessionstore.operations", db_operation_name="create_session") == 2
    second.close()
    with pytest.raises(sessionstore.BackendUnavailable):
        second.get_user_state("app", "user")
    assert telemetry.total("sessionstore.operations", error_type="BackendUnavailable") == 1


def test_a_service_may_be_collected_as_garbage_while_metrics_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    telemetry = Telemetry()
    for _ in range(3):
        service = SyncService()
        telemetry.instrument(service)
        service.create_session(**IDS)
    counters_of = metrics._counters_of

    def collect_first(reporting: Any) -> Any:
        gc.collect()
        return counters_of(reporting)

    gc.disable()
    try:
        del service
        monkeypatch.setattr(metrics, "_counters_of", collect_first)
        assert telemetry.total("sessionstore.operations") == 3
        assert telemetry.total("sessionstore.operations") == 3
    finally:
        gc.enable()


def test_spans_name_the_user_on_request() -> None:
    telemetry = Telemetry()
    service = SyncService()
    telemetry.instrument(service, user_ids=True)
    service.create_session(**IDS)
    service.list_sessions(app_name=KEY.app_name, user_id=KEY.user_id)
    service.get_app_state(KEY.app_name)
    service.ping()
    users = [(span.attributes or {}).get("user.id") for span in telemetry.take_spans()]
    assert users == [KEY.user_id, KEY.user_id, None, None]


def test_a_span_is_a_child_of_the_callers_span_and_sampled_like_it() -> None:
    telemetry = Telemetry()
    service = SyncService()
    telemetry.instrument(service)
    tracer = telemetry.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("turn") as turn:
        service.create_session(**IDS)
    unsampled = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0))
    with trace.use_span(NonRecordingSpan(unsampled)):
        service.delete_session(**IDS)
    child, parent = telemetry.take_spans()
    assert (child.name, parent.name) == ("create_session", "turn")
    assert child.parent is not None
    assert child.parent.span_id == turn.get_span_context().span_id
    assert telemetry.total("sessionstore.operations") == 2


async def test_a_cancelled_operation_ends_its_span() -> None:
    class Stuck:
        async def execute(self, _: Any) -> list[Any]:
            started.set()
            await asyncio.Event().wait()
            return []

        async def aclose(self) -> None:
            pass

    started = asyncio.Event()
    telemetry = Telemetry()
    service = InMemorySessionService()
    telemetry.instrument(service)
    sessionstore.observe.wrap_executor(service, lambda _: Stuck())
    task = asyncio.create_task(service.append_event(KEY, Event("user", "hello")))
    await started.wait()
    assert telemetry.total("sessionstore.operations.active") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [span] = telemetry.take_spans()
    assert (span.attributes or {})["error.type"] == "CancelledError"
    assert (span.attributes or {})["gen_ai.conversation.id"] == KEY.session_id
    assert telemetry.total("sessionstore.operations.active") == 0
    assert telemetry.total("sessionstore.operations", error_type="CancelledError") == 1


def test_at_a_high_rate_some_durations_are_recorded_and_all_operations_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(operations, "perf_counter", lambda: now[0])
    telemetry = Telemetry()
    service = SyncService()
    telemetry.instrument(service)
    for interval_s, low, high in ((1 / 2000, 120, 200), (1 / 100, 1000, 1000)):
        before = telemetry.total("db.client.operation.duration")
        for _ in range(1000):
            now[0] += interval_s
            service.get_user_state("app", "user")
        if interval_s == 1 / 2000:
            now[0] += 10.0  # the rate of the past does not matter
            service.get_user_state("app", "user")
        recorded = telemetry.total("db.client.operation.duration") - before
        assert low <= recorded <= high
    assert telemetry.total("sessionstore.operations") == 2001


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_spans_have_the_names_of_operations(operation: Operation) -> None:
    telemetry = Telemetry()
    service = InMemorySessionService(**WITH_TTL)
    scene = await set_scene(service, operation, expire=lambda _: None)
    telemetry.instrument(service)
    await operation.run(service, scene)
    names = {span.name for span in telemetry.take_spans()}
    if operation.is_internal or operation.method == "watch_events":
        return
    assert names == {operation.method}


async def test_what_adapters_run_is_reported_too() -> None:
    telemetry = Telemetry()
    services = InMemorySessionService(), SyncService()
    for service in services:
        telemetry.instrument(service)
    adapter = Services("test", *services)
    await adapter.arun(flows.get_app_state, "app")
    adapter.run(flows.get_user_state, "app", "user")
    names = [span.name for span in telemetry.take_spans()]
    assert names == ["get_app_state", "get_user_state"]


def test_without_the_extra_the_message_names_it() -> None:
    code = "import sys; sys.modules['opentelemetry.metrics'] = None; import sessionstore.telemetry"
    ended = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: telemetry needs the extra `otel`: pip install 'sessionstore[otel]'"
    )
    code = "import sys, sessionstore; sys.exit('sessionstore.telemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- the dashboard --------------------------------------------------------------------------------


def exposed() -> dict[str, set[str]]:
    """What a Prometheus server collects: the labels of each metric."""
    found: dict[str, set[str]] = {}
    for family in prometheus_client.REGISTRY.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_dashboard_shows_what_prometheus_collects(tmp_path: Path) -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 8
    fields = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(fields)) == len(fields)
    assert max(x for x, _ in fields) < 24
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource"]

    reader = PrometheusMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    with EmbeddedServer(data_dir=tmp_path) as server, RedisService(server.url) as service:
        instrument(service, meter_provider=provider)
        session = service.create_session(**IDS)  # EVALSHA, then EVAL
        with pytest.raises(sessionstore.StaleVersion):
            service.append_event(session, Event("user", "hello"), if_version=1)
        found = exposed()
    provider.shutdown()
    ours = {name for name in found if name.startswith(("sessionstore_", "db_client_"))}
    shown: set[str] = set()
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        for target in panel["targets"]:
            query = target["expr"]
            assert query.count("(") == query.count(")")
            argument = re.sub(r"by \([^)]*\)", "", query)
            [name] = re.findall(r"\b(?:sessionstore|db_client)_\w+", argument)
            assert name in ours, query
            labels = [
                label.strip()
                for group in re.findall(r"by \(([^)]*)\)", query)
                for label in group.split(",")
            ]
            labels += re.findall(r"(\w+)!?=", query)
            labels += re.findall(r"{{(\w+)}}", target["legendFormat"])
            assert set(labels) <= found[name], query
            shown.add(re.sub("_(bucket|total)$", "", name))
    families = {re.sub("_(bucket|count|sum|total|created)$", "", name) for name in ours}
    # The name of this one ends like the count of a histogram.
    shown = {name.removesuffix("_count") for name in shown}
    assert shown == families


def test_the_prometheus_example_names_the_port_of_the_guide() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["localhost:9464"]}]
    guide = (FOLDER.parent / "GUIDE.md").read_text("utf-8")
    assert "start_http_server(9464)" in guide
