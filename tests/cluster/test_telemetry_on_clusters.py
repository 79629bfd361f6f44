"""What telemetry reports when a slot moves to another node."""

from __future__ import annotations

from cluster_support import other_primary, slot_of
from support.events import make_event
from support.services import both_modes, make_service
from support.sessions import IDS, KEY, create
from support.telemetry import Telemetry

from benchmarks.rigs.clusters import Cluster


@both_modes
async def test_a_redirected_operation_is_one_span_and_counts_a_retry(
    cluster: Cluster, mode: str
) -> None:
    service = make_service(mode, cluster.url)
    telemetry = Telemetry()
    await create(service)
    telemetry.instrument(service)
    before = telemetry.total("sessionstore.retries", error_type="MOVED")
    slot = slot_of(KEY)
    cluster.migrate(slot, other_primary(cluster, cluster.owner_of(slot)))
    await service.append_event(KEY, make_event("new"))
    await service.get_session(**IDS)

    spans = telemetry.take_spans()
    assert [span.name for span in spans] == ["append_event", "get_session"]
    assert all(span.status.is_ok for span in spans)
    # A cluster has several servers, so no attribute names one.
    assert all("server.address" not in (span.attributes or {}) for span in spans)
    assert telemetry.total("sessionstore.retries", error_type="MOVED") == before + 1
    assert telemetry.total("sessionstore.operations") == 2
    await service.aclose()
